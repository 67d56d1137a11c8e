"""tether compare"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tether.cli.abilities_table import abilities_table
from tether.cli.app import Json, app, show
from tether.evaluation import compare, read
from tether.evaluation.statistics.compare import LEVEL


@app.command("compare")
def command(
    results: Annotated[Path, typer.Argument(help="results.json of tether evaluate, with its items beside it.")],
    baseline: Annotated[
        str,
        typer.Option(
            help="A restraint (rows against the one of that restraint after as many edits) or a number of edits (rows "
            "against the one of their restraint after so many; 0: the unedited model)."
        ),
    ] = "none",
    editing: Annotated[
        bool,
        typer.Option("--editing", help="The editing metrics too: efficacy, generalization, locality, fact by fact."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Which differences in general abilities are more than chance, on the same items."""
    measured = read(results)
    found = compare(measured, baseline, editing=editing)
    marked = {(comparison.row, comparison.ability) for comparison in found if comparison.significant}
    against = {"0": "the unedited model", "none": "no restraint"}.get(baseline, baseline)
    table = abilities_table(measured, marked)
    lines = [f"{table}; * differs from {against}, p < {LEVEL}", ""] if table else []
    lines += [comparison.verdict for comparison in found]
    lines += [
        "",
        f"Paired t-tests on the same items; p corrected for {len(found)} comparison{'s' * (len(found) != 1)} by Holm; "
        "± is one standard error.",
    ]
    show(
        {"baseline": baseline, "comparisons": [comparison.document() for comparison in found]},
        "\n".join(lines),
        as_json,
    )
