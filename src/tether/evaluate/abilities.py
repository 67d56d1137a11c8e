"""What the model could do before: general abilities, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tether.errors import TetherError
from tether.evaluate.measure import Record
from tether.evaluate.perplexity import perplexity
from tether.model.editable import EditableModel

ABILITIES = ("perplexity",)


@dataclass(frozen=True)
class AbilityResult:
    """One ability of one model: `value` in `unit`, over `n` items (tokens for perplexity), with one record an item."""

    value: float
    n: int
    stderr: float | None
    unit: Literal["percent", "ppl"]
    records: list[Record]


def check_abilities(names: Sequence[str]) -> None:
    """Raise TetherError for a name that is no ability."""
    for name in names:
        if name not in ABILITIES:
            raise TetherError(f"{name!r} is no ability that can be measured: choose from {', '.join(ABILITIES)}")


def measure_abilities(model: EditableModel, names: Sequence[str], *, text: str) -> dict[str, AbilityResult]:
    """The abilities `names` of the model as it is now, which is not changed. `text` is for perplexity."""
    check_abilities(names)
    results = {}
    for name in dict.fromkeys(names):
        found = perplexity(model, text)
        records = [{"ability": name, **record} for record in found.records]
        results[name] = AbilityResult(found.value, found.n, found.stderr, "ppl", records)
    return results
