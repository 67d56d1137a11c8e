"""Charts of one results file and its ledger; None where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from tether.constraints.prune import Restraint
from tether.evaluation.metrics.base import KINDS
from tether.evaluation.results import Row
from tether.ledger.journal import Event
from tether.report.curves import UNEDITED, Point, estimate, gather, restraint_name
from tether.report.drawing import GREEN, GREY, ORANGE, RED, Chart, Panel, Style, curve_chart, curve_styles, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEALTH = {"ok": Style(GREEN, "o", ""), "warn": Style(ORANGE, "^", ""), "alarm": Style(RED, "X", "")}
_MISSED = Style("black", "x", "")
_JOURNAL = "while editing (journal)"
_UNEDITED = Style(GREY, "s", "")


def kappa_chart(rows: Sequence[Row], events: Sequence[Event]) -> Chart | None:
    """κ of the worst edited weight against the number of edits: measured rows by restraint, and the journal's reading
    before every edit went in."""
    kappas = [(row, [s.kappa for s in row.spectrum.values() if s.kappa]) for row in rows]
    curves = gather((_name(row), row.edits, 0, (max(found), None)) for row, found in kappas if found)
    journal = [(e.edit or 0, e.record["kappa"]) for e in events if e.kind == "edit" and e.record.get("kappa")]
    if journal:
        curves = {_JOURNAL: [Point(edit, kappa, None) for edit, kappa in journal], **curves}
    styles = curve_styles(row.restraint for row in rows) | {_JOURNAL: Style(GREY, "", "-")}
    return curve_chart("kappa", "κ against the number of edits", {"": curves}, styles, {"": "κ = σ_max / σ_min"})


def ratio_chart(events: Sequence[Event]) -> Chart | None:
    """σ̂_max/m after every edit, with the health warnings, and the facts that were not edited."""
    edits = [e for e in events if e.kind == "edit" and math.isfinite(e.record.get("update_ratio") or math.nan)]
    if not edits:
        return None
    x, y = [e.edit or 0 for e in edits], [e.record["update_ratio"] for e in edits]
    by_level = {level: [i for i, e in enumerate(edits) if e.record.get("health") == level] for level in _HEALTH}
    missed = [e.edit or 0 for e in events if e.kind in ("failed", "skipped")]

    def draw(axes: Axes) -> None:
        axes.plot(x, y, color=GREY, linewidth=1, zorder=1)
        for (level, some), size in zip(by_level.items(), (14, 26, 44), strict=True):
            style = _HEALTH[level]
            xs, ys = [x[i] for i in some], [y[i] for i in some]
            axes.scatter(xs, ys, s=size, color=style.colour, marker=style.mark, zorder=2)
        axes.scatter(missed, [0.0] * len(missed), s=24, color=_MISSED.colour, marker=_MISSED.mark)
        axes.axhline(1, color="black", linestyle="--", linewidth=1)
        axes.annotate("m", (1, 1), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                      verticalalignment="center")  # fmt: skip
        axes.set(xlabel="edit", ylabel="σ̂_max / m")
        axes.set_ylim(bottom=min(0.0, *y))

    legend = [(f"health {level} ({len(some)})", _HEALTH[level]) for level, some in by_level.items() if some]
    if missed:
        legend.append(("failed or skipped", _MISSED))
    return Chart("ratio", "σ̂_max/m after every edit", [Panel("", draw)], legend)


def singular_values_chart(
    spectra: Mapping[str, tuple[Sequence[float], float]], restraints: Sequence[Restraint]
) -> Chart | None:
    """Singular values of the sum of updates, with m, before and after each restraint; one panel a weight, at most six.

    `spectra`: weight -> (σ̂ descending, m).
    """
    shown = {name: (s, m) for name, (s, m) in list(spectra.items())[:6] if len(s)}
    if not shown:
        return None
    styles = curve_styles(map(str, restraints))

    def draw(values: Sequence[float], m: float, axes: Axes) -> None:
        # A sum of many edits has a long tail of nothing: it is left out.
        s = torch.tensor([v for v in values if v > 1e-3 * values[0]] or values[:1], dtype=torch.float64)
        x = range(1, len(s) + 1)
        plot(axes, x, s.tolist(), styles["none"])
        for restraint in restraints:
            plot(axes, x, restraint(s, m).tolist(), styles[str(restraint)])
        axes.axhline(m, color="black", linestyle="--", linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="i", ylabel="σ̂_i of the update")

    panels = [Panel(f"{name}, m = {m:.3g}", partial(draw, s, m)) for name, (s, m) in shown.items()]
    legend = [(restraint_name(name), style) for name, style in styles.items()]
    return Chart("values", "singular values of the update", panels, [*legend, ("m", Style("black", "", "--"))])


def editing_chart(rows: Sequence[Row]) -> Chart | None:
    """Editing scores of the unedited model and of every restraint after the most edits, one panel a metric."""
    measured = [row for row in rows if row.editing]
    last = max((row.edits for row in measured), default=0)
    chosen = [row for row in measured if row.edits in (0, last)]
    metrics = dict.fromkeys(metric for row in chosen for metric, found in row.editing.items() if "efficacy" in found)
    if not metrics:
        return None
    styles = curve_styles(row.restraint for row in rows)
    bars = [(row, Style(styles[row.restraint].colour, "s", "") if row.edits else _UNEDITED) for row in chosen]

    def draw(metric: str, axes: Axes) -> None:
        kinds = [kind for kind in KINDS if any(kind in row.editing.get(metric, {}) for row in chosen)]
        width = 0.8 / len(bars)
        for i, (row, style) in enumerate(bars):
            for j, kind in enumerate(kinds):
                found = estimate(row, f"{metric} {kind}")
                if found is not None:
                    x, error, line = j + (i - (len(bars) - 1) / 2) * width, found[1] or None, {"elinewidth": 1}
                    axes.bar(x, found[0], 0.92 * width, color=style.colour, yerr=error, error_kw=line)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_xlim(-0.5, len(kinds) - 0.5)
        axes.set_ylim(0, 105)
        axes.set_ylabel("percent")
        axes.grid(False, axis="x")

    names = [f"{row.edits} edits, {restraint_name(row.restraint)}" if row.edits else "unedited" for row in chosen]
    legend = [(name, style) for name, (_, style) in zip(names, bars, strict=True)]
    return Chart("editing", "editing scores", [Panel(metric, partial(draw, metric)) for metric in metrics], legend)


def abilities_chart(rows: Sequence[Row]) -> Chart | None:
    """General abilities against the number of edits, one panel a task; perplexity on a log scale where it explodes."""
    units = {task: found.unit for row in rows for task, found in row.abilities.items()}
    styles = curve_styles(row.restraint for row in rows)
    curves = {task: gather((_name(row), row.edits, 0, estimate(row, task)) for row in rows) for task in units}
    return curve_chart("abilities", "general abilities", curves, styles, units)


def _name(row: Row) -> str:
    return row.restraint if row.edits else UNEDITED
