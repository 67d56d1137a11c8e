"""Run models × editors × data sets × edits × restraints × abilities × seeds. Exit 1 where a run fails.

$ tether grid smollm2 --plan
$ tether grid my-grid.yaml --out my-grid --resume
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tether.cli.loading import log_progress
from tether.cli.options import Answer, at_most_every, parse_option, say
from tether.cli.tables import count, table
from tether.evaluation.sheet import Sheet
from tether.experiment import Plan, Step, make_plan, read_spec, run_grid
from tether.experiment.engines import engine as engine_of
from tether.experiment.results import StoredGrid
from tether.experiment.run import state


def grid(
    grid: Annotated[str, typer.Argument(help="A YAML file, or one of `tether ls grids`, as smollm2.")],
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, in which order; run nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="The grid's folder; default: grid-NAME.")] = None,
    engine: Annotated[str, typer.Option(help="local (this process), or ray.")] = "local",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a grid; what is done stays.")] = False,
) -> Answer:
    parse_option("--engine", engine_of, engine)
    spec = read_spec(grid)
    folder = out or Path(f"grid-{spec.name}")
    if plan:
        return described(make_plan(spec), folder)
    log_progress("tether.evaluation", "tether.editing.prepare")
    outcome = run_grid(grid, folder, resume=resume, engine=engine, progress=_teller())
    ids = [job.run.id for job in outcome.plan.jobs]
    done = [stored.run.id for stored in outcome.grid.runs]
    rows = sum(len(stored.rows) for stored in outcome.grid.runs)
    if outcome.failed:
        (name, reason), *others = outcome.failed.items()
        more = f" (the others: {', '.join(other for other, _ in others)})" if others else ""
        say(f"tether: {len(outcome.failed)} of {len(ids)} runs failed: {name}: {reason}{more}")
    sheet = _sheet(outcome.grid)
    for suffix in ("csv", "md", "tex"):
        sheet.write(folder / f"table.{suffix}")
    lines = [sheet.main().markdown(), f"tables: {folder}/table.csv, .md, .tex"] if rows else []
    lines.append(f"{folder}: {len(done)} of {len(ids)} runs done, {count(rows, 'row')}")
    document = {
        "grid": spec.name, "out": str(folder), "runs": ids, "done": done, "failed": outcome.failed, "rows": rows,
    }  # fmt: skip
    return Answer(document, "\n".join(lines), int(bool(outcome.failed)))


def _sheet(found: StoredGrid) -> Sheet:
    """Every row of every run, by what it was made with."""
    rows = []
    for stored in found.runs:
        run = stored.run
        for row in stored.rows:
            restraint = row.restraint if run.every is None else f"{run.restrain} every {run.every}"
            labels = {"model": run.model, "method": run.method, "dataset": run.dataset, "seed": str(run.seed)}
            rows.append(({**labels, "restraint": restraint, "edits": str(row.edits)}, row))
    return Sheet.of(rows)


def _teller() -> Callable[[Step], None]:
    """Progress on stderr: every stage of a run, and its edits now and then."""
    due = at_most_every(seconds=5)

    def tell(step: Step) -> None:
        if step.edited is None:
            say(f"{step.run.id}: {step.stage}{f', {step.reason}' if step.reason else ''}")
        elif due() or step.edited.done == step.edited.total:
            say(f"{step.run.id}: {step.edited.done}/{step.edited.total} edits, {step.edited.eta:.0f} s left")

    return tell


def described(plan: Plan, folder: Path) -> Answer:
    """What would run, and how far it is."""
    runs = [
        job.run.model_dump()
        | {"at": job.at, "restraints": job.restraints, "rows": job.rows, "state": state(job, folder)}
        for job in plan.jobs
    ]
    once = sum(run["every"] is None for run in runs)
    rows = sum(run["rows"] for run in runs)
    document = {
        "grid": plan.spec.name, "out": str(folder), "runs": runs, "ledgers": len(runs), "ledgers_once": once,
        "ledgers_every": len(runs) - once, "rows": rows, "missing": plan.missing, "notes": plan.notes,
    }  # fmt: skip
    cells = []
    for run in runs:
        how = ",".join(run["restraints"]) if run["every"] is None else f"{run['restrain']} every {run['every']}"
        cells.append([run["id"], str(run["edits"]), how, str(run["rows"]), run["state"]])
    lines = [
        table(("run", "edits", "restraints", "rows", "state"), cells), "",
        f"{count(len(runs), 'run')}, a ledger each: {once} for all restraints applied once, "
        f"{len(runs) - once} restrained every K edits; {count(rows, 'row')}",
        *(f"note: {note}" for note in plan.notes),
        *(f"missing: {what}" for what in plan.missing),
    ]  # fmt: skip
    return Answer(document, "\n".join(lines))
