"""What an ability is to whoever measures it: a name, what identifies it, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tether.evaluation.results import Ability
from tether.evaluation.statistics.mean import Record
from tether.models.editable import EditableModel


class AbilityResult(Ability):
    """One ability of one model, with one record an item; `value` may be infinite.

    A record has `ability`, `item` (its number) and what was measured: `value` from 0 to 1, or `nll` and `n_tokens`.
    """

    value: float
    records: list[Record]


@dataclass(frozen=True)
class Work:
    """What measuring costs: tokens read at once, and steps of one token for a batch, summed over `rows` in it."""

    read: int = 0
    steps: int = 0
    rows: int = 0  # steps × rows of their batch

    def __add__(self, other: Work) -> Work:
        return Work(self.read + other.read, self.steps + other.steps, self.rows + other.rows)


class AbilityTask(Protocol):
    """One ability, with its data."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Changes with whatever could change the numbers, data aside."""
        ...

    @property
    def data_sha256(self) -> str:
        """Of all the items, also those beyond `items`."""
        ...

    @property
    def items(self) -> int:
        """How many items are measured (windows of text for perplexity, where 0 stands for all of it)."""
        ...

    def work(self, model: EditableModel) -> Work:
        """What `measure` would cost; nothing is measured."""
        ...

    def measure(self, model: EditableModel) -> AbilityResult:
        """Of the model as it is now, which is not changed."""
        ...
