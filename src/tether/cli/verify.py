"""tether verify"""

from __future__ import annotations

from tether.cli.app import Json, LedgerPath, ModelOrRecorded, app, load_model, show
from tether.ledger import Ledger


@app.command("verify")
def command(ledger: LedgerPath, model: ModelOrRecorded = None, as_json: Json = False) -> None:
    """Check every line and every factors file of a ledger; with --model, that it is the ledger's model."""
    opened = Ledger.open(ledger)
    header = opened.header
    loaded = None if model is None else load_model(model, dtype=header.dtype, anatomy=header.anatomy)
    found = opened.verify(loaded)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items()) or "nothing yet"
    torn = "; a torn last line was dropped" if found["torn_line"] else ""
    show(
        {"ledger": str(ledger), "ok": True, **found},
        f"{ledger}: whole, {found['events']} events ({kinds}){torn}",
        as_json,
    )
