"""The ledger of edits on disk."""

from tether.ledger.combine import merge, pick
from tether.ledger.journal import (
    ATTEMPTS,
    IMPORT,
    EditorRecord,
    Event,
    Header,
    MomentsRecord,
    WeightRecord,
    now,
    writing,
)
from tether.ledger.ledger import Attempt, Ledger
from tether.ledger.provenance import Whose, whose
from tether.ledger.replay import Sums
from tether.ledger.side_by_side import LedgerDifference, difference

__all__ = [
    "ATTEMPTS", "IMPORT", "Attempt", "EditorRecord", "Event", "Header", "Ledger", "LedgerDifference", "MomentsRecord",
    "Sums", "WeightRecord", "Whose", "difference", "merge", "now", "pick", "whose", "writing",
]  # fmt: skip
