"""A new ledger of edits that exist: those of two ledgers together, or some of one. No edit is computed again.

tether.merge(Ledger.open("a"), Ledger.open("b"), "both", prefer="a")
tether.pick(Ledger.open("a"), [3, 7], "two")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

from tether.constraints.base import parse
from tether.errors import BadSettingsError, WrongModelError
from tether.export.folder import new_folder
from tether.ledger.journal import Event, Header, SourceRecord, now
from tether.ledger.ledger import Attempt, Ledger, Restrain
from tether.ledger.replay import by_file, part_of
from tether.ledger.side_by_side import LedgerDifference, difference, questions
from tether.models.editable import EditableModel

_Part = tuple[Ledger, Set[int]]  # a ledger, and the numbers of the edits that are taken


def merge(
    a: Ledger, b: Ledger, out: str | Path, *, prefer: Literal["a", "b"] | None = None, restrain: Restrain = None,
    model: EditableModel | None = None,
) -> Ledger:  # fmt: skip
    """Write the new ledger `out` with the live edits of `a`, then those of `b`. The updates are summed: no edit is
    computed on a model that carries the other ledger's.

    A question that both answer with one answer is taken from `a` alone. One with two answers is a conflict: `prefer`
    says whose edits of it are taken. At the end the new journal has the restraint that each journal applied last, or
    `restrain` where given; a restraint that asks for W₀ or the moments needs the `model`. New edits go on with a's
    text, seed and prefixes. Both ledgers stay as they are, and `out` appears whole or not at all.

    Raises WrongModelError for ledgers of two models, BadSettingsError for other methods or settings, a conflict without
    `prefer`, edits that share one update of which a part is left out, two restraints, and an `out` that is not empty.
    """
    found = difference(a, b)
    _check_same(a, b, found)
    if _hold_each_other(a):
        raise BadSettingsError(
            f"the solves of {a.path} and of {b.path} carry the keys of their own edits (history), and not of each "
            f"other's: edit the facts of the one onto the other"
        )
    if found.other and prefer is None:
        raise BadSettingsError(_conflicts(a, b, found))
    left_of_a = _answering(a.live(), questions(e for _, e in found.other)) if prefer == "b" else set()
    ours = [event for event in a.live() if event.edit not in left_of_a]
    left_of_b = _answering(b.live(), questions(ours))
    for ledger, left in ((a, left_of_a), (b, left_of_b)):
        _check_whole(ledger, left, "is left out, since the other ledger answers it,")
    last = {str(one.last_restraint()) for one in (a, b)}
    if restrain is None and len(last) > 1:
        what = f"{a.path} ends with the restraint {a.last_restraint() or 'none'}, {b.path} with"
        raise BadSettingsError(f"{what} {b.last_restraint() or 'none'}: name the one of the merged sum (--restrain)")
    parts = [(a, set(a.live_numbers()) - left_of_a), (b, set(b.live_numbers()) - left_of_b)]
    how = "merge: the updates of the sources are summed, no edit was computed anew"
    return _made(out, parts, how, restrain, model)


def pick(
    ledger: Ledger, edits: Sequence[int], out: str | Path, *, restrain: Restrain = None,
    model: EditableModel | None = None,
) -> Ledger:  # fmt: skip
    """Write the new ledger `out` with some live edits of a ledger, in its order and with their factors, bit for bit. Of
    edits of one solve (MEMIT, EMMET) it holds the solution without the others, as after their undo.

    The restraint that the journal applied last, or `restrain` where given, is applied to the new sum at its end; as
    for `merge`. Raises BadSettingsError for an edit that is not live, for a part of the edits that share one update,
    and for an `out` that is not empty.
    """
    taken = set(edits)
    wrong = sorted(taken - set(ledger.live_numbers()))
    if wrong or not taken:
        what = f"edit {wrong[0]} is no live edit" if wrong else "pick needs the number of an edit"
        raise BadSettingsError(f"{what}: see `tether log {ledger.path}` for the numbers")
    if _hold_each_other(ledger) and taken != set(ledger.live_numbers()):
        raise BadSettingsError(
            f"the solves of {ledger.path} carry each other's keys (history): copy the folder and undo the others there"
        )
    if ledger.replay().anew:
        raise BadSettingsError(
            f"edits of {ledger.path} are solved anew, since others before them were undone or redone (history), and a "
            "copy of their factors would not be: copy the folder"
        )
    _check_whole(ledger, taken, "is picked, and")
    return _made(out, [(ledger, taken)], "pick: some edits of the source", restrain, model)


def _hold_each_other(ledger: Ledger) -> bool:
    """Whether what an edit adds depends on which others are live."""
    return bool(ledger.header.settings.get("history"))


def _check_same(a: Ledger, b: Ledger, found: LedgerDifference) -> None:
    """Raise unless both ledgers are of one model, method and settings."""
    one, two = (ledger.header for ledger in (a, b))
    if one.checkpoint != two.checkpoint and None not in (one.checkpoint, two.checkpoint):
        raise WrongModelError(f"{a.path} and {b.path} are of two models: only ledgers of one are merged")
    for name, (ours, theirs) in found.settings.items():
        if name in ("dtype", "method", "editor") or name.startswith("settings."):
            raise BadSettingsError(
                f"{name} is {ours} in {a.path} and {theirs} in {b.path}: only ledgers of one method and settings are "
                "merged"
            )
    if one.fingerprint != two.fingerprint:
        prints = f"fingerprints {one.fingerprint[:12]} and {two.fingerprint[:12]}"
        raise WrongModelError(f"{a.path} and {b.path} are of other unedited weights ({prints}): merge ledgers of one")


def _conflicts(a: Ledger, b: Ledger, found: LedgerDifference) -> str:
    said = [
        f"{ours.fact.text!r} ({ours.edit} of {a.path.name}: {ours.fact.target_new!r}, {theirs.edit} of "
        f"{b.path.name}: {theirs.fact.target_new!r})"
        for ours, theirs in found.other
        if ours.fact is not None and theirs.fact is not None
    ]
    more = f" and {len(said) - 3} more" if said[3:] else ""
    return f"both ledgers answer {', '.join(said[:3])}{more}: say whose answer is taken (--prefer a or --prefer b)"


def _answering(edits: Iterable[Event], asked: Set[object]) -> set[int]:
    return {event.edit for event in edits if event.edit is not None and questions([event]) & asked}


def _check_whole(ledger: Ledger, edits: Set[int], why: str) -> None:
    """Raise BadSettingsError where the edits are a part of those that share one update."""
    apart = sorted(ledger.together(edits) - edits)
    if apart:
        one = min(edit for edit in edits if apart[0] in ledger.together([edit]))
        others = f"{', '.join(map(str, apart[:5]))}{' …' if apart[5:] else ''}"
        raise BadSettingsError(f"edit {one} of {ledger.path} {why} shares one update with {others}: take all, or none")


def _made(out: str | Path, parts: Sequence[_Part], how: str, restrain: Restrain, model: EditableModel | None) -> Ledger:
    """A ledger of the edits of every part, in the order given, with one restraint at its end."""
    first = parts[0][0].header
    restraint = parse(restrain or parts[0][0].last_restraint() or "none")
    sources = tuple(
        SourceRecord(name=ledger.path.resolve().name, head=ledger.head, edits=tuple(sorted(edits)))
        for ledger, edits in parts
    )
    changes = {
        "created": now(), "restrain": str(restraint) if restraint.acts or restrain else first.restrain,
        "joint": "rule", "origin": how, "sources": sources,
    }  # fmt: skip
    if model is not None:
        parts[0][0].check_model(model)
    with new_folder(out) as folder:
        made = Ledger.create(folder, Header.model_validate({**dict(first), **changes}))
        with made.writing():
            for ledger, edits in parts:
                _copy(ledger, edits, made)
            if restraint.acts and made.attempts:
                made.append_restraint(restraint, made.sums(model=model).restrain_recorded(restraint))
        made.verify()
    return Ledger.open(out)


def _copy(ledger: Ledger, edits: Set[int], made: Ledger) -> None:
    """Append edits of a ledger to another, file by file."""
    for events in by_file(event for event in ledger.live() if event.edit in edits).values():
        updates, vectors = part_of(ledger.tensors(events[0]), made.header.weights, events)
        attempts = [
            Attempt("edit", e.fact, _alone(e.record), e.reason, columns=0 if e.shared else e.columns or 1)
            for e in events
        ]
        made.append(attempts, updates, vectors)


def _alone(record: Mapping[str, Any]) -> dict[str, Any]:
    """What was recorded of an edit, without the number of one that stays behind."""
    return {name: value for name, value in record.items() if name != "stands_for"}
