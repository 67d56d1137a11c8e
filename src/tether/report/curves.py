"""Curves: values against the number of edits, by restraint."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tether.evaluation.results import Row

UNEDITED = ""  # the name of an unedited row: it begins every curve

Estimate = tuple[float, float | None]  # value, standard error
Sample = tuple[str, int, int, Estimate | None]  # restraint, edits, seed, value


@dataclass(frozen=True)
class Point:
    """A value after some edits, its standard error, and over how many seeds it is the mean."""

    edits: int
    value: float
    stderr: float | None
    seeds: int = 1


Curves = dict[str, list[Point]]  # by restraint, in order of edits


def gather(samples: Iterable[Sample]) -> Curves:
    """Curves of the samples with a value; of several with the same restraint, edits and seed the first counts."""
    by_point: dict[tuple[str, int], dict[int, Estimate]] = {}
    for name, edits, seed, value in samples:
        if value is not None:
            by_point.setdefault((name, edits), {}).setdefault(seed, value)
    points = {key: Point(key[1], *over_seeds(list(found.values())), len(found)) for key, found in by_point.items()}
    curves: Curves = {}
    for (name, _), point in sorted(points.items(), key=lambda item: item[1].edits):
        curves.setdefault(name, []).append(point)
    start = curves.pop(UNEDITED, [])
    names = dict.fromkeys(name for name, _ in points if name != UNEDITED) or ({"none": None} if start else {})
    return {name: start + curves.get(name, []) for name in sorted(names, key=lambda name: name != "none")}


def over_seeds(values: Sequence[Estimate]) -> Estimate:
    """The mean over seeds and its standard error; of one seed, that seed's own."""
    if len(values) == 1:
        return values[0]
    means = [value for value, _ in values]
    return statistics.fmean(means), statistics.stdev(means) / math.sqrt(len(means))


def restraint_name(restraint: str) -> str:
    """How a row's restraint is called on the page."""
    return "no restraint" if restraint == "none" else restraint


def estimate(row: Row, measure: str) -> Estimate | None:
    """A row's value and standard error of an ability, or of a metric and kind (`compare locality`)."""
    metric, _, kind = measure.partition(" ")
    found = row.abilities.get(measure) or row.editing.get(metric, {}).get(kind)
    return None if found is None or found.value is None else (found.value, found.stderr)


def at(curve: Sequence[Point], edits: int | None) -> Point | None:
    """The point after so many edits."""
    return next((point for point in curve if point.edits == edits), None)


def last_shared(*curves: Sequence[Point]) -> int | None:
    """The most edits that all curves have a point for; None where that is none or 0."""
    shared = set.intersection(*({point.edits for point in curve} for curve in curves)) if curves else set()
    return max(shared, default=0) or None
