"""Edit the bundled model with facts written for this project, with and without PRUNE, and draw a report.

$ tether demo
$ tether demo --limit 8 --out short-demo
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tether.cli.demo_run import DemoResult, Step, run_demo
from tether.cli.edit import progress_line
from tether.cli.options import Answer, say
from tether.cli.tables import number, table


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the ledger, the results and the report.")] = Path("demo"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N facts.")] = None,
) -> Answer:
    result = run_demo(out, limit=limit, progress=_tell)
    text = f"{summary(result)}\n{result.edits} edits, {result.failed} failed; scores: all target tokens, percent"
    return Answer(asdict(result), f"{text}\n\nledger  {result.ledger}\nreport  {result.report}")


def summary(result: DemoResult) -> str:
    """The rows of a demo as a table of text."""
    head = ("", "κ", "perplexity", "efficacy", "generalization", "locality")
    rows = []
    for row in result.rows:
        scores = [number(score, ".0f", "–") for score in (row.efficacy, row.generalization, row.locality)]
        ratio = "–" if row.perplexity_ratio is None else f"× {row.perplexity_ratio:.2f}"
        rows.append([row.name, number(row.kappa, ".1f", "–"), ratio, *scores])
    return table(head, rows, right=range(1, len(head)))


def _tell(step: Step) -> None:
    where = step.stage if step.total is None else f"{step.stage} {step.done}/{step.total}"
    say(where if step.edited is None else f"{step.done}/{step.total} {progress_line(step.edited)}")
