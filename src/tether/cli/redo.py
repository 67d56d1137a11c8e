"""Take undone edits in again: the ledger is then as it was before the undo.

$ tether redo my-edits 3 7 10-20
$ tether redo my-edits --last 5
"""

from __future__ import annotations

from typing import Annotated

import typer

from tether.cli.options import Edits, Json, LedgerPath, print_result, selected
from tether.ledger import Ledger


def redo(
    ledger: LedgerPath,
    edits: Edits = None,
    last: Annotated[int | None, typer.Option(min=1, help="The last N of the undone edits.")] = None,
    as_json: Json = False,
) -> None:
    opened = Ledger.open(ledger)
    event = opened.redo(*selected(edits, last, sorted(opened.undone)))
    live = len(opened.live())
    document = {
        "ledger": str(ledger), "redone": event.redone, "event": event.number, "live_edits": live, "head": opened.head,
    }  # fmt: skip
    text = f"{ledger}: took {', '.join(map(str, event.redone or ()))} in again; {live} edits\nhead {opened.head}"
    print_result(document, text, as_json)
