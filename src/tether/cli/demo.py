"""tether demo"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tether.cli.app import Json, app, err, show


@app.command("demo")
def command(
    out: Annotated[Path, typer.Option(help="Folder for the ledger, the results and the report.")] = Path("demo"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N facts.")] = None,
    as_json: Json = False,
) -> None:
    """Edit the bundled model with facts written for this project, with and without PRUNE, and draw a report."""
    from tether.demo import run_demo

    result = run_demo(out, limit=limit, progress=lambda line: err.out(line, highlight=False))
    show(dataclasses.asdict(result), result.text, as_json)
