"""The ledger of edits on disk."""

from tether.ledger.journal import EditorRecord, Event, Header, WeightRecord, now, writing
from tether.ledger.ledger import ATTEMPTS, Attempt, Ledger, SpectrumRow
from tether.ledger.replay import Sum, Sums

__all__ = [
    "ATTEMPTS", "Attempt", "EditorRecord", "Event", "Header", "Ledger", "SpectrumRow", "Sum", "Sums", "WeightRecord",
    "now", "writing",
]  # fmt: skip
