"""tether evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.abilities_table import abilities_table
from tether.cli.app import (
    Device,
    Dtype,
    Json,
    LedgerPath,
    ModelOrRecorded,
    app,
    numbers,
    open_ledger,
    restraints,
    show,
    tell_progress,
    understood,
)
from tether.evaluation import ABILITIES, METRICS, QUICK_ITEMS, Measurement, Results, evaluate_ledger
from tether.evaluation.metrics.base import check_metrics, default_metrics, reported_by
from tether.facts import read_facts


@app.command("evaluate")
def command(
    ledger: LedgerPath,
    out: Annotated[Path, typer.Option(help="results.json; items go beside it.")],
    facts: Annotated[
        Path | None, typer.Option(help="Facts file that lends its prompts; default: the ledger's.")
    ] = None,
    model: ModelOrRecorded = None,
    at: Annotated[str | None, typer.Option(help="Numbers of edits, with commas; default: all.")] = None,
    restrain: Annotated[str | None, typer.Option(help="Restraints, with commas; default: as recorded.")] = None,
    abilities: Annotated[
        str,
        typer.Option(
            help=f"General abilities, with commas: {', '.join(ABILITIES)}, or a task of lm-evaluation-harness; '' for "
            "none."
        ),
    ] = "perplexity",
    abilities_data: Annotated[
        str | None,
        typer.Option(
            help="Folder with the tasks' data (and perplexity.txt), or a text file for the perplexity, or hub to allow "
            "downloads; default: small built-in sets."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most N items a task; default: the task's own.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"At most {QUICK_ITEMS} items a task: faster, with wider error bars.")
    ] = False,
    metrics: Annotated[str, typer.Option(help=f"Of {', '.join(METRICS)}.")] = ",".join(default_metrics()),
    paraphrases: Annotated[int | None, typer.Option(min=0, help="At most N paraphrases a fact.")] = None,
    locality: Annotated[int | None, typer.Option(min=0, help="At most N locality prompts a fact.")] = None,
    trust_task_files: Annotated[
        bool, typer.Option("--trust-task-files", help="Take task files (YAML) as abilities; they can run any Python.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the rows that are there.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure a ledger's edits at any number of them, under any restraint."""
    tell_progress("tether.evaluation")
    chosen, counts, measured = restraints(restrain), numbers(at, "--at"), [m for m in metrics.split(",") if m]
    understood("--metrics", lambda _: check_metrics(measured), metrics)
    opened, loaded = open_ledger(ledger, model, dtype, device)
    what = Measurement(
        metrics=tuple(measured),
        abilities=tuple(a for a in abilities.split(",") if a),
        data=abilities_data,
        limit=limit,
        quick=quick,
        max_paraphrases=paraphrases,
        max_locality=locality,
        trust_task_files=trust_task_files,
    )
    given = None if facts is None else read_facts(facts)
    results = evaluate_ledger(
        opened, loaded, given, at=counts, restraints=chosen, measurement=what, out=out, resume=resume
    )
    tables = [table(results), abilities_table(results)]
    show(results.model_dump(mode="json"), "\n\n".join(text for text in tables if text), as_json)


def table(results: Results) -> str:
    """Every row's main numbers, mean ± standard error."""
    metrics = reported_by(metric for row in results.rows for metric in row.editing)
    wanted = [column for metric in dict.fromkeys(metrics.values()) for column in metric.columns]
    start = next(
        (r.abilities["perplexity"].value for r in results.rows if r.unedited and "perplexity" in r.abilities), None
    )
    head = ["edits", "restraint", "κ", "σ̂_max", "perplexity (ratio)", *(f"{m} {k}" for m, k in wanted)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in results.rows:
        kappa = max((s.kappa for s in row.spectrum.values() if s.kappa is not None), default=None)
        top = max((s.update_sigma_max for s in row.spectrum.values() if s.update_sigma_max is not None), default=None)
        ppl = row.abilities.get("perplexity")
        shown = (
            ""
            if ppl is None or ppl.value is None
            else f"{ppl.value:.2f}" + (f" ({ppl.value / start:.3f})" if start else "")
        )
        cells = []
        for metric, kind in wanted:
            number = row.editing.get(metric, {}).get(kind)
            shown_error = "" if number is None or number.stderr is None else f" ± {number.stderr:.1f}"
            cells.append("" if number is None or number.value is None else f"{number.value:.1f}{shown_error}")
        ks = "" if kappa is None else f"{kappa:.1f}"
        ts = "" if top is None else f"{top:.1f}"
        lines.append(f"| {row.edits} | {row.restraint} | {ks} | {ts} | {shown} | " + " | ".join(cells) + " |")
    counts = {n.n for row in results.rows for kinds in row.editing.values() for n in kinds.values()}
    lines.append(f"mean ± standard error in percent over n facts (n: {', '.join(map(str, sorted(counts)))})")
    for row in results.rows:
        notes = [note for metric in dict.fromkeys(metrics.values()) if (note := metric.note(row.editing))]
        lines += [f"{row.edits} edits, {row.restraint}: {note}" for note in notes]
    return "\n".join(lines)
