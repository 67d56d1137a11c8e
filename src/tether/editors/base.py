"""What an editor is: it looks at a model and proposes low-rank updates. It never writes a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.editors.moments import Moments
from tether.errors import TetherError
from tether.facts.fact import Fact
from tether.models.editable import EditableModel


@dataclass(frozen=True)
class Context:
    """What an edit may look at beside the model and the facts; the same for every edit of a ledger. `hparams` are of
    the method's own class, which says what of the rest it needs; `trained` is what the file of a trained editor
    holds."""

    hparams: Any
    prefixes: Sequence[str] = ()
    moments: Mapping[int, Moments] = field(default_factory=dict)
    trained: Any = None


@dataclass(frozen=True)
class Proposal:
    """Low-rank updates by weight name; `vectors` are kept beside them in the ledger ("<weight>/K", "<weight>/V");
    `record` says how it went (loss_first, loss_last, steps)."""

    updates: dict[str, LowRank]
    vectors: dict[str, Tensor] = field(default_factory=dict)
    record: dict[str, float] = field(default_factory=dict)


class EditFailedError(TetherError):
    """This fact could not be edited; the model is as it was. `record` says how far it came."""

    def __init__(self, message: str, record: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.record = record or {}


class EditSkippedError(EditFailedError):
    """The model says this fact already."""


@dataclass(frozen=True)
class Batch:
    """Facts edited together. `outcomes` has one entry a fact, in order: its record, or why it was left out. Column j of
    every update (and row j of what `vectors` hold) belongs to the j-th fact that was edited; `proposal` is None where
    none was."""

    proposal: Proposal | None
    outcomes: Sequence[dict[str, float] | EditFailedError]


@runtime_checkable
class Editor(Protocol):
    """A method that edits one fact at a time."""

    def weights(self, model: EditableModel, hparams: Any) -> list[str]:
        """The names of the weights it may edit. Raises TetherError for a model it cannot edit."""

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        """The update for one fact, computed on the model as it is now. Does not change the model. Raises
        EditFailedError, or EditSkippedError for a fact that the model says already."""


@runtime_checkable
class BatchEditor(Protocol):
    """A method that edits any number of facts in one solve."""

    def weights(self, model: EditableModel, hparams: Any) -> list[str]:
        """As of `Editor`."""

    def propose_batch(self, model: EditableModel, facts: Sequence[Fact], context: Context) -> Batch:
        """The update for all facts together, computed on the model as it is now, which is as before afterwards, also
        on an error. Facts that fail or that the model says already are left out and named in the outcomes."""
