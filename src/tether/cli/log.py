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
        what = ", ".join(
            f"{_number(v['update_sigma_max'])} -> {_number(v['restrained_sigma_max'])}" for v in record.values()
        )
        return f"      restrain {event.restrain}: largest σ̂ {what}{f' ({event.reason})' if event.reason else ''}"
    if event.kind in ("undo", "guard"):
        why = f": {event.reason}" if event.reason else ""
        return f"      {event.kind} {', '.join(map(str, event.undone or ()))}{why}"
    fact = "" if event.fact is None else f"{event.fact.text} -> {event.fact.target_new}"
    if event.kind != "edit":
        return f"{event.edit or 0:5d} {event.kind} {fact}: {event.reason}"
    mark = " (undone)" if event.edit in undone else ""
    kappa = f"κ {_number(record['kappa'], '.1f')}, " if "kappa" in record else ""  # not measured in every edit
    health = f"{record['health']}, " if "health" in record else ""
    return (
        f"{event.edit or 0:5d} edit{mark} {fact} | loss {_number(record['loss_first'])} -> "
        f"{_number(record['loss_last'])} in {record['steps']:.0f} steps, ‖ΔW‖ {_number(record['norm'])}, "
        f"{kappa}{health}{record['seconds']:.1f} s"
    )


def _number(value: float | None, form: str = ".2f") -> str:
    """A number of the journal, which holds none for what was not finite."""
    return "not finite" if value is None else format(value, form)
