"""The report of a results file and its ledger."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from torch import Tensor

from tether.constraints.base import AS_RECORDED, parse
from tether.constraints.prune import Restraint
from tether.data import misuse
from tether.evaluation.metrics.base import KINDS
from tether.evaluation.results import AS_IT_IS, IN_CONTEXT, Number, Results, Row
from tether.ledger import ATTEMPTS, Event, Ledger
from tether.report.curves import UNEDITED, Point, estimate, gather, in_words, restraint_name, short, under
from tether.report.drawing import GREEN, GREY, INK, ORANGE, RED, Chart, Panel, Style, curve_chart, curve_styles, plot
from tether.report.exchanges import Exchange, exchanges
from tether.report.headroom import headroom_section
from tether.report.page import Cell, Section, check_own, details, figures, n, note, plain, table, write_page
from tether.report.summary import summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEALTH = {"ok": Style(GREEN, "o", ""), "warn": Style(ORANGE, "^", ""), "alarm": Style(RED, "X", "")}
_MISSED = Style(INK, "x", "")
_JOURNAL = "while editing (journal)"
_UNEDITED = Style(GREY, "s", "")


def write_report(results: Results, to: str | Path, *, ledger: Ledger | None = None, title: str | None = None) -> Path:
    """Write the report of `results` to `to`, an .html file or the folder for `index.html`; returns the file.

    The ledger, which is only read, adds what happened edit by edit. Raises MissingExtraError without
    matplotlib, BadSettingsError where `to` is a file that tether did not write.
    """
    to = Path(to)
    to = to if to.suffix == ".html" else to / "index.html"
    check_own(to)
    title = title or f"{Path(results.model).name}: {max((row.edits for row in results.rows), default=0)} edits"
    events = [] if ledger is None else [e for e in ledger.events if e.kind in ATTEMPTS]
    sections = [
        Section("weight", "What the edits do to the weight", [
            note("κ = σ_max / σ_min of the edited weight (the worst, where there are several) climbs as edits add up. "
                 "m is the largest singular value of the unedited weight. Above it the sum of updates outweighs "
                 "whatever the weight knew; those singular values are what a restraint acts on."),
            figures(_kappa_chart(results.rows, events), _ratio_chart(events), _singular_values_chart(results, ledger)),
            details("The numbers", _spectrum_table(results.rows)),
        ]),
        *headroom_section(events),
        *_answers(results, ledger),
        Section("edits", "Did the edits take?", [
            note("Percent, mean over facts; whiskers are one standard error. Efficacy: the edited prompt. "
                 "Generalization: its paraphrases. Locality: prompts nearby, whose answers must not change "
                 "(unchanged: held against the unedited model's own). compare: the right answer is likelier than the "
                 "other. match: the answer's tokens are the likeliest, teacher-forced (their share; all of them). "
                 "generate: the model, left to itself, says it; generate_chat: asked in its chat. bystanders: the same "
                 "prompts about other subjects, answered as before (unchanged) or with the new answer (leak)."),
            figures(_editing_chart(results.rows)),
            details("The numbers", _editing_table(results.rows)),
        ]),
        Section("tasks", "What else the model can do", [
            figures(_abilities_chart(results.rows), beside=_abilities_table(results.rows)),
        ]),
        *([] if ledger is None else [Section("facts", "Edited facts", [_facts_table(ledger, events, results.rows)])]),
        Section("misuse", "Misuse", [MarkdownIt().render(misuse())]),
        Section("versions", "Versions", [note(", ".join(f"{k} {v}" for k, v in results.versions.items()))]),
    ]  # fmt: skip
    return write_page(to, title, _about(results, ledger), summary(results, ledger), sections)


def _about(results: Results, ledger: Ledger | None) -> str:
    said = [f"Model {results.model}."]
    if ledger is not None:
        header = ledger.header
        kinds = [event.kind for event in ledger.events]
        words = {"edit": "edited", "failed": "failed", "skipped": "skipped"}
        counts = ", ".join(f"{kinds.count(kind)} {word}" for kind, word in words.items() if kind in kinds)
        said.append(f"Method {header.method}, seed {header.seed}; facts: {counts or 'none'}.")
        said += [f"{name}: m = {weight.sigma_max:.4g}." for name, weight in header.weights.items()]
    return " ".join(said)


def _editing_table(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row.editing]
    kinds = list(dict.fromkeys(kind for row in measured for found in row.editing.values() for kind in found))
    lines = [
        [n(row.edits), restraint_name(row.restraint), metric, *(_number(found.get(kind)) for kind in kinds)]
        for row in measured for metric, found in row.editing.items()
    ]  # fmt: skip
    head = ["edits", "restraint", "metric", *(kind.replace("_", " ") for kind in kinds)]
    return table(head, lines, name="Editing scores")


def _number(number: Number | None) -> Cell:
    if number is None or number.value is None:
        return n("–")
    neither = "" if number.neither is None else f", {number.neither} neither Yes nor No"
    return n(f"{number.value:.1f} ± {plain(number.stderr, '.1f')}\nn {number.n}, {number.prompts} prompts{neither}")


def _answers(results: Results, ledger: Ledger | None) -> list[Section]:
    """Some questions, with the answers before the edits and after; nothing where no answers were kept."""
    found = exchanges(results, ledger)
    if found is None:
        return []
    restraint = restraint_name(found.row.restraint)
    about = (
        f"After {found.row.edits} edits, {restraint}, the answers to {found.said} of {found.facts} questions, one a "
        "fact, say the new answer in their first sentence. Asked is a chat question that the fact was not edited for; "
        "where none was measured, a paraphrase, else the edited prompt. Those below are chosen by rule: of the facts "
        "that are said five, of the others five, as far as there are, each evenly spread over the edits."
    )
    asked = "\n".join(_exchange(one, restraint) for one in found.shown)
    return [Section("answers", "What the model answers", [note(about), f'<div class="asked">{asked}</div>'])]


def _exchange(one: Exchange, restraint: str) -> str:
    """A question with both answers, the new one marked in them."""

    def marked(answer: str) -> str:
        parts = re.split(f"(?i)({re.escape(one.target_new.strip())})", answer) if one.target_new.strip() else [answer]
        return "".join(f"<mark>{escape(part)}</mark>" if i % 2 else escape(part) for i, part in enumerate(parts))

    answers = {"unedited model": one.unedited or "–", f"edited model, {restraint}": one.edited}
    told = "".join(f"<div><dt>{escape(who)}</dt><dd>{marked(answer)}</dd></div>" for who, answer in answers.items())
    word = "said" if one.said else "not said"
    return (
        f'<article class="card"><h3>{escape(one.asked)}</h3><dl class="columns">{told}</dl><p class="verdict">'
        f"Edit {one.edit}, new answer {escape(one.target_new)}: "
        f'<b class="{"yes" if one.said else "no"}">{word}</b></p></article>'
    )


def _abilities_table(rows: Sequence[Row]) -> str:
    return table(
        ["edits", "restraint", "task", "value", "standard error", "n", "unit"],
        [[n(row.edits), restraint_name(row.restraint), task, n(plain(found.value)), n(plain(found.stderr)),
          n(found.n), found.unit] for row in rows for task, found in row.abilities.items()],
        name="Abilities",
    )  # fmt: skip


def _spectrum_table(rows: Sequence[Row]) -> str:
    return table(
        ["edits", "restraint", "weight", "σ_max", "σ_min", "κ", "σ̂_max of the update"],
        [[n(row.edits), restraint_name(row.restraint), name,
          *(n(plain(v)) for v in (s.sigma_max, s.sigma_min, s.kappa, s.update_sigma_max))]
         for row in rows for name, s in row.spectrum.items()],
        name="Singular values",
    )  # fmt: skip


def _facts_table(ledger: Ledger, events: Iterable[Event], rows: Sequence[Row]) -> str:
    """Every fact tried, and imported updates; whether its own prompt still gives the new answer, in the last rows."""
    last = max((row.edits for row in rows), default=0)
    final = [row for row in rows if row.edits == last and row.retention]
    held = [(f"holds, {restraint_name(row.restraint)}", dict(row.retention)) for row in final]
    undone = ledger.undone
    lines: list[list[Cell]] = []
    classes = []
    for event in events:
        if event.edit is None:
            continue
        if (fact := event.fact) is None:  # an imported update
            asked, why = (event.reason or "–", "–", "–"), ""
        else:
            asked = fact.text, fact.target_new, fact.target_true or "–"
            why = event.reason or "; ".join(event.record.get("reasons", ()))
        record, status = event.record, "undone" if event.edit in undone else event.kind
        health = record.get("health", "")
        losses = [plain(record.get(name), ".2f") for name in ("loss_first", "loss_last")]
        lines.append([
            n(event.edit), *asked,
            {"edit": "edited"}.get(status, status), n(" → ".join(losses)), n(plain(record.get("norm"))),
            ": ".join(part for part in (health, why) if part),
            *(n(plain(kept.get(event.edit), ".0f")) for _, kept in held),
        ])  # fmt: skip
        classes.append(status if status != "edit" else health)
    head = ["edit", "prompt", "new answer", "answer before", "status", "loss", "‖ΔW‖", "health"]
    return table([*head, *(name for name, _ in held)], lines, classes, name="Edited facts")


def _kappa_chart(rows: Sequence[Row], events: Sequence[Event]) -> Chart | None:
    """κ of the worst edited weight against the number of edits: measured rows by restraint, and the journal's reading
    before every edit went in."""
    kappas = [(row, [s.kappa for s in row.spectrum.values() if s.kappa]) for row in rows]
    curves = gather((_name(row), row.edits, 0, (max(found), None)) for row, found in kappas if found)
    journal = [(e.edit or 0, e.record["kappa"]) for e in events if e.kind == "edit" and e.record.get("kappa")]
    drawn = {_JOURNAL: [Point(edit, kappa, None) for edit, kappa in journal], **curves} if journal else curves
    styles = curve_styles(row.restraint for row in rows) | {_JOURNAL: Style(GREY, "", "-")}
    chart = curve_chart("kappa", "κ against the number of edits", {"κ": drawn}, styles, {"κ": "κ = σ_max / σ_min"})
    if chart is None or not curves:
        return chart
    return replace(chart, panels=[replace(chart.panels[0], headline=in_words("κ", curves))])


def _ratio_chart(events: Sequence[Event]) -> Chart | None:
    """σ̂_max/m after every edit, with the health warnings, and the facts that were not edited."""
    edits = [e for e in events if e.kind == "edit" and math.isfinite(e.record.get("update_ratio") or math.nan)]
    if not edits:
        return None
    x, y = [e.edit or 0 for e in edits], [e.record["update_ratio"] for e in edits]
    by_level = {level: [i for i, e in enumerate(edits) if e.record.get("health") == level] for level in _HEALTH}
    missed = [e.edit or 0 for e in events if e.kind in ("failed", "skipped")]

    def draw(axes: Axes) -> None:
        axes.plot(x, y, color=GREY, linewidth=1, zorder=1)
        for (level, style), size in zip(_HEALTH.items(), (14, 26, 44), strict=True):
            xs, ys = [x[i] for i in by_level[level]], [y[i] for i in by_level[level]]
            axes.scatter(xs, ys, s=size, color=style.colour, marker=style.mark, zorder=2)
        axes.scatter(missed, [0.0] * len(missed), s=24, color=_MISSED.colour, marker=_MISSED.mark)
        axes.axhline(1, color=INK, linestyle="--", linewidth=1)
        axes.annotate("m", (1, 1), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                      verticalalignment="center")  # fmt: skip
        axes.set(xlabel="edit", ylabel="σ̂_max / m")
        axes.set_ylim(bottom=min(0.0, *y))

    legend = [(f"health {level} ({len(some)})", _HEALTH[level]) for level, some in by_level.items() if some]
    if missed:
        legend.append(("failed or skipped", _MISSED))
    above = next((edit for edit, ratio in zip(x, y, strict=True) if ratio > 1), None)
    headline = f"The update's largest singular value is {short(y[-1])} m after the last edit" + (
        "; it never exceeds m" if above is None else f"; it exceeds m from edit {above} on"
    )
    return Chart("ratio", "σ̂_max/m after every edit", [Panel("σ̂_max / m", draw, headline)], legend)


def _singular_values_chart(results: Results, ledger: Ledger | None) -> Chart | None:
    """Singular values of the sum of updates, with m, before and after each restraint that is a function of them; one
    panel a weight, at most six."""
    if ledger is None:
        return None
    named = dict.fromkeys([*(row.restraint for row in results.rows if not row.replayed), ledger.header.restrain])
    found = [parse(name) for name in named if name not in ("none", AS_RECORDED, AS_IT_IS, IN_CONTEXT)]
    restraints = [restraint for restraint in found if isinstance(restraint, Restraint)]
    styles = curve_styles(map(str, restraints))

    def draw(s: Tensor, m: float, axes: Axes) -> None:
        x = range(1, len(s) + 1)
        plot(axes, x, s.tolist(), styles["none"])
        for restraint in restraints:
            plot(axes, x, restraint(s, m).tolist(), styles[str(restraint)])
        axes.axhline(m, color=INK, linestyle="--", linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="i", ylabel="σ̂_i of the update")

    panels = []
    sums = ledger.sums(restrain="none")
    for name, held in list(sums.of.items())[:6]:
        s, m = held.factors.singular_values().double(), sums.m[name]
        if len(s):  # of many edits it has a long tail of nothing, which is left out
            s = s[: max(1, int((s > 1e-3 * s[0]).sum()))]
            above = f"{int((s > m).sum())} of {len(s)} singular values of the update exceed m = {m:.3g}"
            after = "".join(f", the largest is {short(restraint(s, m).max().item())} {under(str(restraint))}"
                            for restraint in restraints[:1])  # fmt: skip
            panels.append(Panel(f"{name}, m = {m:.3g}", partial(draw, s, m), f"{name}: {above}{after}"))
    legend = [*((restraint_name(name), style) for name, style in styles.items()), ("m", Style(INK, "", "--"))]
    return Chart("values", "singular values of the update", panels, legend) if panels else None


def _editing_chart(rows: Sequence[Row]) -> Chart | None:
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
        axes.set(xlim=(-0.5, len(kinds) - 0.5), ylim=(0, 105), ylabel="percent")
        axes.grid(False, axis="x")

    names = [f"{row.edits} edits, {restraint_name(row.restraint)}" if row.edits else "unedited" for row in chosen]
    legend = [(name, style) for name, (_, style) in zip(names, bars, strict=True)]
    panels = [Panel(metric, partial(draw, metric), _scored(metric, chosen)) for metric in metrics]
    return Chart("editing", "editing scores", panels, legend)


def _scored(metric: str, chosen: Sequence[Row]) -> str:
    """Efficacy and generalization before the edits and after, under every restraint."""
    told = []
    for kind in KINDS[:2]:
        values = [(row, found[0]) for row in chosen if (found := estimate(row, f"{metric} {kind}")) is not None]
        before = [f"from {value:.0f}" for row, value in values if row.unedited]
        after = [("" if row.restraint == "none" else f"{under(row.restraint)} ") + f"to {value:.0f} %"
                 for row, value in values if not row.unedited]  # fmt: skip
        if after:
            told.append(" ".join([kind, *before[:1], ", ".join(after)]))
    return f"{metric}: {'; '.join(told)}" if told else metric


def _abilities_chart(rows: Sequence[Row]) -> Chart | None:
    """General abilities against the number of edits, one panel a task; perplexity on a log scale where it explodes."""
    units = {task: found.unit for row in rows for task, found in row.abilities.items()}
    styles = curve_styles(row.restraint for row in rows)
    curves = {task: gather((_name(row), row.edits, 0, estimate(row, task)) for row in rows) for task in units}
    return curve_chart("abilities", "general abilities", curves, styles, units)


def _name(row: Row) -> str:
    return row.restraint if row.edits else UNEDITED
