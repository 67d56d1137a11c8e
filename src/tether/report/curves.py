"""Curves: values against the number of edits, by restraint, and how they are drawn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tether.report.drawing import Panel, Style, plot, restraint_name, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNEDITED = ""  # the name of an unedited row: it begins every curve

Estimate = tuple[float, float | None]  # value, standard error
Sample = tuple[str, int, int, Estimate]  # restraint, edits, seed, value

_LABELS = {"ppl": "perplexity", "percent": "percent"}


@dataclass(frozen=True)
class Point:
    """A value after some edits, its standard error, and over how many seeds it is the mean."""

    edits: int
    value: float
    stderr: float | None
    seeds: int = 1


Curves = dict[str, list[Point]]  # by restraint, in order of edits


def gather(samples: Iterable[Sample]) -> Curves:
    """Curves of samples; of several with the same restraint, edits and seed the first counts."""
    by_point: dict[tuple[str, int], dict[int, Estimate]] = {}
    for name, edits, seed, value in samples:
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


def at(curve: Sequence[Point], edits: int) -> Point | None:
    """The point after so many edits."""
    return next((point for point in curve if point.edits == edits), None)


def last_shared(*curves: Sequence[Point]) -> int | None:
    """The most edits that all curves have a point for; None where that is none or 0."""
    shared = set.intersection(*({point.edits for point in curve} for curve in curves)) if curves else set()
    return max(shared, default=0) or None


def curve_panels(curves: Mapping[str, Curves], styles: Mapping[str, Style], units: Mapping[str, str]) -> list[Panel]:
    """A panel for each title that has curves. `units`: percent or ppl, by title; any other has no unit."""
    drawn = {title: partial(draw_curves, some, styles, units.get(title, "")) for title, some in curves.items() if some}
    return [Panel(title, draw) for title, draw in drawn.items()]


def curve_legend(curves: Iterable[Curves], styles: Mapping[str, Style]) -> list[tuple[str, Style]]:
    """The names and styles of the curves drawn."""
    names = {name for some in curves for name in some}
    return [(restraint_name(name), style) for name, style in styles.items() if name in names]


def draw_curves(curves: Curves, styles: Mapping[str, Style], unit: str, axes: Axes) -> None:
    """Draw curves with their error bars: percent from 0, anything else on a logarithmic axis where it spans much."""
    points = [point for curve in curves.values() for point in curve]
    for name, curve in curves.items():
        errors = [p.stderr or 0.0 for p in curve]
        plot(axes, [p.edits for p in curve], [p.value for p in curve], styles[name], errors)
    if unit == "percent":
        top = max(p.value + (p.stderr or 0.0) for p in points)
        axes.set_ylim(min(0.0, *(p.value for p in points)), 1.06 * top if top > 0 else 1.0)
    else:
        scale(axes, [p.value for p in points])
    axes.set(xlabel="edits", ylabel=_LABELS.get(unit, ""))
