"""tether grid"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tether.cli.app import Json, app, err, every, show, tell_progress, understood


@app.command("grid")
def command(
    grid: Annotated[
        str, typer.Argument(help="A YAML file, or a grid that comes with tether: smollm2, paper, conceptedit.")
    ],
    plan: Annotated[bool, typer.Option("--plan", help="Say what would run, in which order; run nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="The grid's folder; default: grid-NAME.")] = None,
    engine: Annotated[str, typer.Option(help="local (this process), or ray.")] = "local",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a grid; what is done stays.")] = False,
    as_json: Json = False,
) -> None:
    """Run models × editors × data sets × edits × restraints × abilities × seeds. Exit 1 where a run fails."""
    from tether.experiment import make_plan, read_spec, run_grid
    from tether.experiment.engines import engine as engine_of

    understood("--engine", engine_of, engine)
    spec = read_spec(grid)
    folder = out or Path(f"grid-{spec.name}")
    if plan:
        document, text = described(make_plan(spec), folder)
        show(document, text, as_json)
        return
    tell_progress("tether.evaluation")
    tell_progress("tether.editing.prepare")
    outcome = run_grid(grid, folder, resume=resume, engine=engine, progress=_Teller())
    ids = [job.run.id for job in outcome.plan.jobs]
    rows = sum(len(stored.rows) for stored in outcome.grid.runs)
    text = f"{folder}: {len(outcome.grid.runs)} of {len(ids)} runs done, {rows} rows"
    document = {
        "grid": spec.name, "out": str(folder), "runs": ids, "done": [stored.run.id for stored in outcome.grid.runs],
        "failed": outcome.failed, "rows": rows,
    }  # fmt: skip
    show(document, text, as_json)
    if outcome.failed:
        name, reason = next(iter(outcome.failed.items()))
        count = len(outcome.failed)
        err.out(
            f"tether: {count} of {len(ids)} runs failed: {name}: {reason}"
            + (f" (the others: {', '.join(list(outcome.failed)[1:])})" if count > 1 else ""),
            highlight=False,
        )
        raise typer.Exit(1)


class _Teller:
    """Progress on stderr: every stage of a run, and its edits now and then."""

    def __init__(self) -> None:
        self._due = every(seconds=5)

    def __call__(self, step: Any) -> None:
        if step.edited is None:
            err.out(f"{step.run.id}: {step.stage}{f', {step.reason}' if step.reason else ''}", highlight=False)
        elif self._due() or step.edited.done == step.edited.total:
            at = step.edited
            err.out(f"{step.run.id}: {at.done}/{at.total} edits, {at.eta:.0f} s left", highlight=False)


def described(plan: Any, folder: Path) -> tuple[dict[str, Any], str]:
    """A plan as JSON and as text."""
    from tether.experiment.run import state

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
    head = ["run", "edits", "restraints", "rows", "state"]
    lines = [head] + [
        [
            run["id"], f"{run['edits']}",
            ",".join(run["restraints"]) if run["every"] is None else f"{run['restrain']} every {run['every']}",
            f"{run['rows']}", run["state"],
        ]
        for run in runs
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text = [
        *table, "",
        f"{len(runs)} runs, a ledger each: {once} for all restraints applied once, "
        f"{len(runs) - once} restrained every K edits; {rows} rows",
        *(f"note: {note}" for note in plan.notes),
        *(f"missing: {what}" for what in plan.missing),
    ]  # fmt: skip
    return document, "\n".join(text)
