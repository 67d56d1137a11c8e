"""The report of a grid: the paper's figures and tables with its data, and which findings they show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tether.experiment.results import StoredGrid
from tether.report.curves import at, last_shared
from tether.report.drawing import Chart
from tether.report.grid import figures as charts_of
from tether.report.grid.findings import CLAIMS, Finding, findings
from tether.report.grid.series import Editor, editors
from tether.report.grid.summary import summary
from tether.report.page import (
    Cell,
    Section,
    check_own,
    details,
    figures,
    n,
    note,
    plain,
    table,
    write_page,
)

_CLASSES = {"seen": "yes", "not seen": "no", "cannot say": "open"}


@dataclass(frozen=True)
class _Part:
    """A section: the chart of an editor, a table under it, and a table of all editors."""

    id: str
    title: str
    chart: Callable[[Editor], Chart | None] | None = None
    own: Callable[[Editor], str] | None = None
    shared: Callable[[Sequence[Editor]], str] | None = None


def write_grid_report(grid: StoredGrid, to: str | Path) -> Path:
    """Write `index.html` to the folder, and `figures/NAME.svg` and `.png` for each of its figures; returns the page.

    What was not measured says so. Raises MissingExtraError without matplotlib, BadSettingsError where the
    folder has an index.html that tether did not write.
    """
    to = Path(to)
    check_own(to / "index.html")
    found, all_editors = findings(grid), editors(grid)
    charts: list[Chart] = []
    parts = {part: _part(part, all_editors, found, charts) for part in _PARTS}
    silent = [(part.title, told) for part, (measured, told) in parts.items() if not measured]
    sections = [
        Section("findings", "Findings", [_findings_table(found, all_editors)]),
        *(Section(part.id, part.title, told) for part, (measured, told) in parts.items() if measured),
        Section("not-shown", "What is not shown", _not_shown(found)),
        *([Section("not-measured", "What was not measured", [
            details(title, *(told or [note("Not measured.")])) for title, told in silent
        ])] if silent else []),
        Section("provenance", "Where the numbers come from", _provenance(grid)),
    ]  # fmt: skip
    for chart in charts:
        chart.save(to / "figures")
    first = summary(grid, all_editors, found)
    return write_page(to / "index.html", grid.title or grid.name, _about(grid, all_editors), first, sections)


def _about(grid: StoredGrid, found: Sequence[Editor]) -> str:
    models = ", ".join(dict.fromkeys(stored.run.model for stored in grid.runs))
    runs = f"{len(grid.runs)} run{'' if len(grid.runs) == 1 else 's'}"
    held = f"{runs} of {len(found)} editors on {models}" if grid.runs else "no run"
    return (
        f"Grid {grid.name}: {held}. Each finding of the paper is held against a stated rule for every editor. Points "
        "are means, bars one standard error: over seeds where there are several, else over items."
    )


def _part(
    part: _Part, all_editors: Sequence[Editor], found: Sequence[Finding], charts: list[Chart]
) -> tuple[bool, list[str]]:
    """Whether anything of a part was measured, and its HTML; its charts are added to `charts`."""
    claims = [claim for claim in CLAIMS if claim.section == part.id]
    shared = part.shared(all_editors) if part.shared is not None else ""
    drawn = {editor.id: part.chart(editor) for editor in all_editors} if part.chart is not None else {}
    charts += filter(None, drawn.values())
    blocks, measured = [], bool(shared)
    for editor in all_editors:
        chart, own = drawn.get(editor.id), "" if part.own is None else part.own(editor)
        mine = [f for f in found if f.editor == editor.name and f.section == part.id]
        block = f"<h3>{escape(editor.name)}</h3>" if part.chart is not None or own else ""
        block += "".join(_verdict(f, named=len(claims) > 1) for f in mine)
        blocks.append(f"<div>{block}{'' if chart is None else _drawn(chart)}{own}</div>")
        measured = measured or chart is not None or bool(own)
    narrow = part.own is None and all(chart is None or len(chart.panels) == 1 for chart in drawn.values())
    rules = [
        f'<p class="rule"><strong>{escape(c.name)}</strong> ({escape(c.place)}). Rule: {escape(c.rule)}</p>'
        for c in claims
    ]
    return measured, [
        shared,
        f'<div class="{"columns three" if narrow and drawn else "stack"}">{"".join(blocks)}</div>',
        details("How this is decided", *rules) if rules else "",
    ]


def _drawn(chart: Chart) -> str:
    """A chart with links to its files, and its points as a table."""
    lines: list[list[Cell]] = [
        [panel, name, n(p.edits), n(plain(p.value)), n(plain(p.stderr, ".2g")), n(p.seeds)]
        for panel, curves in chart.curves.items() for name, points in curves.items() for p in points
    ]  # fmt: skip
    head = ["measure", "curve", "edits", "value", "standard error", "seeds"]
    files = f"figures/{chart.name}"
    links = f'<p class="note">{escape(chart.label)}: <a href="{files}.svg">SVG</a>, <a href="{files}.png">PNG</a></p>'
    numbers = details("The numbers", table(head, lines, name=f"The numbers of {chart.label}")) if lines else ""
    return f"{figures(chart)}{links}{numbers}"


def _verdict(found: Finding, *, named: bool) -> str:
    """The sentence, after the finding's name where a section has several."""
    word, rest = found.verdict, found.sentence[len(found.verdict) :]
    name = f"{escape(found.name)}: " if named else ""
    return f'<p class="verdict">{name}<b class="{_CLASSES[word]}">{word.capitalize()}</b>{escape(rest)}</p>'


def _findings_table(found: Sequence[Finding], all_editors: Sequence[Editor]) -> str:
    verdicts = {(f.key, f.editor): f.verdict for f in found}
    lines: list[list[Cell]] = []
    for claim in CLAIMS if all_editors else ():
        words = [verdicts[claim.key, editor.name] for editor in all_editors]
        lines.append([(claim.name, "long"), *((word, _CLASSES[word]) for word in words), (claim.place, "long")])
    head = ["finding of the paper", *(editor.name for editor in all_editors), "place"]
    return table(head, lines, name="Findings")


def _not_shown(found: Sequence[Finding]) -> list[str]:
    """The claims that some editor does not show, then those of which nothing can be said of any editor."""
    against, silent = [], []
    for claim in CLAIMS:
        mine = [f for f in found if f.key == claim.key]
        missing = [f for f in mine if f.verdict == "not seen"]
        if missing:
            told = "".join(f"<li>{escape(f.sentence)}</li>" for f in missing)
            against.append(f"<li><strong>{escape(claim.name)}</strong> ({escape(claim.place)})<ul>{told}</ul></li>")
        elif all(f.verdict == "cannot say" for f in mine):
            silent.append(f"<li>{escape(claim.name)} ({escape(claim.place)})</li>")
    first = f"<ul>{''.join(against)}</ul>" if against else note("No finding was decided against.")
    if not silent:
        return [first]
    return [first, note("Of these nothing can be said of any editor here:"), f"<ul>{''.join(silent)}</ul>"]


def _provenance(grid: StoredGrid) -> list[str]:
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in s.versions.items()) for s in grid.runs if s.versions)
    lines: list[list[Cell]] = []
    for stored in grid.runs:
        run, counts = stored.run, stored.counts
        restrain = run.restrain if run.every is None else f"{run.restrain} every {run.every}"
        lines.append([
            run.id, run.model, run.method, run.dataset, n(run.seed), n(run.edits), n(run.batch_size), restrain,
            *(n(counts.get(kind, 0) if counts else "–") for kind in ("edit", "failed", "skipped")),
            (", ".join(f"{name} {digest}" for name, digest in stored.hashes.items()) or "–", "long"),
        ])  # fmt: skip
    head = ["run", "model", "method", "data set", "seed", "edits", "batch", "restraint", "edited", "failed", "skipped",
            "hashes"]  # fmt: skip
    return [
        f"<p>Made by <code>{escape(grid.command)}</code></p>" if grid.command else note("The command was not kept."),
        note("Versions: " + ("; ".join(versions) or "not kept") + "."),
        table(head, lines, name="Runs"),
    ]


def _sizes(all_editors: Sequence[Editor]) -> str:
    """Table 1, at the numbers of edits that have rows (the figures have more)."""
    found: dict[str, dict[int, str]] = {}
    for e in all_editors:
        weight, curves = e.worst("update_sigma_max")
        rows = {row.edits for _, _, row in e.rows()}
        for p in curves.get("none", []):
            if p.edits and p.edits in rows:
                size = f"{p.value:.2f} ({p.value / e.m[weight]:.2f} m)"
                found.setdefault(e.name, {})[p.edits] = size
    every = sorted({edits for sizes in found.values() for edits in sizes})
    lines = [[n(edits), *(n(sizes.get(edits, "–")) for sizes in found.values())] for edits in every]
    if not lines:
        return ""
    told = note("σ̂_max of the sum of N updates, and how many m that is.")
    return told + table(["N", *found], lines, name="Size of the summed updates")


def _once_against_multiple(editor: Editor) -> str:
    """Table 6."""
    both = editor.once_and_multiple
    if both is None:
        return ""
    names = ["none", *both, *(r for r in editor.restraints if r.startswith(f"{both[0]} every ") and r != both[1])]
    lines: list[list[Cell]] = []
    for measure in (*editor.tasks, *editor.kinds):
        curves = editor.measured(measure)
        last = last_shared(*(curves.get(name, []) for name in both))
        if last is not None:
            points = [at(curves.get(name, []), last) for name in names]
            cells = [n("–" if p is None else f"{p.value:.1f} ± {plain(p.stderr, '.1f')}") for p in points]
            lines.append([measure, n(last), *cells])
    return table(["measure", "edits", *names], lines, name=f"Once and several times, {editor.name}")


def _shifts(editor: Editor) -> str:
    """How far values have moved."""
    lines: list[list[Cell]] = [
        [n(stored.run.seed), found.weight, restraint, n(f"{shift:.4f}")]
        for stored in editor.runs if (found := stored.analyses.values) is not None
        for restraint, shift in found.shift.items()
    ]  # fmt: skip
    head = ["seed", "weight", "restraint", "mean distance / norm"]
    return table(head, lines, name=f"How far the values moved, {editor.name}") if lines else ""


def _bound_table(editor: Editor) -> str:
    points = [(stored.run.seed, p) for stored in editor.runs for p in stored.analyses.bound]
    lines: list[list[Cell]] = [
        [n(seed), n(p.edits), p.restraint, p.weight, {"sum": "all edits", "edit": "this edit"}[p.of],
         *(n(plain(value)) for value in (p.gamma, p.kappa, p.error_median, p.error_max, p.bound)),
         n("γ ≤ 0" if p.bound_from_kappa is None else plain(p.bound_from_kappa)), "yes" if p.holds else "no"]
        for seed, p in points
    ]  # fmt: skip
    head = ["seed", "edits", "restraint", "weight", "of", "γ", "κ", "median error", "largest error", "bound",
            "bound from κ", "holds"]  # fmt: skip
    silent = ["warn" if p.gamma <= 0 else "" for _, p in points]
    name = f"The bound, {editor.name}"
    return details("The bound, case by case", table(head, lines, silent, name=name)) if lines else ""


def _concepts(all_editors: Sequence[Editor]) -> str:
    """Table 2."""
    lines: list[list[Cell]] = []
    for editor in all_editors:
        changes = editor.instance_changes()
        scores = [editor.measured(kind) for kind in editor.kinds]
        for restraint, points in changes.items():
            for p in points:
                row = [at(curves.get(restraint, []), p.edits) for curves in scores]
                told = [f"{kind.split()[-1]} {q.value:.1f}" for kind, q in zip(editor.kinds, row, strict=True) if q]
                change = f"{p.value:.1f} ± {plain(p.stderr, '.1f')}"
                lines.append([editor.name, n(p.edits), restraint, n(change), ", ".join(told)])
    head = ["editor", "edits", "restraint", "instance change", "editing scores"]
    return table(head, lines, name="Concepts and their instances") if lines else ""


_PARTS = (
    _Part("condition", "Condition number and singular values (figure 2)", charts_of.singular_values),
    _Part("sizes", "Size of the summed updates (table 1)", shared=_sizes),
    _Part("tasks", "General abilities (figures 3, 7-9)", charts_of.tasks),
    _Part("editing", "Editing performance (figures 4, 10-12)", charts_of.editing),
    _Part("linear", "Linear against log (figures 13, 14)", charts_of.log_and_linear),
    _Part("multiple", "PRUNE once and several times (table 6)", charts_of.multiple, _once_against_multiple),
    _Part("restrained", "Condition number with PRUNE (figure 15)", charts_of.restrained_kappa),
    _Part("kappa-abilities", "Condition number and abilities (figure 16)", charts_of.kappa_abilities),
    _Part("values", "Values of edited facts (figure 5)", charts_of.values, _shifts),
    _Part("locality-abilities", "Locality and abilities (section 5.5)", charts_of.locality_abilities),
    _Part("copies", "Copies of one update (section 4)", charts_of.repeated_update),
    _Part("bound", "The perturbation bound (section 3)", charts_of.perturbation_bound, _bound_table),
    _Part("concepts", "Concepts and their instances (table 2)", shared=_concepts),
)
