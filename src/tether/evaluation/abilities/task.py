"""What an ability is to whoever measures it: a name, what identifies it, and what it costs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

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


class AbilityTask(ABC):
    """One ability, with its data. `version` changes with whatever could change the numbers, data aside; `data_sha256`
    is of all the items, of which the first `items` are measured (0 for the perplexity: its whole text)."""

    def __init__(self, name: str, version: str, data_sha256: str, items: int) -> None:
        self.name, self.version, self.data_sha256, self.items = name, version, data_sha256, items

    @property
    def described(self) -> dict[str, Any]:
        """What the numbers depend on, for the settings of a results file."""
        return {"version": self.version, "data_sha256": self.data_sha256, "items": self.items}

    @abstractmethod
    def work(self, model: EditableModel) -> Work:
        """What `measure` would cost; nothing is measured."""

    @abstractmethod
    def measure(self, model: EditableModel) -> AbilityResult:
        """Of the model as it is now, which is not changed."""
