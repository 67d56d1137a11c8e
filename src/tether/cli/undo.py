"""Take edits out of a ledger, exactly: as if they had not been added. Later edits are not computed anew.

$ tether undo my-edits 3 7 10-20
$ tether undo my-edits --last 5
"""

from typing import Annotated

import typer

from tether.cli.options import Answer, Edits, LedgerPath, selected
from tether.ledger import Ledger


def undo(
    ledger: LedgerPath,
    edits: Edits = None,
    last: Annotated[int | None, typer.Option(min=1, help="The last N edits that count.")] = None,
) -> Answer:
    opened = Ledger.open(ledger)
    event = opened.undo(*selected(edits, last, [event.edit or 0 for event in opened.live()]))
    now = {"event": event.number, "live_edits": len(opened.live()), "head": opened.head}
    text = f"undid {', '.join(map(str, event.undone or ()))}; {now['live_edits']} edits left\nhead {opened.head}"
    return Answer({"ledger": str(ledger), "undone": event.undone, **now}, f"{ledger}: {text}")
