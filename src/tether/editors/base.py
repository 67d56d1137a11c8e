"""What an editor is: it looks at a model and proposes low-rank updates. It never writes a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from tether.editors.hparams import RomeHparams
from tether.editors.moments import Moments
from tether.errors import TetherError
from tether.facts.fact import Fact
from tether.lowrank import LowRank
from tether.model.editable import EditableModel


@dataclass(frozen=True)
class Context:
    """What an edit may look at beside the model and the fact; the same for every edit of a ledger."""

    hparams: RomeHparams
    prefixes: Sequence[str]
    moments: Mapping[int, Moments]


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


class Editor(Protocol):
    """A method of editing."""

    def weights(self, model: EditableModel, hparams: RomeHparams) -> list[str]:
        """The names of the weights it may edit."""

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        """The update for one fact, computed on the model as it is now. Does not change the model. Raises
        EditFailedError, or EditSkippedError for a fact that the model says already."""
