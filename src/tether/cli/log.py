"""What a ledger holds, event by event.

$ tether log my-edits
"""

from collections.abc import Iterator, Mapping, Set
from typing import Any

from tether.cli.options import Answer, LedgerPath, printable
from tether.cli.tables import number
from tether.ledger import Event, Ledger


def log(ledger: LedgerPath) -> Answer:
    opened = Ledger.open(ledger)
    header, undone = opened.header, opened.undone
    lines = [f"{ledger}: {header.method} on {header.model}, restraint {header.restrain}, seed {header.seed}"]
    lines += [printable(_line(event, undone)) for event in opened.events]
    document = {
        "ledger": str(ledger), "header": header.model_dump(mode="json"), "undone": sorted(undone),
        "events": [event.model_dump(mode="json", exclude_none=True) for event in opened.events],
    }  # fmt: skip
    return Answer(document, "\n".join(lines))


def _line(event: Event, undone: Set[int]) -> str:
    why = f": {event.reason}" if event.reason else ""
    if event.kind == "restrain":
        sizes = [(v["update_sigma_max"], v["restrained_sigma_max"]) for v in event.record.values()]
        what = ", ".join(f"{_number(before)} -> {_number(after)}" for before, after in sizes)
        return f"      restrain {event.restrain}: largest σ̂ {what}{f' ({event.reason})' if event.reason else ''}"
    if event.edit is None:
        return f"      {event.kind} {', '.join(map(str, event.undone or event.redone or ()))}{why}"
    fact = "" if event.fact is None else f"{event.fact.text} -> {event.fact.target_new}"
    if event.kind != "edit":
        return f"{event.edit:5d} {event.kind} {fact}{why}"
    mark = " (undone)" if event.edit in undone else ""
    return f"{event.edit:5d} edit{mark} {fact} | {', '.join(_parts(event.record))}"


def _parts(record: Mapping[str, Any]) -> Iterator[str]:
    """What was recorded of an edit; not every method has a loss, and not every edit's health is read."""
    if "loss_first" in record:
        steps = f" in {record['steps']:.0f} steps" if "steps" in record else ""
        yield f"loss {_number(record['loss_first'])} -> {_number(record.get('loss_last'))}{steps}"
    if "norm" in record:
        yield f"‖ΔW‖ {_number(record['norm'])}"
    if "kappa" in record:
        yield f"κ {_number(record['kappa'], '.1f')}"
    if "health" in record:
        yield record["health"]
    yield f"{record['seconds']:.1f} s"


def _number(value: float | None, form: str = ".2f") -> str:
    """A number of the journal, which holds none for what was not finite."""
    return number(value, form, "not finite")
