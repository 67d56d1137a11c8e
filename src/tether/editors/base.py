"""What an editor is: it looks at a model and proposes low-rank updates. It never writes a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.editors.moments import Moments
from tether.engine import LOCAL, Engine
from tether.errors import TetherError, WrongModelError
from tether.facts.fact import Fact
from tether.models.editable import EditableModel

if TYPE_CHECKING:
    from tether.editors.settings import Hparams, Need


class History(Protocol):
    """The live edits of the ledger that an edit is added to, oldest first. Nothing is read before it is asked for.

    All tensors are float32 on the CPU. Row i of `keys`, `values` and `residuals` belongs to edit `rows(weight)[i]`; an
    edit with several keys has several rows.
    """

    @property
    def edits(self) -> tuple[int, ...]:
        """The numbers of the live edits."""

    def of_subject(self, fact: Fact) -> tuple[Fact, ...]:
        """The facts of the live edits with the same subject as `fact`, oldest first."""

    def rows(self, weight: str) -> tuple[int, ...]:
        """The edit of every row, for the edits whose editor keeps keys of this weight."""

    def keys(self, weight: str) -> Tensor:
        """n×q: the inputs of the weight that the edits were made for."""

    def values(self, weight: str) -> Tensor:
        """m×p: the targets, one row a key, of the edits that keep them for this weight (m is 0 where none does)."""

    def residuals(self, weight: str) -> Tensor:
        """n×p: ΔW k, what the solve of an edit added to the weight's output at its key."""

    def updates(self, weight: str) -> LowRank:
        """The sum of the live edits, before any restraint."""


class NoHistory:
    """The history of no edits. It knows no weight, so every tensor is 0×0."""

    edits = ()

    def of_subject(self, fact: Fact) -> tuple[Fact, ...]:
        return ()

    def rows(self, weight: str) -> tuple[int, ...]:
        return ()

    def keys(self, weight: str) -> Tensor:
        return torch.zeros(0, 0)

    values = residuals = keys

    def updates(self, weight: str) -> LowRank:
        return LowRank.zeros(0, 0)


@dataclass(frozen=True)
class Context:
    """What an edit may look at beside the model and the facts.

    `hparams` are settings of the method; its `needs` say which of `prefixes`, `moments` (by layer) and `trained` (what
    the file of a trained editor holds) are filled. They are the same for every edit of a ledger; `history` grows.
    `engine` does what can be done side by side.
    """

    hparams: Any
    prefixes: Sequence[str] = ()
    moments: Mapping[int, Moments] = field(default_factory=dict)
    trained: Any = None
    history: History = field(default_factory=NoHistory)
    engine: Engine = LOCAL


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


@contextmanager
def reading_a_fact() -> Iterator[None]:
    """Inside the block, an error of a fact's text becomes an EditFailedError; one of the model stays."""
    try:
        yield
    except (EditFailedError, WrongModelError):
        raise
    except TetherError as error:
        raise EditFailedError(str(error)) from None


@dataclass(frozen=True)
class Batch:
    """Facts edited together. `outcomes` has one entry a fact, in order: its record, or why it was left out; `proposal`
    is None where none was edited. The columns of every update (and the rows of what `vectors` hold) belong to the
    edited facts in order: to each as many as `columns` says, None for one each. `whole`: the facts share the update,
    and no part of it is one fact's, so that they are undone together."""

    proposal: Proposal | None
    outcomes: Sequence[dict[str, float] | EditFailedError]
    columns: Sequence[int] | None = None
    whole: bool = False


@runtime_checkable
class Editor(Protocol):
    """A method that edits one fact at a time."""

    def weights(self, model: EditableModel, hparams: Any) -> list[str]:
        """The names of the weights it may edit. Raises TetherError for a model it cannot edit."""

    def propose(self, model: EditableModel, fact: Fact, context: Context) -> Proposal:
        """The update for one fact, computed on the model as it is now. Does not change the model.

        Raises EditFailedError for a fact that cannot be edited, EditSkippedError for one that the model says already,
        and another TetherError for what would stop every fact (singular moments).
        """


@runtime_checkable
class BatchEditor(Protocol):
    """A method that edits any number of facts in one solve."""

    def weights(self, model: EditableModel, hparams: Any) -> list[str]:
        """As of `Editor`."""

    def propose_batch(self, model: EditableModel, facts: Sequence[Fact], context: Context) -> Batch:
        """The update for all facts together, computed on the model as it is now. Does not change the model.

        Facts that fail or that the model says already are left out and named in the outcomes. `vectors` must hold the
        keys "<weight>/K" (n×q) and "<weight>/H" (n×n, see `tether.algebra.joint_solve`): the undo of some facts of a
        batch needs them. Raises EditFailedError where the facts cannot be solved together, and another TetherError as
        `Editor.propose` does.
        """


class Trained(Protocol):
    """An opened file of a trained editor."""

    @property
    def path(self) -> Path: ...

    @property
    def sha256(self) -> str:
        """Of the file: a ledger records it."""

    @property
    def network(self) -> Any:
        """What `Context.trained` gets."""

    def settings(self, file: Path | Mapping[str, Any] | None) -> Hparams:
        """The settings it was trained with, and over them those of an edit from a file or a mapping. Raises TetherError
        for a setting that only another training could change."""


@dataclass(frozen=True)
class Method:
    """All there is to know of a method: the one thing that is registered for it.

    `editor` makes a new editor; `settings` is the class of its settings; `paper` is a title with its link, `summary`
    one line on what the method does. A method that edits with a trained file gives `open_trained(path, model)`, which
    raises TetherError for a file that is none or was trained for another model.
    """

    name: str
    editor: Callable[[], Editor | BatchEditor]
    settings: type[Hparams]
    paper: str
    summary: str
    open_trained: Callable[[Path, EditableModel], Trained] | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """What its edits look at beside the model and the facts."""
        return self.settings.needs
