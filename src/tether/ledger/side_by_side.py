"""What tells two ledgers apart: facts of one alone, facts to which they give other answers, settings, restraints.

found = tether.difference(Ledger.open("a"), Ledger.open("b"))
found.other                                 # pairs of edits with one question and two answers
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tether.facts.prompt import said_in
from tether.ledger.journal import Event
from tether.ledger.ledger import Ledger

_COMPARED = ("checkpoint", "fingerprint", "dtype", "method", "restrain", "every", "seed", "threads", "prefixes")


@dataclass(frozen=True)
class LedgerDifference:
    """Two ledgers, `a` and `b`, by their live edits. An edit whose question a later one of the same ledger answers anew
    counts for nothing here.

    `only_a`, `only_b`: edits whose question the other does not answer. `same`: (edit of a, edit of b) with one question
    and one answer. `other`: the same with two answers. `settings`: name -> (in a, in b), of what the edits depend on;
    `restraints`: what each journal applied, in words.
    """

    only_a: tuple[Event, ...]
    only_b: tuple[Event, ...]
    same: tuple[tuple[Event, Event], ...]
    other: tuple[tuple[Event, Event], ...]
    settings: Mapping[str, tuple[Any, Any]]
    restraints: tuple[str, str]


def difference(a: Ledger, b: Ledger) -> LedgerDifference:
    """Compare two ledgers, also of different models. Neither is changed, and no factors file is read.

    Two facts ask the same where they have one subject, and one relation or one prompt (a phrasing counts as one);
    updates without a fact are the same where their factors are.
    """
    first, second = _standing(a), _standing(b)
    pairs = {(one.number, first[key].number): (first[key], one) for key, one in second.items() if key in first}
    found = [pairs[numbers] for numbers in sorted(pairs, key=lambda numbers: numbers[::-1])]
    same = tuple(pair for pair in found if _answer(pair[0]) == _answer(pair[1]))
    other = tuple(pair for pair in found if _answer(pair[0]) != _answer(pair[1]))
    ours, theirs = _settings(a), _settings(b)
    return LedgerDifference(
        _apart(first, {one.number for one, _ in found}), _apart(second, {one.number for _, one in found}), same, other,
        {name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)},
        (a.restraint_in_words(), b.restraint_in_words()),
    )  # fmt: skip


def questions(edits: Iterable[Event]) -> set[Hashable]:
    """What the edits answer, or for updates without a fact their factors: edits that share any of it are of one
    question."""
    return {key for event in edits for key in _keys(event)}


def _keys(event: Event) -> set[Hashable]:
    if event.fact is None:
        return {("factors", event.sha256)}
    fact = event.fact
    prompts = [("prompt", " ".join(said_in(prompt).split())) for prompt in (fact.prompt, *fact.phrasings)]
    relations = [] if fact.relation is None else [("relation", fact.relation)]
    return {(fact.subject_key, *asked) for asked in (*prompts, *relations)}


def _answer(event: Event) -> str | None:
    return None if event.fact is None else " ".join(event.fact.target_new.split())


def _standing(ledger: Ledger) -> dict[Hashable, Event]:
    """Of every question the last live edit that answers it."""
    return {key: event for event in ledger.live() for key in _keys(event)}


def _apart(standing: Mapping[Hashable, Event], shared: set[int]) -> tuple[Event, ...]:
    edits = {event.number: event for event in standing.values() if event.number not in shared}
    return tuple(edits[number] for number in sorted(edits))


def _settings(ledger: Ledger) -> dict[str, Any]:
    """What the edits depend on by name, without what names a place on one machine."""
    header = ledger.header.model_dump(mode="json")
    found = {name: header[name] for name in _COMPARED}
    found |= {f"settings.{name}": value for name, value in header["settings"].items()}
    found |= {f"corpus.{name}": value for name, value in header["corpus"].items() if name != "path"}
    found |= {f"versions.{name}": value for name, value in header["versions"].items()}
    found["editor"] = None if header["editor"] is None else header["editor"]["sha256"]
    return found
