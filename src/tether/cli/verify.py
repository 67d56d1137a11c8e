"""Check every line and every factors file of a ledger; with --model, that it is the ledger's model.

A ledger whose last lines were removed looks whole. --head finds that: keep the head that edit, undo and redo print.

$ tether verify my-edits
$ tether verify my-edits --model smollm2 --head 3f2a9c41
"""

from typing import Annotated

import typer

from tether.cli.loading import load_model
from tether.cli.options import Answer, LedgerPath, ModelOrRecorded
from tether.cli.tables import count
from tether.ledger import Ledger

HEAD = typer.Option(metavar="SHA", help="A head printed before, or its first 8 digits: it must be in the journal.")


def verify(ledger: LedgerPath, model: ModelOrRecorded = None, head: Annotated[str | None, HEAD] = None) -> Answer:
    opened = Ledger.open(ledger)
    header = opened.header
    loaded = None if model is None else load_model(model, dtype=header.dtype, anatomy=header.anatomy)
    found = opened.verify(loaded, head=head)
    kinds = ", ".join(f"{n} {kind}" for kind, n in found["kinds"].items()) or "nothing yet"
    torn = "; a torn last line was dropped" if found["torn_line"] else ""
    after = found.get("events_after_head")
    since = "" if after is None else f"\n{head}: found, with {count(after, 'event')} after it"
    text = f"{ledger}: whole, {count(found['events'], 'event')} ({kinds}){torn}{since}\nhead {found['head']}"
    return Answer({"ledger": str(ledger), "ok": True, **found}, text)
