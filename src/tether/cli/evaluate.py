"""Measure a ledger's edits at any number of them, under any restraint.

$ tether evaluate my-edits --at 0,10,100 --restrain none,log:1.2 --out results.json
$ tether evaluate my-edits --abilities paper_nli,nli --quick --out results.json --resume
$ tether evaluate --base smollm2 --edited checkpoint --facts facts.jsonl --out results.json --csv table.csv
"""

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.loading import engine_of, load_edited, load_model, log_progress, open_ledger, restraints
from tether.cli.options import (
    Answer,
    Base,
    Device,
    Dtype,
    Edited,
    EngineName,
    Floor,
    LedgerOrNone,
    ModelOrRecorded,
    Workers,
    numbers,
    parse_option,
)  # fmt: skip
from tether.cli.tables import abilities_table, found_lines, number, with_error
from tether.cli.tables import table as drawn
from tether.errors import BadSettingsError
from tether.evaluation import (
    ABILITIES,
    METRICS,
    QUICK_ITEMS,
    Results,
    evaluate_in_context,
    evaluate_ledger,
    evaluate_pair,
    write,
)
from tether.evaluation import evaluate as evaluate_model
from tether.evaluation.measurement import measurement_of
from tether.evaluation.metrics.base import check_metrics, default_metrics, reported_by
from tether.evaluation.sheet import Sheet, check_sheet
from tether.facts import read_facts

PANELS = {
    "What is measured": (
        "metrics", "sample", "paraphrases", "locality", "bystanders", "judge", "judge_model", "abilities",
        "abilities_data", "limit", "quick", "trust_task_files",
    ),
}  # fmt: skip
TASKS = typer.Option(
    help=f"General abilities, with commas: {', '.join(ABILITIES)}, or a task of lm-evaluation-harness; '' for none."
)
DATA = typer.Option(
    help="Folder with the tasks' data (and perplexity.txt), or a text file for the perplexity, or hub to allow "
    "downloads; default: small built-in sets."
)
FACTS = typer.Option(help="Facts file that lends its prompts; default: the ledger's. Needed with --edited.")
SHEET = typer.Option(help="Also write the rows as a table: FILE.csv, FILE.md or FILE.tex.")
QUICK = typer.Option("--quick", help=f"At most {QUICK_ITEMS} items a task: faster, with wider error bars.")
BYSTANDERS = typer.Option(min=0, help="Other subjects that every fact's prompts are asked of; 0: none.")
JUDGE = typer.Option(
    help="Send the free answers to this endpoint, as OpenAI's chat completions, for a yes or no; key: TETHER_JUDGE_KEY."
)
TOLD = typer.Option(
    "--in-context", help="Also a row that edits nothing and puts the facts into every prompt; with --base alone too."
)
MOST = typer.Option(min=1, help="With --in-context: at most N facts in a prompt, the nearest by their subjects' words.")
TRUST = typer.Option("--trust-task-files", help="Take task files (YAML) as abilities; they can run any Python.")


def evaluate(
    *,
    ledger: LedgerOrNone = None,
    base: Base = None,
    edited: Edited = None,
    out: Annotated[Path, typer.Option(help="results.json; items go beside it.")],
    csv: Annotated[Path | None, SHEET] = None,
    facts: Annotated[Path | None, FACTS] = None,
    model: ModelOrRecorded = None,
    at: Annotated[str | None, typer.Option(help="Numbers of edits, with commas; default: all.")] = None,
    restrain: Annotated[
        str | None, typer.Option(help="Restraints, with commas, also log:auto; default: as recorded.")
    ] = None,
    floor: Floor = 98.0,
    in_context: Annotated[bool, TOLD] = False,
    told: Annotated[int | None, MOST] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the rows that are there.")] = False,
    metrics: Annotated[str, typer.Option(help=f"Of {', '.join(METRICS)}.")] = ",".join(default_metrics()),
    sample: Annotated[int | None, typer.Option(min=1, help="Ask N facts of a row at most, drawn.")] = None,
    paraphrases: Annotated[int | None, typer.Option(min=0, help="At most N paraphrases a fact.")] = None,
    locality: Annotated[int | None, typer.Option(min=0, help="At most N locality prompts a fact.")] = None,
    bystanders: Annotated[int, BYSTANDERS] = 2,
    judge: Annotated[str | None, JUDGE] = None,
    judge_model: Annotated[str | None, typer.Option(help="The model of that endpoint.")] = None,
    abilities: Annotated[str, TASKS] = "perplexity",
    abilities_data: Annotated[str | None, DATA] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most N items a task; default: the task's own.")] = None,
    quick: Annotated[bool, QUICK] = False,
    trust_task_files: Annotated[bool, TRUST] = False,
    engine: EngineName = "local",
    workers: Workers = None,
    dtype: Dtype = None,
    device: Device = None,
) -> Answer:
    log_progress("tether.evaluation")
    told_alone = in_context and ledger is None and edited is None and base is not None
    if (ledger is None) == (edited is None) and not told_alone:
        raise typer.BadParameter("give a ledger, or --edited with a checkpoint; one of them", param_hint="LEDGER")
    if ledger is None and facts is None:
        raise typer.BadParameter("a checkpoint has no facts of its own: name a file", param_hint="--facts")
    for option, value in (("--model", model), ("--at", at), ("--restrain", restrain), ("--resume", resume or None)):
        if ledger is None and value is not None:
            raise typer.BadParameter("goes with a ledger alone", param_hint=option)
    if ledger is not None and base is not None:
        raise typer.BadParameter("goes with --edited alone", param_hint="--base")
    if told is not None and not in_context:
        raise typer.BadParameter("goes with --in-context", param_hint="--told")
    if edited is not None and in_context:
        raise typer.BadParameter("goes with a ledger, or with --base and no --edited", param_hint="--in-context")
    if told_alone and engine != "local":
        raise typer.BadParameter("facts in the prompt alone are asked in this process", param_hint="--engine")
    chosen, counts, measured = restraints(restrain), numbers(at, "--at"), [m for m in metrics.split(",") if m]
    parse_option("--metrics", lambda _: check_metrics(measured), metrics)
    if out.exists() and not resume:
        raise BadSettingsError(f"{out} exists: name another file, or keep its rows with --resume")
    measurement = measurement_of(None, [a for a in abilities.split(",") if a], {
        "metrics": measured, "max_paraphrases": paraphrases, "max_locality": locality, "data": abilities_data,
        "bystanders": bystanders, "sample": sample, "told": told, "judge": judge, "judge_model": judge_model,
        "limit": limit, "quick": quick, "trust_task_files": trust_task_files,
    })  # fmt: skip
    if csv is not None:
        check_sheet(csv)
    given, using = None if facts is None else read_facts(facts), engine_of(engine, workers, device)
    if ledger is not None:
        opened, loaded = open_ledger(ledger, model, dtype, device)
        with using as spread:
            results = evaluate_ledger(
                opened, loaded, given, at=counts, restraints=chosen, measurement=measurement, in_context=in_context,
                out=out, resume=resume, engine=spread, floor=floor,
            )  # fmt: skip
    elif told_alone:
        unedited = load_model(str(base), dtype=dtype, device=device)
        results = evaluate_in_context(unedited, given or [], measurement=measurement, out=out)
    else:
        checkpoint = load_edited(str(edited), base, dtype=dtype, device=device)
        if base is None:
            with using as spread:
                results = evaluate_model(checkpoint, given or [], measurement=measurement, engine=spread)
            write(results, out)
        else:
            unedited = load_model(base, dtype=dtype, device=device)
            with using as spread:
                results = evaluate_pair(
                    unedited, checkpoint, given or [], measurement=measurement, out=out, engine=spread
                )
    if csv is not None:
        of = {"of": str(ledger or edited or base)}
        rows = [({**of, "edits": str(row.edits), "restraint": row.restraint}, row) for row in results.rows]
        Sheet.of(rows).write(csv)
    curves = [found_lines(one) for one in (results.strengths or {}).values()]
    tables = [*curves, table(results), relations_table(results), abilities_table(results)]
    return Answer(results.model_dump(mode="json"), "\n\n".join(filter(None, tables)))


def table(results: Results) -> str:
    """Every row's main numbers, mean ± standard error; only what was measured."""
    metrics = reported_by(metric for row in results.rows for metric in row.editing)
    wanted = [column for metric in dict.fromkeys(metrics.values()) for column in metric.columns]
    head = ["edits", "restraint", "κ", "σ̂_max", "perplexity (ratio)", *(f"{m} {k}" for m, k in wanted)]
    perplexity = {row.key: row.abilities["perplexity"].value for row in results.rows if "perplexity" in row.abilities}
    start = next((perplexity[row.key] for row in results.rows if row.unedited and row.key in perplexity), None)
    rows = []
    for row in results.rows:
        kappas = [s.kappa for s in row.spectrum.values() if s.kappa is not None]
        tops = [s.update_sigma_max for s in row.spectrum.values() if s.update_sigma_max is not None]
        cells = [number(max(values, default=None), ".1f") for values in (kappas, tops)]
        value = perplexity.get(row.key)
        ratio = f" ({value / start:.3f})" if value is not None and start else ""
        scores = [with_error(row.editing.get(metric, {}).get(kind)) for metric, kind in wanted]
        rows.append([str(row.edits), row.restraint, *cells, number(value, ".2f") + ratio, *scores])
    filled = [column for column in range(len(head)) if column < 2 or any(row[column] for row in rows)]
    head, rows = [head[column] for column in filled], [[row[column] for column in filled] for row in rows]
    counts = {n.n for row in results.rows for kinds in row.editing.values() for n in kinds.values()}
    lines = [f"mean ± standard error in percent over n facts (n: {', '.join(map(str, sorted(counts)))})"]
    for row in results.rows:
        notes = [metric.note(row.editing) for metric in dict.fromkeys(metrics.values())]
        lines += [f"{row.edits} edits, {row.restraint}: {note}" for note in notes if note]
        if row.told is not None and row.told.fewest < row.told.facts:
            lines.append(f"{row.restraint}: of {row.told.facts} facts at least {row.told.fewest} stand in a prompt")
    return "\n".join([drawn(head, rows, markdown=True), *lines])


def relations_table(results: Results) -> str:
    """The main editing numbers of the facts of every relation; empty where no row has any."""
    measured = [(row, name, editing) for row in results.rows for name, editing in (row.relations or {}).items()]
    metrics = reported_by(metric for _, _, editing in measured for metric in editing)
    columns = [column for metric in dict.fromkeys(metrics.values()) for column in metric.columns]
    found = [[editing.get(metric, {}).get(kind) for metric, kind in columns] for _, _, editing in measured]
    filled = [at for at in range(len(columns)) if any((number := row[at]) and number.n for row in found)]
    if not filled:
        return ""
    head = ["edits", "restraint", "relation", "n", *(" ".join(columns[at]) for at in filled)]
    rows = [
        [str(row.edits), row.restraint, name, str(max(n.n for n in values if n is not None))]
        + [with_error(values[at]) for at in filled]
        for (row, name, _), values in zip(measured, found, strict=True)
    ]
    return drawn(head, rows, markdown=True)
