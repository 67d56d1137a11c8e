"""Edit the bundled model with facts written for this project, with and without PRUNE, and draw a report.

$ tether demo
$ tether demo --limit 8 --out short-demo
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tether.cli.demo_run import DemoResult, Step, run_demo
from tether.cli.options import Json, print_result, say
from tether.cli.tables import number, table


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the ledger, the results and the report.")] = Path("demo"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N facts.")] = None,
    as_json: Json = False,
) -> None:
    result = run_demo(out, limit=limit, progress=_tell)
    text = f"{summary(result)}\n{result.edits} edits, {result.failed} failed; scores: all target tokens, percent"
    print_result(dataclasses.asdict(result), f"{text}\n\nledger  {result.ledger}\nreport  {result.report}", as_json)


def summary(result: DemoResult) -> str:
    """The rows of a demo as a table of text."""
    head = ("", "κ", "perplexity", "efficacy", "generalization", "locality")
    rows = [
        [
            row.name, number(row.kappa, ".1f", "–"),
            "–" if row.perplexity_ratio is None else f"× {row.perplexity_ratio:.2f}",
            *(number(score, ".0f", "–") for score in (row.efficacy, row.generalization, row.locality)),
        ]
        for row in result.rows
    ]  # fmt: skip
    return table(head, rows, right=range(1, len(head)))


def _tell(step: Step) -> None:
    parts = [step.stage if step.total is None else f"{step.stage} {step.done}/{step.total}"]
    if step.edited is not None and step.edited.event.fact is not None:
        fact = step.edited.event.fact
        parts[0] += f" {fact.subject} -> {fact.target_new}"
        parts += [] if step.edited.reading is None else [step.edited.reading.line()]
        parts.append(f"{step.edited.eta:.0f} s left")
    say(" | ".join(parts))
