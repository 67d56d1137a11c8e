"""Figures of a report, each an SVG element for an HTML page; None where nothing was measured. No use of pyplot."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from tether.errors import TetherError
from tether.evaluate.results import Row
from tether.ledger.journal import Event
from tether.restraint import Restraint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart.
RED, BLUE, GREEN, ORANGE = "#d55e00", "#0072b2", "#009e73", "#e69f00"
PURPLE, SKY, GREY = "#cc79a7", "#56b4e9", "#888888"
_OTHERS = (BLUE, GREEN, PURPLE, SKY, ORANGE)
_MARKS = "osD^vP"
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and selectable
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with $ is a name
}


def restraint_name(restraint: str) -> str:
    """How a row's restraint is called on the page."""
    return "no restraint" if restraint == "none" else restraint


def restraint_styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every restraint, `none` red and the others in order of appearance."""
    others = [r for r in dict.fromkeys(row.restraint for row in rows) if r != "none"]
    return {"none": (RED, "o")} | {
        name: (_OTHERS[i % len(_OTHERS)], _MARKS[(i + 1) % len(_MARKS)]) for i, name in enumerate(others)
    }


def kappa_figure(rows: Sequence[Row], events: Sequence[Event]) -> str | None:
    """κ of the worst edited weight against the number of edits: measured rows by restraint, and the journal's reading
    before every edit went in."""
    curves = _curves(rows, lambda row: max((s.kappa for s in row.spectrum.values() if s.kappa), default=None))
    journal = [(e.edit or 0, e.record["kappa"]) for e in events if e.kind == "edit" and e.record.get("kappa")]
    if not curves and not journal:
        return None
    with _drawing("kappa", (9, 3.4)) as (figure, finish):
        axes = figure.subplots()
        if journal:
            axes.plot(*zip(*journal, strict=True), color=GREY, linewidth=1, label="while editing (journal)")
        _plot_curves(axes, curves, rows)
        _scale(axes, [v for points in curves.values() for _, v, _ in points] + [v for _, v in journal])
        axes.set(xlabel="edits", ylabel="κ = σ_max / σ_min")
        axes.legend()
    return finish()


def ratio_figure(events: Sequence[Event]) -> str | None:
    """σ̂_max/m after every edit, with the health warnings, and the facts that were not edited."""
    edits = [e for e in events if e.kind == "edit" and "update_ratio" in e.record]
    if not edits:
        return None
    with _drawing("ratio", (9, 3.4)) as (figure, finish):
        axes = figure.subplots()
        x, y = [e.edit or 0 for e in edits], [e.record["update_ratio"] for e in edits]
        axes.plot(x, y, color=GREY, linewidth=1, zorder=1)
        for level, colour, mark, size in (("ok", GREEN, "o", 14), ("warn", ORANGE, "^", 26), ("alarm", RED, "X", 44)):
            some = [i for i, e in enumerate(edits) if e.record.get("health") == level]
            if some:
                axes.scatter([x[i] for i in some], [y[i] for i in some], s=size, color=colour, marker=mark, zorder=2,
                             label=f"health {level} ({len(some)})")  # fmt: skip
        missed = [e.edit or 0 for e in events if e.kind in ("failed", "skipped")]
        if missed:
            axes.scatter(missed, [0.0] * len(missed), s=24, color="black", marker="x", label="failed or skipped")
        axes.axhline(1, color="black", linestyle="--", linewidth=1)
        axes.annotate("m", (1, 1), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                      verticalalignment="center")  # fmt: skip
        axes.set(xlabel="edit", ylabel="σ̂_max / m")
        axes.set_ylim(bottom=min(0.0, *y))
        axes.legend()
    return finish()


def singular_values_figure(
    spectra: Mapping[str, tuple[Sequence[float], float]], restraints: Sequence[Restraint]
) -> str | None:
    """Singular values of the sum of updates, with m, before and after each restraint; one panel a weight, at most six.

    `spectra`: weight -> (σ̂ descending, m).
    """
    shown = {name: (s, m) for name, (s, m) in list(spectra.items())[:6] if len(s)}
    if not shown:
        return None
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    with _drawing("values", (9, 3.4 * lines if columns == 1 else 2.8 * lines)) as (figure, finish):
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, (name, (values, m)) in zip(panels, shown.items(), strict=False):
            # A sum of many edits has a long tail of nothing: it is left away.
            s = torch.tensor([v for v in values if v > 1e-3 * values[0]] or values[:1], dtype=torch.float64)
            x = range(1, len(s) + 1)
            axes.plot(x, s.tolist(), color=RED, marker="o", markersize=3, linewidth=1, label="no restraint")
            for i, restraint in enumerate(restraints):
                axes.plot(x, restraint(s, m).tolist(), color=_OTHERS[i % len(_OTHERS)], markersize=3,
                          marker=_MARKS[(i + 1) % len(_MARKS)], linewidth=1, label=str(restraint))  # fmt: skip
            axes.axhline(m, color="black", linestyle="--", linewidth=1, label=f"m = {m:.3g}")
            axes.set_ylim(bottom=0)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("i")
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        panels[0].set_ylabel("σ̂_i of the update")
        panels[0].legend()
    return finish()


def editing_figure(rows: Sequence[Row]) -> str | None:
    """Editing scores of the unedited model and of every restraint after the most edits, one panel a metric."""
    measured = [row for row in rows if row.editing]
    last = max((row.edits for row in measured), default=0)
    chosen = [row for row in measured if row.edits in (0, last)]
    metrics = list(
        dict.fromkeys(metric for row in chosen for metric, found in row.editing.items() if "efficacy" in found)
    )
    if not metrics:
        return None
    styles = restraint_styles(rows)
    with _drawing("editing", (9, 2.7 * -(-len(metrics) // 2))) as (figure, finish):
        panels = figure.subplots(-(-len(metrics) // 2), min(2, len(metrics)), squeeze=False, sharey=True).ravel()
        for axes, metric in zip(panels, metrics, strict=False):
            kinds = [
                k for k in ("efficacy", "generalization", "locality") if any(k in r.editing[metric] for r in chosen)
            ]
            width = 0.8 / len(chosen)
            for i, row in enumerate(chosen):
                colour = styles[row.restraint][0] if row.edits else GREY
                label = f"{row.edits} edits, {restraint_name(row.restraint)}" if row.edits else "unedited"
                for j, kind in enumerate(kinds):
                    number = row.editing[metric].get(kind)
                    if number is not None and number.value is not None:
                        axes.bar(j + (i - (len(chosen) - 1) / 2) * width, number.value, 0.92 * width, color=colour,
                                 yerr=number.stderr or None, error_kw={"elinewidth": 1},
                                 label=label if j == 0 else "_")  # fmt: skip
            axes.set_xticks(range(len(kinds)), kinds)
            axes.set_xlim(-0.5, len(kinds) - 0.5)
            axes.set_ylim(0, 105)
            axes.set_title(metric, fontsize=10)
            axes.grid(False, axis="x")
        for axes in panels[len(metrics) :]:
            axes.set_axis_off()
        panels[0].set_ylabel("percent")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
    return finish()


def abilities_figure(rows: Sequence[Row]) -> str | None:
    """General abilities against the number of edits, one panel a task; perplexity on a log scale where it explodes."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.abilities))
    if not tasks:
        return None
    columns = min(2, len(tasks))
    lines = -(-len(tasks) // columns)
    with _drawing("abilities", (9, 3.0 * lines)) as (figure, finish):
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            found = [row.abilities[task] for row in rows if task in row.abilities]
            curves = _curves(rows, partial(_ability, task, "value"), partial(_ability, task, "stderr"))
            _plot_curves(axes, curves, rows)
            if found[0].unit == "ppl":
                _scale(axes, [number.value for number in found if number.value])
            else:
                axes.set_ylim(bottom=0)
            axes.set(xlabel="edits", ylabel={"ppl": "perplexity", "percent": "percent"}[found[0].unit], title=task)
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        panels[0].legend()
    return finish()


def _ability(task: str, field: str, row: Row) -> float | None:
    return getattr(row.abilities[task], field) if task in row.abilities else None


_Points = list[tuple[int, float, float]]


def _curves(
    rows: Sequence[Row], value: Callable[[Row], float | None], stderr: Callable[[Row], float | None] = lambda row: None
) -> dict[str, _Points]:
    """restraint -> (edits, value, standard error or 0) by number of edits; the row of 0 edits starts every curve."""
    curves: dict[str, _Points] = {}
    start = [row for row in rows if row.edits == 0]
    for restraint in dict.fromkeys(row.restraint for row in rows if row.edits) or {"none": None}:
        mine = start + [row for row in rows if row.edits and row.restraint == restraint]
        points = [(row.edits, v, stderr(row) or 0.0) for row in mine if (v := value(row)) is not None]
        if points:
            curves[restraint] = sorted(points)
    return curves


def _plot_curves(axes: Axes, curves: Mapping[str, _Points], rows: Sequence[Row]) -> None:
    styles = restraint_styles(rows)
    for restraint, points in curves.items():
        edits, values, errors = zip(*points, strict=True)
        colour, mark = styles.get(restraint, (GREY, "o"))
        axes.errorbar(edits, values, errors if any(errors) else None, color=colour, marker=mark, markersize=5,
                      linewidth=1.5, capsize=2, label=restraint_name(restraint))  # fmt: skip


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis, with plain numbers on it, where the values span more than a factor of ten."""
    if values and max(values) > 10 * min(values) > 0:
        axes.set_yscale("log", subs=(2, 5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")


@contextmanager
def _drawing(name: str, size: tuple[float, float]) -> Iterator[tuple[Figure, Callable[[], str]]]:
    """A figure (inches) and the function that, after the block, gives its SVG element; its ids begin with `name`.

    Raises TetherError without matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise TetherError("figures need matplotlib, which is not installed: pip install 'tether[report]'") from None
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, lambda: _element(buffer.getvalue(), name)
        for axes in figure.axes:
            if axes.get_xlabel():  # a number of edits, or of a singular value
                axes.locator_params(axis="x", integer=True)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def _element(document: str, name: str) -> str:
    """The svg element of an SVG document, its ids made unique on a page."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)  # a page's styles would follow it
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", element)
