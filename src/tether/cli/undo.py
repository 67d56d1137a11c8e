"""Take edits out of a ledger, exactly: as if they had not been added. Later edits are not computed anew.

$ tether undo my-edits 3 7 10-20
$ tether undo my-edits --last 5
"""

from __future__ import annotations

from typing import Annotated

import typer

from tether.cli.options import Edits, Json, LedgerPath, print_result, selected
from tether.ledger import Ledger


def undo(
    ledger: LedgerPath,
    edits: Edits = None,
    last: Annotated[int | None, typer.Option(min=1, help="The last N edits that count.")] = None,
    as_json: Json = False,
) -> None:
    opened = Ledger.open(ledger)
    event = opened.undo(*selected(edits, last, [event.edit or 0 for event in opened.live()]))
    left = len(opened.live())
    document = {
        "ledger": str(ledger), "undone": event.undone, "event": event.number, "live_edits": left, "head": opened.head,
    }  # fmt: skip
    text = f"{ledger}: undid {', '.join(map(str, event.undone or ()))}; {left} edits left\nhead {opened.head}"
    print_result(document, text, as_json)
