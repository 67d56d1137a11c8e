"""Draw a results file, a ledger, or a grid with the paper's figures and findings, in one HTML page.

$ tether report results.json
$ tether report results/smollm2 --out report
$ tether report my-edits
"""

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.options import Answer
from tether.evaluation import read
from tether.experiment.parquet import read_grid
from tether.ledger import Ledger
from tether.report import write_grid_report, write_ledger_report, write_report

OUT = typer.Option(help="Folder for index.html; default: beside the results, LEDGER-report, or the grid's.")


def report(
    results: Annotated[
        Path, typer.Argument(help="results.json of tether evaluate, or the folder of a ledger or a grid.")
    ],
    out: Annotated[Path | None, OUT] = None,
) -> Answer:
    if (results / "ledger.json").is_file():
        beside = Path(f"{results if results.name else results.resolve()}-report")
        page = write_ledger_report(Ledger.open(results), out or beside)
    elif results.is_dir():
        page = write_grid_report(read_grid(results), out or results)
    else:
        found = read(results)
        ledger = Ledger.open(found.ledger) if found.ledger and Path(found.ledger).is_dir() else None
        page = write_report(found, out or results.parent, ledger=ledger, title=f"Edits of {found.model}")
    return Answer({"report": str(page)}, str(page))
