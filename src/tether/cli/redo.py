"""Take undone edits in again: the ledger is then as it was before the undo.

$ tether redo my-edits 3 7 10-20
$ tether redo my-edits --last 5
"""

from typing import Annotated

import typer

from tether.cli.options import Answer, Edits, LedgerPath, selected
from tether.ledger import Ledger


def redo(
    ledger: LedgerPath,
    edits: Edits = None,
    last: Annotated[int | None, typer.Option(min=1, help="The last N of the undone edits.")] = None,
) -> Answer:
    opened = Ledger.open(ledger)
    event = opened.redo(*selected(edits, last, sorted(opened.undone)))
    now = {"event": event.number, "live_edits": len(opened.live()), "head": opened.head}
    text = f"took {', '.join(map(str, event.redone or ()))} in again; {now['live_edits']} edits\nhead {opened.head}"
    return Answer({"ledger": str(ledger), "redone": event.redone, **now}, f"{ledger}: {text}")
