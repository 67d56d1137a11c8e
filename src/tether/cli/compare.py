"""Which differences in general abilities are more than chance, on the same items.

$ tether compare results.json
$ tether compare results.json --baseline 0 --editing
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tether import evaluation
from tether.cli.options import Json, print_result
from tether.cli.tables import abilities_table
from tether.evaluation.statistics.compare import LEVEL


def compare(
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
    measured = evaluation.read(results)
    found = evaluation.compare(measured, baseline, editing=editing)
    marked = {(comparison.row, comparison.ability) for comparison in found if comparison.significant}
    against = {"0": "the unedited model", "none": "no restraint"}.get(baseline, baseline)
    drawn = abilities_table(measured, marked)
    lines = [f"{drawn}; * differs from {against}, p < {LEVEL}", ""] if drawn else []
    lines += [comparison.verdict for comparison in found]
    plural = "" if len(found) == 1 else "s"
    lines += [
        "",
        f"Paired t-tests on the same items; p corrected for {len(found)} comparison{plural} by Holm; ± is one standard "
        "error.",
    ]
    document = {"baseline": baseline, "comparisons": [comparison.document() for comparison in found]}
    print_result(document, "\n".join(lines), as_json)
