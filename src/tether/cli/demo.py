"""tether demo"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tether.cli.app import Json, app, err, show

if TYPE_CHECKING:
    from tether.cli.demo_run import Step


@app.command("demo")
def command(
    out: Annotated[Path, typer.Option(help="Folder for the ledger, the results and the report.")] = Path("demo"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N facts.")] = None,
    as_json: Json = False,
) -> None:
    """Edit the bundled model with facts written for this project, with and without PRUNE, and draw a report."""
    from tether.cli.demo_run import run_demo

    result = run_demo(out, limit=limit, progress=_tell)
    text = f"{result.table()}\n{result.edits} edits, {result.failed} failed; scores: all target tokens, percent"
    show(dataclasses.asdict(result), f"{text}\n\nledger  {result.ledger}\nreport  {result.report}", as_json)


def _tell(step: Step) -> None:
    at = "" if step.total is None else f" {step.done}/{step.total}"
    edited = step.edited
    what = "" if edited is None or edited.event.fact is None else (
        f" {edited.event.fact.subject} -> {edited.event.fact.target_new}"
        f"{'' if edited.reading is None else f' | {edited.reading.line()}'} | {edited.eta:.0f} s left"
    )  # fmt: skip
    err.out(f"{step.stage}{at}{what}", highlight=False)
