"""Take undone edits in again: the ledger is then as it was before the undo.

$ tether redo my-edits 3 7 10-20
$ tether redo my-edits --last 5
"""

from typing import Annotated

import typer

from tether.cli.options import Answer, Edits, LedgerPath, selected
from tether.cli.undo import marked
from tether.ledger import Ledger


def redo(
    ledger: LedgerPath,
    edits: Edits = None,
    last: Annotated[int | None, typer.Option(min=1, help="The last N of the undone edits.")] = None,
) -> Answer:
    opened = Ledger.open(ledger)
    event = opened.redo(*selected(edits, last, opened.redoable))
    return marked(opened, event, "redone", "took {} in again; {}")
