"""Curves: values against the number of edits, by restraint."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tether.evaluation.results import Row

_STILL = 0.05  # of a value: a smaller move is none in words
_PERCENT = "\N{NO-BREAK SPACE}%"
_NAMED = 2  # curves beside the first that a headline names
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


def short(value: float | None, unit: str = "") -> str:
    """A number for a sentence: three digits, with % where the unit is percent; a dash for none and for NaN."""
    if value is None or math.isnan(value):
        return "–"
    if unit == "percent":
        return f"{value:.0f}{_PERCENT}"
    return (
        f"{value:.3g}"
        if abs(value) < 1000 or math.isinf(value)
        else f"{value:,.0f}"
        if abs(value) < 1e6
        else f"{value:.1e}"
    )


def under(restraint: str) -> str:
    """A restraint's name in a sentence."""
    return "without a restraint" if restraint == "none" else f"under {restraint}"


def in_words(what: str, curves: Curves, unit: str = "", of: Callable[[str], str] = under, x: str = "edits") -> str:
    """Where the first curve, of no restraint where there is one, starts and ends, and where the others end: a figure's
    headline. `of`: how a curve is called; `x`: what is counted."""
    (name, first), *others = sorted(curves.items(), key=lambda curve: curve[0] != "none")
    start, end = first[0], first[-1]
    which = "" if (name == "none" and others == []) or not of(name) else f" {of(name)}"
    last = short(end.value, unit)
    if len(first) == 1:
        said = f"{what}{which} is {last} after {end.edits} {x}"
    elif short(start.value, unit) == last:
        said = f"{what}{which} is {last} before and after {end.edits} {x}"
    else:
        moved = end.value - start.value
        verb = "hardly moves" if abs(moved) <= _STILL * abs(start.value) else "rises" if moved > 0 else "falls"
        said = f"{what}{which} {verb} from {short(start.value, unit)} to {last} over {end.edits} {x}"
    if len(others) > _NAMED:
        ends = sorted(curve[-1].value for _, curve in others)
        said += f"; {len(others)} others end at {span(ends, unit)}"
    else:
        said += "".join(f", {short(curve[-1].value, unit)} {of(other)}" for other, curve in others)
    return said


def span(values: Sequence[float], unit: str = "") -> str:
    """The smallest to the largest."""
    low, high = short(min(values), unit), short(max(values), unit)
    return low if low == high else f"{low.removesuffix(_PERCENT)} to {high}"


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
