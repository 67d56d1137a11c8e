"""Runs that differ in their seed alone: the mean and its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tether.experiment.stored import Run, StoredRun


@dataclass(frozen=True)
class OverSeeds:
    """A number over the seeds of one run. `run` is the first of them; `stderr` = sd(ddof = 1)/√n over the `seeds`, None
    for a single one."""

    run: Run
    seeds: tuple[int, ...]
    mean: float
    stderr: float | None


def over_seeds(runs: Iterable[StoredRun], number: Callable[[StoredRun], float | None]) -> list[OverSeeds]:
    """`number` of every run, over the runs that differ in their seed (and id) alone, in order of the first of each.
    Runs whose number is None are left out.

        over_seeds(grid.runs, lambda stored: stored.counts["failed"])
    """
    groups: dict[Run, list[tuple[Run, float]]] = {}
    for stored in runs:
        value = number(stored)
        if value is not None:
            key = stored.run.model_copy(update={"id": "", "seed": 0})
            groups.setdefault(key, []).append((stored.run, value))
    return [_over(found) for found in groups.values()]


def _over(found: list[tuple[Run, float]]) -> OverSeeds:
    values = [value for _, value in found]
    n = len(values)
    mean = math.fsum(values) / n
    stderr = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n) if n > 1 else None
    return OverSeeds(found[0][0], tuple(run.seed for run, _ in found), mean, stderr)
