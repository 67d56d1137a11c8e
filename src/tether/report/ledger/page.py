"""The report of a results file and its ledger."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tether.constraints.base import AS_RECORDED, parse
from tether.constraints.prune import Restraint
from tether.data import misuse
from tether.evaluation.results import AS_IT_IS, Number, Results, Row
from tether.ledger import ATTEMPTS, Event, Ledger
from tether.report.curves import restraint_name
from tether.report.drawing import Chart
from tether.report.ledger import figures
from tether.report.page import Cell, Section, check_own, figure, markdown, n, note, plain, table, write_page


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
        Section("condition-number", "Condition number", [
            figure(figures.kappa_chart(results.rows, events)),
            note("κ of the edited weight (the worst, where there are several). It climbs as edits add up; a restraint "
                 "on the singular values of their sum holds it down."),
        ]),
        Section("size", "Size of the update", [
            figure(figures.ratio_chart(events)),
            figure(_singular_values(results, ledger)),
            note("m is the largest singular value of the unedited weight. Above it the sum of updates outweighs "
                 "whatever the weight knew; those singular values are what a restraint acts on."),
        ]),
        Section("edits", "Did the edits take?", [
            figure(figures.editing_chart(results.rows)),
            note("Percent, mean over facts; whiskers are one standard error. Efficacy: the edited prompt. "
                 "Generalization: its paraphrases. Locality: prompts nearby, whose answers must not change "
                 "(unchanged: held against the unedited model's own). compare: the right answer is likelier than the "
                 "other. match: the answer's tokens are the likeliest, teacher-forced (their share; all of them). "
                 "generate: the model, left to itself, says it."),
            _editing_table(results.rows),
        ]),
        Section("tasks", "What else the model can do", [
            figure(figures.abilities_chart(results.rows)),
            _abilities_table(results.rows),
        ]),
        Section("singular-values", "Singular values", [_spectrum_table(results.rows)]),
        *([] if ledger is None else [Section("facts", "Edited facts", [_facts_table(ledger, events, results.rows)])]),
        Section("misuse", "Misuse", [markdown(misuse())]),
        Section("versions", "Versions", [note(", ".join(f"{k} {v}" for k, v in results.versions.items()))]),
    ]  # fmt: skip
    return write_page(to, title, _about(results, ledger), sections)


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


def _singular_values(results: Results, ledger: Ledger | None) -> Chart | None:
    if ledger is None or not ledger.live():
        return None
    named = dict.fromkeys([*(row.restraint for row in results.rows if not row.replayed), ledger.header.restrain])
    sums = ledger.sums(restrain="none")
    spectra = {name: (held.factors.singular_values().tolist(), sums.m[name]) for name, held in sums.of.items()}
    return figures.singular_values_chart(spectra, [r for r in map(_restraint, named) if r is not None])


def _restraint(text: str) -> Restraint | None:
    """The restraint of a row, None for `none` and for labels that name no function of singular values."""
    if text in ("none", AS_RECORDED, AS_IT_IS):
        return None
    found = parse(text)
    return found if isinstance(found, Restraint) else None


def _editing_table(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row.editing]
    kinds = list(dict.fromkeys(kind for row in measured for found in row.editing.values() for kind in found))
    lines = [
        [n(row.edits), restraint_name(row.restraint), metric, *(_number(found.get(kind)) for kind in kinds)]
        for row in measured for metric, found in row.editing.items()
    ]  # fmt: skip
    return table(["edits", "restraint", "metric", *(kind.replace("_", " ") for kind in kinds)], lines)


def _number(number: Number | None) -> Cell:
    if number is None or number.value is None:
        return n("–")
    neither = "" if number.neither is None else f", {number.neither} neither Yes nor No"
    return n(f"{number.value:.1f} ± {plain(number.stderr, '.1f')} (n {number.n}, {number.prompts} prompts{neither})")


def _abilities_table(rows: Sequence[Row]) -> str:
    return table(
        ["edits", "restraint", "task", "value", "standard error", "n", "unit"],
        [[n(row.edits), restraint_name(row.restraint), task, n(plain(found.value)), n(plain(found.stderr)),
          n(found.n), found.unit] for row in rows for task, found in row.abilities.items()],
    )  # fmt: skip


def _spectrum_table(rows: Sequence[Row]) -> str:
    return table(
        ["edits", "restraint", "weight", "σ_max", "σ_min", "κ", "σ̂_max of the update"],
        [[n(row.edits), restraint_name(row.restraint), name,
          *(n(plain(v)) for v in (s.sigma_max, s.sigma_min, s.kappa, s.update_sigma_max))]
         for row in rows for name, s in row.spectrum.items()],
    )  # fmt: skip


def _facts_table(ledger: Ledger, events: Iterable[Event], rows: Sequence[Row]) -> str:
    """Every fact tried; whether its own prompt still gives the new answer, in the last rows."""
    last = max((row.edits for row in rows), default=0)
    final = [row for row in rows if row.edits == last and row.retention]
    held = [(f"holds, {restraint_name(row.restraint)}", dict(row.retention)) for row in final]
    undone = ledger.undone
    lines: list[list[Cell]] = []
    classes = []
    for event in events:
        if event.fact is None or event.edit is None:
            continue
        record, status = event.record, "undone" if event.edit in undone else event.kind
        health = record.get("health", "")
        why = event.reason or "; ".join(record.get("reasons", ()))
        losses = [plain(record.get(name), ".2f") for name in ("loss_first", "loss_last")]
        lines.append([
            n(event.edit), event.fact.text, event.fact.target_new, event.fact.target_true or "–",
            {"edit": "edited"}.get(status, status), n(" → ".join(losses)), n(plain(record.get("norm"))),
            ": ".join(part for part in (health, why) if part),
            *(n(plain(kept.get(event.edit), ".0f")) for _, kept in held),
        ])  # fmt: skip
        classes.append(status if status != "edit" else health)
    head = ["edit", "prompt", "new answer", "answer before", "status", "loss", "‖ΔW‖", "health"]
    return table([*head, *(name for name, _ in held)], lines, classes)
