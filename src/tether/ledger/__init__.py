"""The ledger of edits on disk."""

from tether.ledger.journal import ATTEMPTS, EditorRecord, Event, Header, MomentsRecord, WeightRecord, now, writing
from tether.ledger.ledger import Attempt, Ledger, SpectrumRow
from tether.ledger.replay import Replay, State, Sum, Sums

__all__ = [
    "ATTEMPTS", "Attempt", "EditorRecord", "Event", "Header", "Ledger", "MomentsRecord", "Replay", "SpectrumRow",
    "State", "Sum", "Sums", "WeightRecord", "now", "writing",
]  # fmt: skip
