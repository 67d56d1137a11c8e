"""Charts of an editor of a grid; None where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tether.analyses.points import Values, When
from tether.report.curves import Point, in_words, restraint_name, short, under
from tether.report.drawing import (
    GREY,
    INK,
    RED,
    Chart,
    Panel,
    Style,
    curve_chart,
    curve_styles,
    numbered_style,
    plot,
    scale,
)
from tether.report.grid.series import Editor, rank_correlation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Places = Sequence[tuple[float, float]]
_SILENT = Style(INK, "x", "")
_WEIGHTS = 9  # curves of weights in one panel, as many as MEND edits; of more the worst ones are drawn


def singular_values(editor: Editor) -> Chart | None:
    """Figure 2: κ, σ_max and σ_min of the edited weights without a restraint."""
    fields = {"kappa": "κ", "sigma_max": "σ_max", "sigma_min": "σ_min"}
    found = {title: {w: curves["none"] for w, curves in editor.spectra(field).items() if "none" in curves}
             for field, title in fields.items()}  # fmt: skip
    weights = sorted(found["κ"], key=lambda weight: -found["κ"][weight][-1].value)[:_WEIGHTS]
    names = {weight: weight for weight in weights}
    if len(weights) > 1:
        names[weights[0]] += " (the worst)"
    panels = {title: {names[w]: curves[w] for w in weights if w in curves} for title, curves in found.items()}
    styles = {name: Style(RED) if i == 0 else numbered_style(i - 1) for i, name in enumerate(names.values())}
    label = "κ, σ_max and σ_min against the number of edits"
    return curve_chart(f"spectrum-{editor.id}", label, panels, styles, {}, "of {}".format)


def tasks(editor: Editor) -> Chart | None:
    """Figures 3, 7-9: general abilities against edits, without a restraint and with PRUNE."""
    return _measured(editor, "tasks", "General abilities", editor.tasks, _plain_and_prune(editor))


def editing(editor: Editor) -> Chart | None:
    """Figures 4, 10-12: editing scores against edits, without a restraint and with PRUNE."""
    return _measured(editor, "editing", "Editing scores", editor.kinds, _plain_and_prune(editor))


def log_and_linear(editor: Editor) -> Chart | None:
    """Figures 13, 14: abilities and editing scores under all restraints applied once; None without a linear one."""
    if editor.linear is None:
        return None
    once = [name for name in editor.restraints if " every " not in name]
    return _measured(editor, "linear", "Restraints applied once,", [*editor.tasks, *editor.kinds], once)


def multiple(editor: Editor) -> Chart | None:
    """Table 6 as curves: a restraint applied once and every so many edits."""
    every = [name for name in editor.restraints if " every " in name]
    if not every:
        return None
    chosen = ["none", *(once for name in every if (once := name.split(" every ")[0]) != "none"), *every]
    what = "Restraints applied once and every so many edits,"
    return _measured(editor, "multiple", what, [*editor.tasks, *editor.kinds], chosen)


def restrained_kappa(editor: Editor) -> Chart | None:
    """Figure 15: κ of the worst weight under every restraint."""
    weight, curves = editor.worst("kappa")
    if not any(name != "none" for name in curves):
        return None
    label, styles = "κ with and without restraints", curve_styles(editor.restraints)
    return curve_chart(f"kappa-{editor.id}", label, {f"κ of {weight}": curves}, styles, {})


def kappa_abilities(editor: Editor) -> Chart | None:
    """Figure 16: κ against the share of the abilities that is left."""
    pairs = editor.beside_abilities(editor.worst("kappa")[1])
    return _scatter(editor, "kappa-abilities", "κ of the worst weight", "κ", pairs)


def locality_abilities(editor: Editor) -> Chart | None:
    """Section 5.5: locality against the share of the abilities that is left."""
    pairs = editor.beside_abilities(editor.measured(f"{editor.metric} locality"))
    return _scatter(editor, "locality-abilities", "Locality", "locality, percent", pairs)


def values(editor: Editor) -> Chart | None:
    """Figure 5: the values of the first facts when edited, after all edits, and after all edits restrained."""
    styles = curve_styles(editor.restraints)
    edited, end = Style(GREY, "o", ""), Style(styles["none"].colour, "^", "")
    panels, legend = [], {"when edited": edited, "after all edits": end}
    for stored in editor.runs:
        found = stored.analyses.values
        if found is None or not found.points:
            continue
        restrained = dict.fromkeys(p.restraint for p in found.points if p.when == "restrained")
        for restraint in restrained or ["none"]:
            groups = [(edited, _places(found, "edited")), (end, _places(found, "end"))]
            if restrained:
                style = styles.get(restraint, numbered_style(0))
                held = legend[f"after all edits, {restraint}"] = Style(style.colour, style.mark, "")
                groups.append((held, _places(found, "restrained", restraint)))
            title = f"seed {stored.run.seed}, {restraint_name(restraint)}"
            moved = [f"{found.shift[name]:.2f} × their norm {under(name)}"
                     for name in dict.fromkeys(("none", restraint)) if name in found.shift]  # fmt: skip
            headline = (
                f"Values of {len(groups[0][1])} facts, seed {stored.run.seed}: after all edits they have moved by "
            )
            headline = headline + ", ".join(moved) if moved else title
            panels.append(Panel(title, partial(_plane, groups, found.explained), headline))
    if not panels:
        return None
    label = "Values of the first facts in the plane of their two principal components"
    return Chart(f"values-{editor.id}", label, panels, list(legend.items()))


def _places(found: Values, when: When, restraint: str | None = None) -> list[tuple[float, float]]:
    return [(p.x, p.y) for p in found.points if p.when == when and restraint in (None, p.restraint)]


def repeated_update(editor: Editor) -> Chart | None:
    """Section 4: N copies of one update."""
    names = dict.fromkeys(p.restraint for stored in editor.runs for p in stored.analyses.copies)
    if not names:
        return None
    styles = curve_styles(names) | {"N·δ_max": Style(INK, "", ":")}
    fields = {"update_sigma_max": "σ̂_max", "kappa": "κ", "efficacy": "efficacy", "perplexity": "perplexity"}
    panels = []
    for field, title in fields.items():
        points = {name: [(p.copies, getattr(p, field)) for p in editor.copies(name)] for name in names}
        lines = [(styles[name], [(x, y) for x, y in found if y is not None]) for name, found in points.items()]
        if field == "update_sigma_max":
            line = [(p.copies, p.copies * p.delta_max) for p in editor.copies(next(iter(names)))]
            lines.append((styles["N·δ_max"], line))
        if any(points for _, points in lines):
            told = {
                name: [Point(round(a), b, None) for a, b in its]
                for name, (_, its) in zip(names, lines, strict=False)
                if its
            }
            headline = in_words(title, told, x="copies")
            panels.append(Panel(title, partial(_lines, lines, "copies", "", field == "perplexity"), headline))
    legend = [(restraint_name(name), style) for name, style in styles.items() if name in (*names, "N·δ_max")]
    return Chart(f"copies-{editor.id}", "N copies of one update", panels, legend)


def perturbation_bound(editor: Editor) -> Chart | None:
    """Section 3: the bound and the largest actual relative error; where γ ≤ 0 theorem 3.2 says nothing."""
    weight = editor.worst_bound()
    styles = curve_styles(editor.restraints)
    panels: list[Panel] = []
    drawn: dict[str, Style] = {}
    for of, title in (("sum", "A = W₀, E = ΣΔW"), ("edit", "A = W_(j-1), E = ΔW_j")):
        bound, error, gamma = (editor.bounds(of, field).get(weight, {}) for field in ("bound", "error_max", "gamma"))
        lines: list[tuple[Style, _Places]] = []
        for name in filter(bound.__contains__, _plain_and_prune(editor)):
            silent = {p.edits for p in gamma.get(name, []) if p.value <= 0}
            points, errors = ([(p.edits, p.value) for p in curves.get(name, [])] for curves in (bound, error))
            colour, mark = styles[name].colour, styles[name].mark
            for label, style, line in (
                (f"bound, {restraint_name(name)}", Style(colour, mark), points),
                (f"largest error, {restraint_name(name)}", Style(colour, "", ":"), errors),
                ("γ ≤ 0", _SILENT, [point for point in points if point[0] in silent]),
            ):
                lines.append((style, line))
                if line:
                    drawn[label] = style
        if lines:
            told = {name: bound[name] for name in _plain_and_prune(editor) if bound.get(name)}
            largest = max((p.value for name in told for p in error.get(name, [])), default=None)
            headline = f"{title}: {in_words('the bound', told)}; no error exceeds {short(largest)}"
            panels.append(Panel(title, partial(_lines, lines, "edits", "relative error", True), headline))
    if not panels:
        return None
    label = f"Bound on the relative perturbation of the keys, and the largest actual one, {weight}"
    legend = sorted(drawn.items(), key=lambda named: named[1] == _SILENT)
    return Chart(f"bound-{editor.id}", label, panels, legend)


def _plain_and_prune(editor: Editor) -> list[str]:
    """No restraint and PRUNE; where no log restraint was measured, whatever was."""
    return editor.restraints if editor.prune is None else ["none", editor.prune]


def _measured(editor: Editor, kind: str, what: str, measures: Iterable[str], chosen: Sequence[str]) -> Chart | None:
    found = {measure: editor.measured(measure) for measure in measures}
    panels = {m: {name: curves[name] for name in chosen if name in curves} for m, curves in found.items()}
    label, styles = f"{what} against the number of edits", curve_styles(editor.restraints)
    units = dict.fromkeys(found, "percent") | editor.tasks
    return curve_chart(f"{kind}-{editor.id}", label, panels, styles, units)


def _lines(lines: Sequence[tuple[Style, _Places]], x: str, y: str, logarithmic: bool, axes: Axes) -> None:
    for style, points in lines:
        plot(axes, [a for a, _ in points], [b for _, b in points], style)
    if logarithmic:
        scale(axes, [b for _, points in lines for _, b in points if b > 0])
    axes.set(xlabel=x, ylabel=y)


def _plane(groups: Sequence[tuple[Style, _Places]], explained: tuple[float, float], axes: Axes) -> None:
    for style, points in groups:
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.scatter(x, y, s=14, color=style.colour, marker=style.mark, alpha=0.7, linewidths=0)
    axes.set(xlabel=f"component 1 ({explained[0]:.0%})", ylabel=f"component 2 ({explained[1]:.0%})")


def _scatter(editor: Editor, kind: str, what: str, x: str, pairs: _Places) -> Chart | None:
    if not pairs:
        return None
    found = rank_correlation([a for a, _ in pairs], [b for _, b in pairs])
    title = f"Spearman's {found}" if found is not None else f"n = {len(pairs)}"
    headline = f"{what} and the abilities left: too little varies over {len(pairs)} checkpoints"
    if found is not None:
        more = "less" if found.rho < 0 else "more"
        headline = f"Where {x.split(',')[0]} is higher, {more} is left of the abilities: {title}"

    def draw(axes: Axes) -> None:
        axes.scatter([a for a, _ in pairs], [b for _, b in pairs], s=26, color=RED)
        if x == "κ":
            scale(axes, [a for a, _ in pairs], "x")
        axes.set(xlabel=x, ylabel="abilities kept, percent")
        axes.set_ylim(bottom=0)

    return Chart(f"{kind}-{editor.id}", f"{what} against general abilities kept", [Panel(title, draw, headline)])
