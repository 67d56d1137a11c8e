"""Which differences in general abilities are more than chance, on the same items.

$ tether compare results.json
$ tether compare results.json --baseline 0 --editing
$ tether compare mine.json theirs.json --editing
"""

from pathlib import Path
from typing import Annotated

import typer

from tether import evaluation
from tether.cli.options import Answer
from tether.cli.tables import abilities_table, count
from tether.evaluation.statistics.compare import LEVEL

BASELINE = typer.Option(
    help="A restraint (rows against the one of that restraint after as many edits) or a number of edits (rows against "
    "the one of their restraint after so many; 0: the unedited model)."
)
OTHER = typer.Argument(help="Another results file: its rows are the baseline, marked (other).")
EDITING = typer.Option("--editing", help="The editing metrics too: efficacy, generalization, locality, fact by fact.")


def compare(
    results: Annotated[Path, typer.Argument(help="results.json of tether evaluate, with its items beside it.")],
    other: Annotated[Path | None, OTHER] = None,
    baseline: Annotated[str, BASELINE] = "none",
    editing: Annotated[bool, EDITING] = False,
) -> Answer:
    measured = evaluation.read(results)
    if other is None:
        found = evaluation.compare(measured, baseline, editing=editing)
    else:
        measured, found = evaluation.compare_files(measured, evaluation.read(other), editing=editing)
        baseline = f"the row of {other}"
    drawn = abilities_table(measured, {(one.row, one.ability) for one in found if one.significant})
    against = {"0": "the unedited model", "none": "no restraint"}.get(baseline, baseline)
    lines = [f"{drawn}; * differs from {against}, p < {LEVEL}", ""] if drawn else []
    lines += [comparison.verdict for comparison in found]
    corrected = count(len(found), "comparison")
    lines += ["", f"Paired t-tests on the same items; p corrected for {corrected} by Holm; ± is one standard error."]
    document = {"baseline": baseline, "comparisons": [comparison.document() for comparison in found]}
    return Answer(document, "\n".join(lines))
