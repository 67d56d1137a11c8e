"""tether log"""

from __future__ import annotations

from tether.cli.app import Json, LedgerPath, app, show
from tether.ledger import Event, Ledger


@app.command("log")
def command(ledger: LedgerPath, as_json: Json = False) -> None:
    """What a ledger holds, event by event."""
    opened = Ledger.open(ledger)
    undone = opened.undone
    header = opened.header
    lines = [f"{ledger}: {header.method} on {header.model}, restraint {header.restrain}, seed {header.seed}"]
    lines += [_line(event, undone) for event in opened.events]
    document = {
        "ledger": str(ledger), "header": header.model_dump(mode="json"), "undone": sorted(undone),
        "events": [event.model_dump(mode="json", exclude_none=True) for event in opened.events],
    }  # fmt: skip
    show(document, "\n".join(lines), as_json)


def _line(event: Event, undone: frozenset[int]) -> str:
    record = event.record
    if event.kind == "restrain":
        what = ", ".join(f"{v['update_sigma_max']:.2f} -> {v['restrained_sigma_max']:.2f}" for v in record.values())
        return f"      restrain {event.restrain}: largest σ̂ {what}{f' ({event.reason})' if event.reason else ''}"
    if event.kind in ("undo", "guard"):
        why = f": {event.reason}" if event.reason else ""
        return f"      {event.kind} {', '.join(map(str, event.undone or ()))}{why}"
    fact = "" if event.fact is None else f"{event.fact.text} -> {event.fact.target_new}"
    if event.kind != "edit":
        return f"{event.edit or 0:5d} {event.kind} {fact}: {event.reason}"
    mark = " (undone)" if event.edit in undone else ""
    return (
        f"{event.edit or 0:5d} edit{mark} {fact} | loss {record['loss_first']:.2f} -> {record['loss_last']:.2f} in "
        f"{record['steps']:.0f} steps, ‖ΔW‖ {record['norm']:.2f}, κ {record['kappa']:.1f}, {record['health']}, "
        f"{record['seconds']:.1f} s"
    )
