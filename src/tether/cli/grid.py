"""Run models × editors × data sets × edits × restraints × abilities × seeds. Exit 1 where a run fails.

$ tether grid smollm2 --plan
$ tether grid my-grid.yaml --out my-grid --resume
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tether.cli.loading import log_progress
from tether.cli.options import Json, at_most_every, parse_option, print_result, say
from tether.cli.tables import table
from tether.experiment import Plan, make_plan, read_spec, run_grid
from tether.experiment.engines import engine as engine_of
from tether.experiment.run import state


def grid(
    grid: Annotated[str, typer.Argument(help="A YAML file, or one of `tether ls grids`: smollm2, paper, conceptedit.")],
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, in which order; run nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="The grid's folder; default: grid-NAME.")] = None,
    engine: Annotated[str, typer.Option(help="local (this process), or ray.")] = "local",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a grid; what is done stays.")] = False,
    as_json: Json = False,
) -> None:
    parse_option("--engine", engine_of, engine)
    spec = read_spec(grid)
    folder = out or Path(f"grid-{spec.name}")
    if plan:
        print_result(*described(make_plan(spec), folder), as_json)
        return
    log_progress("tether.evaluation", "tether.editing.prepare")
    outcome = run_grid(grid, folder, resume=resume, engine=engine, progress=_Teller())
    ids = [job.run.id for job in outcome.plan.jobs]
    rows = sum(len(stored.rows) for stored in outcome.grid.runs)
    text = f"{folder}: {len(outcome.grid.runs)} of {len(ids)} runs done, {rows} rows"
    document = {
        "grid": spec.name, "out": str(folder), "runs": ids, "done": [stored.run.id for stored in outcome.grid.runs],
        "failed": outcome.failed, "rows": rows,
    }  # fmt: skip
    print_result(document, text, as_json)
    if outcome.failed:
        (name, reason), *others = outcome.failed.items()
        more = f" (the others: {', '.join(other for other, _ in others)})" if others else ""
        say(f"tether: {len(outcome.failed)} of {len(ids)} runs failed: {name}: {reason}{more}")
        raise typer.Exit(1)


class _Teller:
    """Progress on stderr: every stage of a run, and its edits now and then."""

    def __init__(self) -> None:
        self._due = at_most_every(seconds=5)

    def __call__(self, step: Any) -> None:
        if step.edited is None:
            say(f"{step.run.id}: {step.stage}{f', {step.reason}' if step.reason else ''}")
        elif self._due() or step.edited.done == step.edited.total:
            say(f"{step.run.id}: {step.edited.done}/{step.edited.total} edits, {step.edited.eta:.0f} s left")


def described(plan: Plan, folder: Path) -> tuple[dict[str, Any], str]:
    """A plan as JSON and as text."""
    runs = [
        {
            **job.run.model_dump(), "at": job.at, "restraints": job.restraints, "rows": job.rows,
            "state": state(job, folder),
        }
        for job in plan.jobs
    ]  # fmt: skip
    once = sum(run["every"] is None for run in runs)
    rows = sum(run["rows"] for run in runs)
    document = {
        "grid": plan.spec.name, "out": str(folder), "runs": runs, "ledgers": len(runs), "ledgers_once": once,
        "ledgers_every": len(runs) - once, "rows": rows, "missing": plan.missing, "notes": plan.notes,
    }  # fmt: skip
    cells = [
        [
            run["id"], str(run["edits"]),
            ",".join(run["restraints"]) if run["every"] is None else f"{run['restrain']} every {run['every']}",
            str(run["rows"]), run["state"],
        ]
        for run in runs
    ]  # fmt: skip
    text = [
        table(("run", "edits", "restraints", "rows", "state"), cells), "",
        f"{len(runs)} runs, a ledger each: {once} for all restraints applied once, "
        f"{len(runs) - once} restrained every K edits; {rows} rows",
        *(f"note: {note}" for note in plan.notes),
        *(f"missing: {what}" for what in plan.missing),
    ]  # fmt: skip
    return document, "\n".join(text)
