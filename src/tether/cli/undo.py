"""tether undo"""

from __future__ import annotations

from typing import Annotated

import typer

from tether.cli.app import Json, LedgerPath, app, show
from tether.ledger import Ledger


@app.command("undo")
def command(
    ledger: LedgerPath, edits: Annotated[list[int], typer.Argument(help="Numbers of edits.")], as_json: Json = False
) -> None:
    """Take edits out of a ledger, exactly: as if they had not been added. Later edits are not computed anew."""
    opened = Ledger.open(ledger)
    event = opened.undo(*edits)
    left = len(opened.live())
    show({"ledger": str(ledger), "undone": event.undone, "event": event.number, "live_edits": left},
         f"{ledger}: undid {', '.join(map(str, event.undone or ()))}; {left} edits left", as_json)  # fmt: skip
