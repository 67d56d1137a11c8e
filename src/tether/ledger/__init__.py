"""The ledger of edits on disk."""

from tether.ledger.journal import ATTEMPTS, EditorRecord, Event, Header, MomentsRecord, WeightRecord, now, writing
from tether.ledger.ledger import Attempt, Ledger
from tether.ledger.replay import Sums

__all__ = [
    "ATTEMPTS", "Attempt", "EditorRecord", "Event", "Header", "Ledger", "MomentsRecord", "Sums", "WeightRecord", "now",
    "writing",
]  # fmt: skip
