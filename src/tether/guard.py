"""The paper's restraint as a safety device: a limit on what editing may cost, checked while it goes on.

    tether.edit(model, facts, out="my-edits", guard="perplexity:1.05", guard_every=10)

A guard is an ability and a limit relative to the unedited model: `perplexity:1.05` (at most 1.05 times its perplexity),
`nli:0.9` (at least 0.9 of its score). Where it fails, the run's restraint acts on the sum so far (log:1.2 if it has
none); where that is not enough, the first edit whose prefix fails even under the restraint is found by bisection, that
one and all later ones are marked undone, and the run stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tether.errors import TetherError
from tether.evaluate.abilities import PERPLEXITY, AbilityRun, ability_tasks
from tether.evaluate.ability_data import ability_data
from tether.model.editable import EditableModel
from tether.restraint import Restraint, log


class GuardStopError(TetherError):
    """A guard's limit was passed and restraint did not help: the edits that broke it are undone in the ledger."""


@dataclass(frozen=True)
class Reading:
    """The ability now, as a share of the unedited model's, and whether the limit allows it."""

    share: float
    holds: bool


class Guard:
    """Measures one ability of a model against its unedited self. The model is never changed."""

    def __init__(self, model: EditableModel, rule: str, data: str | Path | None = None) -> None:
        self.ability, self.limit = _parse(rule)
        self.rule = rule
        tasks = ability_tasks([self.ability], ability_data(data), quick=True)
        if len(tasks) != 1:
            raise TetherError(f"guard {rule!r}: {self.ability} is a group of {len(tasks)} tasks; name one of them")
        self._run = AbilityRun(model, tasks)
        with model.unedited():
            self.start = self._value()
        if not (math.isfinite(self.start) and self.start > 0):
            raise TetherError(
                f"guard {rule!r}: the unedited model's {self.ability} is {self.start:g}, so nothing can be a share of "
                "it; guard another ability"
            )

    def _value(self) -> float:
        (found,) = self._run.measure().values()
        return float(found.value)

    def read(self) -> Reading:
        """Of the model as it is now."""
        share = self._value() / self.start
        return Reading(share, share <= self.limit if self.ability == PERPLEXITY else share >= self.limit)


def _parse(rule: str) -> tuple[str, float]:
    ability, _, text = rule.rpartition(":")
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    sound = limit > 1 if ability == PERPLEXITY else 0 < limit <= 1
    if not ability or not sound:
        raise TetherError(
            f"{rule!r} is no guard: write perplexity:1.05 (at most 1.05 times the unedited model's, above 1) or a task "
            "and the share of its score to keep, as in nli:0.9"
        )
    return ability, limit


def restraint_of_last_resort(chosen: Restraint) -> Restraint:
    """The run's own restraint, or log:1.2 where it has none."""
    return log(1.2) if chosen.kind == "none" else chosen


def first_failing(good: int, bad: int, holds: Callable[[int], bool]) -> int:
    """The first number in (good, bad] whose prefix fails, by bisection: `good` holds, `bad` does not."""
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return bad
