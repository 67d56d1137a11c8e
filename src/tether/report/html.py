"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from tether.evaluate.results import Number, Results, Row, YesShare
from tether.export.card import misuse
from tether.files import write_atomically
from tether.ledger import ATTEMPTS, Event, Ledger
from tether.report import figures
from tether.restraint import Restraint, parse

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.note { color: #555; } .wide { overflow-x: auto; }
svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #999; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.warn { background: #fdf1d8; } .alarm, .failed { background: #fbe0d6; } .skipped, .undone { color: #777; }
"""

Cell = str | tuple[str, str]  # text, or text and a class


def write_report(results: Results, to: str | Path, *, ledger: Ledger | None = None, title: str | None = None) -> Path:
    """Write the report of `results` to `to`, an .html file or the folder for `report.html`; returns the file.

    The ledger, which is only read, adds what happened edit by edit. Raises TetherError without matplotlib.
    """
    to = Path(to)
    to = to if to.suffix == ".html" else to / "report.html"
    title = title or f"{Path(results.model).name}: {max((row.edits for row in results.rows), default=0)} edits"
    events = [] if ledger is None else [e for e in ledger.events if e.kind in ATTEMPTS]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(_about(results, ledger))}</p>',
        "<h2>Condition number</h2>",
        _figure(figures.kappa_figure(results.rows, events), "κ against the number of edits"),
        _note("κ of the edited weight (the worst, where there are several). It climbs as edits add up; a restraint "
              "on the singular values of their sum holds it down."),
        "<h2>Size of the update</h2>",
        _figure(figures.ratio_figure(events), "σ̂_max/m after every edit"),
        _figure(_singular_values(results, ledger), "singular values of the update"),
        _note("m is the largest singular value of the unedited weight. Above it the sum of updates outweighs whatever "
              "the weight knew; those singular values are what a restraint acts on."),
        "<h2>Did the edits take?</h2>",
        _figure(figures.editing_figure(results.rows), "editing scores"),
        _note("Percent, mean over facts; whiskers are one standard error. Efficacy: the edited prompt. Generalization: "
              "its paraphrases. Locality: prompts nearby, whose answers must not change (unchanged: held against the "
              "unedited model's own). compare: the right answer is likelier than the other. match: the answer's tokens "
              "are the likeliest, teacher-forced (their share; all of them). generate: the model, left to itself, says "
              "it."),
        _editing_table(results.rows),
        "<h2>What else the model can do</h2>",
        _figure(figures.abilities_figure(results.rows), "general abilities"),
        _abilities_table(results.rows),
        "<h2>Singular values</h2>",
        _spectrum_table(results.rows),
        *([] if ledger is None else ["<h2>Edited facts</h2>", _facts_table(ledger, events, results.rows)]),
        "<h2>Misuse</h2>",
        _markdown(misuse()),
        f'<p class="note">{escape(", ".join(f"{k} {v}" for k, v in results.versions.items()))}</p>',
    ]  # fmt: skip
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{_CSS}</style>\n</head>\n<body>\n" + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(to, page.encode())
    return to


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


def _singular_values(results: Results, ledger: Ledger | None) -> str | None:
    if ledger is None or not ledger.live():
        return None
    named = dict.fromkeys([*(row.restraint for row in results.rows if not row.replayed), ledger.header.restrain])
    sums = ledger.sums(restrain="none")
    spectra = {name: (held.factors.singular_values().tolist(), sums.m[name]) for name, held in sums.of.items()}
    return figures.singular_values_figure(spectra, [r for r in map(_restraint, named) if r is not None])


def _restraint(text: str) -> Restraint | None:
    """The restraint of a row, None for `none` and for words that name no function."""
    if text == "none" or text.startswith("as "):
        return None
    return parse(text)


def _editing_table(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row.editing]
    kinds = list(dict.fromkeys(kind for row in measured for found in row.editing.values() for kind in found))
    lines = [
        [_n(row.edits), figures.restraint_name(row.restraint), metric, *(_number(found.get(kind)) for kind in kinds)]
        for row in measured for metric, found in row.editing.items()
    ]  # fmt: skip
    return _table(["edits", "restraint", "metric", *(kind.replace("_", " ") for kind in kinds)], lines)


def _number(number: Number | None) -> Cell:
    if number is None or number.value is None:
        return _n("–")
    neither = f", {number.neither} neither Yes nor No" if isinstance(number, YesShare) else ""
    return _n(f"{number.value:.1f} ± {_plain(number.stderr, '.1f')} (n {number.n}, {number.prompts} prompts{neither})")


def _abilities_table(rows: Sequence[Row]) -> str:
    return _table(
        ["edits", "restraint", "task", "value", "standard error", "n", "unit"],
        [[_n(row.edits), figures.restraint_name(row.restraint), task, _n(_plain(found.value)), _n(_plain(found.stderr)),
          _n(found.n), found.unit] for row in rows for task, found in row.abilities.items()],
    )  # fmt: skip


def _spectrum_table(rows: Sequence[Row]) -> str:
    return _table(
        ["edits", "restraint", "weight", "σ_max", "σ_min", "κ", "σ̂_max of the update"],
        [[_n(row.edits), figures.restraint_name(row.restraint), name,
          *(_n(_plain(v)) for v in (s.sigma_max, s.sigma_min, s.kappa, s.update_sigma_max))]
         for row in rows for name, s in row.spectrum.items()],
    )  # fmt: skip


def _facts_table(ledger: Ledger, events: Iterable[Event], rows: Sequence[Row]) -> str:
    """Every fact tried; whether its own prompt still gives the new answer, in the last rows."""
    last = max((row.edits for row in rows), default=0)
    final = [row for row in rows if row.edits == last and row.retention]
    held = [(f"holds, {figures.restraint_name(row.restraint)}", dict(row.retention)) for row in final]
    lines: list[list[Cell]] = []
    classes = []
    for event in events:
        if event.fact is None or event.edit is None:
            continue
        record, status = event.record, "undone" if event.edit in ledger.undone else event.kind
        health = record.get("health", "")
        why = event.reason or "; ".join(record.get("reasons", ()))
        loss = f"{record['loss_first']:.2f} → {record['loss_last']:.2f}" if "loss_last" in record else "–"
        lines.append([
            _n(event.edit), event.fact.text, event.fact.target_new, event.fact.target_true or "–",
            {"edit": "edited"}.get(status, status), _n(loss), _n(_plain(record.get("norm"))),
            ": ".join(part for part in (health, why) if part),
            *(_n(_plain(kept.get(event.edit), ".0f")) for _, kept in held),
        ])  # fmt: skip
        classes.append(status if status != "edit" else health)
    head = ["edit", "prompt", "new answer", "answer before", "status", "loss", "‖ΔW‖", "health", *(n for n, _ in held)]
    return _table(head, lines, classes)


def _table(head: Sequence[str], lines: Sequence[Sequence[Cell]], classes: Sequence[str] | None = None) -> str:
    if not lines:
        return _note("Not measured.")
    body = []
    for i, line in enumerate(lines):
        cells = (
            f"<td>{escape(c)}</td>" if isinstance(c, str) else f'<td class="{c[1]}">{escape(c[0])}</td>' for c in line
        )
        row_class = f' class="{escape(classes[i])}"' if classes and classes[i] else ""
        body.append(f"<tr{row_class}>{''.join(cells)}</tr>")
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    rows = "\n".join(body)
    return f'<div class="wide"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _n(value: object) -> Cell:
    """A cell that holds a number."""
    return str(value), "n"


def _plain(value: float | None, form: str = ".4g") -> str:
    return "–" if value is None else format(value, form)


def _figure(svg: str | None, label: str) -> str:
    return "" if svg is None else f'<figure role="img" aria-label="{escape(label)}">{svg}</figure>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _markdown(text: str) -> str:
    """Paragraphs, lists and **bold**: what the note on misuse is written in."""
    parts = []
    for block in re.split(r"\n\s*\n", text):
        bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(block), flags=re.DOTALL)
        first, *items = re.split(r"(?:^|\n)- ", bold)
        parts.append(f"<p>{first}</p>" if first else "")
        if items:
            parts.append("<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>")
    return "\n".join(part for part in parts if part)
