"""Take edits out of a ledger, exactly: as if they had not been added. Later edits are not computed anew.

$ tether undo my-edits 3 7 10-20
$ tether undo my-edits --last 5
"""

from typing import Annotated

import typer

from tether.cli.options import Answer, Edits, LedgerPath, selected
from tether.cli.tables import count, numbered
from tether.ledger import Event, Ledger


def undo(
    ledger: LedgerPath,
    edits: Edits = None,
    last: Annotated[int | None, typer.Option(min=1, help="The last N edits that count.")] = None,
) -> Answer:
    opened = Ledger.open(ledger)
    event = opened.undo(*selected(edits, last, opened.live_numbers()))
    return marked(opened, event, "undone", "undid {}; {} left")


def marked(ledger: Ledger, event: Event, key: str, words: str) -> Answer:
    """What an undo or a redo did: `key` names its edits, `words` says them and how many count now."""
    edits, live = getattr(event, key), len(ledger.live())
    document = {
        "ledger": str(ledger.path), key: edits, "event": event.number, "live_edits": live, "head": ledger.head,
    }  # fmt: skip
    text = words.format(numbered(edits), count(live, "edit"))
    others = {"undone": event.redone, "redone": event.undone}[key]
    if others:
        document["taken_in_again" if key == "undone" else "taken_out_again"] = others
        text += f" ({count(len(others), 'edit')} that they stood for taken {'in' if key == 'undone' else 'out'} again)"
    return Answer(document, f"{ledger.path}: {text}\nhead {ledger.head}")
