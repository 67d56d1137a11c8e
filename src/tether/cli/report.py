"""tether report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.app import Json, app, show
from tether.evaluate import read
from tether.ledger import Ledger


@app.command("report")
def command(
    results: Annotated[Path, typer.Argument(help="results.json of tether evaluate.")],
    out: Annotated[Path | None, typer.Option(help="Folder for report.html; default: beside the results.")] = None,
    as_json: Json = False,
) -> None:
    """Draw a results file: κ, singular values, editing scores, in one HTML page."""
    from tether.report import write_report

    found = read(results)
    ledger = Ledger.open(found.ledger) if found.ledger and Path(found.ledger).is_dir() else None
    page = write_report(found, (out or results.parent) / "report.html", ledger=ledger, title=f"Edits of {found.model}")
    show({"report": str(page)}, str(page), as_json)
