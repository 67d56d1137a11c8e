"""The paper's restraint as a safety device: a limit on what editing may cost, checked while it goes on.

    tether.edit(model, facts, out="my-edits", guard="perplexity:1.05", guard_every=10)

A guard is an ability and a limit relative to the unedited model: `perplexity:1.05` (at most 1.05 times its perplexity),
`nli:0.9` (at least 0.9 of its score). It looks after every K-th edit and at the end, and every look is an event of the
ledger. Where it fails, the run's restraint acts on the sum so far (log:1.2 if it has none); where that is not enough,
bisection finds the first edit without which, and without all later ones, the ledger holds again; those are undone,
and the run stops.
"""

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tether.constraints.base import Constraint
from tether.errors import TetherError
from tether.evaluation.abilities.run import PERPLEXITY, AbilityRun, ability_data, ability_tasks
from tether.ledger import Ledger
from tether.models.editable import EditableModel

logger = logging.getLogger(__name__)


class GuardStopError(TetherError):
    """A guard's limit was passed and restraint did not help: the edits that broke it are undone in the ledger."""


class Guard:
    """Measures one ability of a model against its unedited self, and acts on a ledger."""

    def __init__(self, model: EditableModel, rule: str, *, every: int = 10, data: str | Path | None = None) -> None:
        self.ability, self.limit = _parse(rule)
        self.rule, self.every = rule, every
        tasks = ability_tasks([self.ability], ability_data(data), quick=True)
        if len(tasks) != 1:
            raise TetherError(f"guard {rule!r}: {self.ability} is a group of {len(tasks)} tasks; name one of them")
        self._run, self.start = AbilityRun(model, tasks), 1.0
        with model.unedited():
            self.start = self.read()
        if not (math.isfinite(self.start) and self.start > 0):
            raise TetherError(
                f"guard {rule!r}: the unedited model's {self.ability} is {self.start:g}, so nothing can be a share of "
                "it; guard another ability"
            )

    def read(self) -> float:
        """The ability of the model as it is now, which is not changed, as a share of the unedited model's."""
        (found,) = self._run.measure().values()
        return float(found.value) / self.start

    def allows(self, share: float) -> bool:
        """Whether the limit does."""
        return share <= self.limit if self.ability == PERPLEXITY else share >= self.limit

    def due(self, ledger: Ledger, *, at_the_end: bool) -> bool:
        """Whether a K-th edit, or at the end any, came after the last look. Depends on the ledger alone, so a resumed
        run looks where an uninterrupted one does."""
        held = self._held(ledger)
        return ledger.attempts > held if at_the_end else ledger.attempts // self.every > held // self.every

    def _held(self, ledger: Ledger) -> int:
        """The number of edits at the last look that this rule passed; -1 where it never looked."""
        for event in reversed(ledger.events):
            if event.kind == "guard" and event.record.get("rule") == self.rule and event.record["holds"]:
                return int(event.record["edits"])
        return -1

    def begin(self, ledger: Ledger) -> None:
        """The first look at a ledger, whose model carries its edits. Raises TetherError where it fails already."""
        if self._held(ledger) >= 0:
            return
        share = self.read()
        if not self.allows(share):
            raise TetherError(
                f"guard {self.rule}: the {ledger.attempts} edits of {ledger.path} cost too much already "
                f"({share:.3f} of the unedited model's); undo some or loosen the guard"
            )
        self._note(ledger, share)

    def _note(self, ledger: Ledger, share: float, undone: Sequence[int] = (), **more: Any) -> None:
        ledger.append_guard(
            f"guard {self.rule}: {share:.3f} of the unedited model's {self.ability}",
            {"rule": self.rule, "edits": ledger.attempts, "share": share, "holds": self.allows(share), **more},
            undone,
        )

    def look(
        self, ledger: Ledger, restraint: Constraint, restrain: Callable[[Constraint, str], None], model: EditableModel
    ) -> None:
        """Look at the model, which carries the ledger's edits. Where the limit is passed, `restrain` the sum with
        `restraint`; where that is not enough, take edits back and raise GuardStopError. Needs `writing`."""
        share, now = self.read(), ledger.attempts
        if self.allows(share):
            self._note(ledger, share)
            return
        replay = ledger.replay(model, read=ledger.reader())  # bisection asks for many sums
        if replay.sums().restrains(restraint):
            why = f"guard {self.rule}: {share:.3f} of the unedited model's after edit {now}"
            logger.warning("%s: restraining with %s", why, restraint)
            restrain(restraint, why)
            share = self.read()
            if self.allows(share):
                self._note(ledger, share)
                return
            replay = replace(replay, events=ledger.events)
        edits = ledger.live_numbers()
        shares = {now: share}

        def holds(last: int) -> bool:
            """What the ledger will say with the edits up to `last` alone."""
            replay.without({edit for edit in edits if edit > last}).sums().show(model)
            shares[last] = self.read()
            return self.allows(shares[last])

        failing = first_failing(self._held(ledger), now, holds)
        undone = sorted(ledger.together(edit for edit in edits if edit >= failing))
        first = min([failing, *undone])  # of facts that share one update, the first
        if first - 1 not in shares:
            holds(first - 1)
        self._note(ledger, shares[first - 1], undone, first_failing=first, shares=shares)
        raise GuardStopError(
            f"guard {self.rule}: {share:.3f} of the unedited model's after edit {now}, under {restraint}; "
            + (f"edit {first} is" if first == failing else f"edits {first} to {failing}, which share one update, are")
            + f" the first to fail it, so {len(undone)} edits from there on are undone in {ledger.path}; leave what "
            "fails out and --resume, or loosen the guard"
        )


def _parse(rule: str) -> tuple[str, float]:
    ability, _, text = rule.rpartition(":")
    limit = math.nan
    with suppress(ValueError):
        limit = float(text)
    sound = 1 < limit < math.inf if ability == PERPLEXITY else 0 < limit <= 1
    if not ability or not sound:
        raise TetherError(
            f"{rule!r} is no guard: write perplexity:1.05 (at most 1.05 times the unedited model's, above 1) or a task "
            "and the share of its score to keep, as in nli:0.9"
        )
    return ability, limit


def first_failing(good: int, bad: int, holds: Callable[[int], bool]) -> int:
    """The first number in (good, bad] whose prefix fails, by bisection: `good` holds, `bad` does not."""
    numbers = range(good + 1, bad)
    return good + 1 + bisect_left(numbers, True, key=lambda number: not holds(number))
