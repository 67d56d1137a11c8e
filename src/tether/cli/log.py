"""What a ledger holds, event by event; on one line; or what tells two ledgers apart.

$ tether log my-edits
$ tether log my-edits --summary
$ tether log --diff mine theirs
"""

from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Annotated, Any

import typer

from tether.cli.options import Answer, LedgerPath, printable
from tether.cli.tables import count, number
from tether.ledger import Event, Ledger, difference

OTHER = typer.Argument(help="With --diff: the ledger it is held against.")
DIFF = typer.Option("--diff", help="Facts of one of two ledgers alone, facts with other targets, other settings.")
SUMMARY = typer.Option("--summary", help="One line.")


def log(
    ledger: LedgerPath,
    other: Annotated[Path | None, OTHER] = None,
    *,
    diff: Annotated[bool, DIFF] = False,
    summary: Annotated[bool, SUMMARY] = False,
) -> Answer:
    if diff != (other is not None) or (diff and summary):
        raise typer.BadParameter("--diff goes with two ledgers, and with no --summary", param_hint="OTHER")
    opened = Ledger.open(ledger)
    if other is not None:
        return _difference(opened, Ledger.open(other))
    if summary:
        live, head = len(opened.live()), opened.head
        text = f"{ledger}: {opened.summary()}"
        return Answer({"ledger": str(ledger), "summary": opened.summary(), "live": live, "head": head}, text)
    header, undone = opened.header, opened.undone
    lines = [f"{ledger}: {header.method} on {header.model}, restraint {header.restrain}, seed {header.seed}"]
    lines += [_origin(opened)] if header.origin else []
    lines += [printable(_line(event, undone)) for event in opened.events]
    document = {
        "ledger": str(ledger), "header": header.model_dump(mode="json"), "undone": sorted(undone),
        "events": [event.model_dump(mode="json", exclude_none=True) for event in opened.events],
    }  # fmt: skip
    return Answer(document, "\n".join(lines))


def _origin(ledger: Ledger) -> str:
    sources = [
        f"{count(len(one.edits), 'edit')} of {one.name} at {one.head[:12]}" for one in ledger.header.sources or ()
    ]
    return printable(f"      {'; '.join([str(ledger.header.origin), *sources])}")


def _difference(a: Ledger, b: Ledger) -> Answer:
    found = difference(a, b)
    lines = [f"{one.path}: {one.summary()}" for one in (a, b)]
    differing = {**found.settings, **({"restraints applied": found.restraints} if len({*found.restraints}) > 1 else {})}
    lines += [f"{name}: {one} in {a.path}, {two} in {b.path}" for name, (one, two) in differing.items()]
    for ledger, edits in ((a, found.only_a), (b, found.only_b)):
        lines += [f"only in {ledger.path}: {count(len(edits), 'edit')}", *(f"{e.edit:5d} {_said(e)}" for e in edits)]
    lines += [f"in both, the same: {len(found.same)}", f"in both, with other targets: {len(found.other)}"]
    lines += [f"{one.edit:5d} {_said(one)}\n{two.edit:5d} {_said(two)}" for one, two in found.other]
    document = {
        "a": str(a.path), "b": str(b.path), "only_a": [_fields(e) for e in found.only_a],
        "only_b": [_fields(e) for e in found.only_b],
        "same": [[_fields(e) for e in pair] for pair in found.same],
        "other": [[_fields(e) for e in pair] for pair in found.other],
        "settings": found.settings, "restraints": found.restraints,
    }  # fmt: skip
    return Answer(document, "\n".join(lines))


def _fields(event: Event) -> dict[str, Any]:
    fact = event.fact and event.fact.model_dump(mode="json", include={"subject", "prompt", "target_new", "relation"})
    return {"edit": event.edit, "fact": fact, "reason": event.reason}


def _said(event: Event) -> str:
    """A fact, or what an update without one is of."""
    return printable(event.reason or "" if event.fact is None else f"{event.fact.text} -> {event.fact.target_new}")


def _line(event: Event, undone: Set[int]) -> str:
    why = f": {event.reason}" if event.reason else ""
    if event.kind == "restrain":
        sizes = [(v["update_sigma_max"], v["restrained_sigma_max"]) for v in event.record.values()]
        what = ", ".join(f"{_number(before)} -> {_number(after)}" for before, after in sizes)
        return f"      restrain {event.restrain}: largest σ̂ {what}{f' ({event.reason})' if event.reason else ''}"
    if event.edit is None:
        marked = event.redone if event.kind == "redo" else event.undone
        others = event.undone if event.kind == "redo" else event.redone
        also = f" (takes {'out' if event.kind == 'redo' else 'in'} again: {', '.join(map(str, others or ()))})"
        return f"      {event.kind} {', '.join(map(str, marked or ()))}{also if others else ''}{why}"
    fact = _said(event)
    if event.kind != "edit":
        return f"{event.edit:5d} {event.kind} {fact}{why}"
    mark = " (undone)" if event.edit in undone else ""
    for_other = f" (for {event.record['stands_for']})" if "stands_for" in event.record else ""
    return f"{event.edit:5d} edit{mark}{for_other} {fact} | {', '.join(_parts(event.record))}"


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
    if "error" in record:
        yield f"relative error {_number(record['error'], '.1e')}"
    if "seconds" in record:
        yield f"{record['seconds']:.1f} s"


def _number(value: float | None, form: str = ".2f") -> str:
    """A number of the journal, which holds none for what was not finite."""
    return number(value, form, "not finite")
