"""What edited facts were asked, and what the model said before the edits and after: from stored items, no model is run.

found = exchanges(results, ledger)      # None where no answers were kept
found.shown[0].asked, found.shown[0].unedited, found.shown[0].edited
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tether.evaluation.results import IN_CONTEXT, Results, Row, RowKey
from tether.evaluation.statistics.mean import Record
from tether.facts.fact import Fact
from tether.facts.prompt import said_in
from tether.ledger import Ledger

_METRICS = ("generate_chat", "generate")  # whose items hold answers, the first preferred
_KINDS = ("generalization", "efficacy")
_EACH = 5  # facts that are said, and as many that are not

T = TypeVar("T")


@dataclass(frozen=True)
class Exchange:
    """A question about one edit's fact, and the answers. `said`: whether the edited model's says the new one.
    `unedited` None: it was not measured."""

    edit: int
    asked: str
    unedited: str | None
    edited: str
    target_new: str
    said: bool


@dataclass(frozen=True)
class Exchanges:
    """What the model of `row` was asked. Of `facts` facts `said` are said; `shown` are some of each, in order."""

    row: Row
    facts: int
    said: int
    shown: tuple[Exchange, ...]


def exchanges(results: Results, ledger: Ledger | None = None) -> Exchanges | None:
    """One question a fact, for the last row with answers: a held-out chat turn where one was asked, else a paraphrase,
    else the edited prompt.

    Shown are five facts that are said and five that are not, as far as there are, each evenly spread over the edits.
    The ledger's facts tell what the user says in a rendered turn; without it the text is given as it was asked.
    """
    items = [item for item in results.items if item.get("metric") in _METRICS and item.get("kind") in _KINDS
             and isinstance(item.get("continuation"), str)]  # fmt: skip
    answered = {_row(item) for item in items}
    edited = [row for row in results.rows if row.edits and row.restraint != IN_CONTEXT]
    rows = [row for row in edited if row.key in answered]
    if not rows:
        return None
    row = max(reversed(rows), key=lambda row: (row.edits, bool(row.spectrum)))  # of equal ones the last
    unedited = {row.key for row in results.rows if row.unedited}
    before = {_question(item): item["continuation"] for item in items if _row(item) in unedited}
    events = () if ledger is None else ledger.events
    facts = {event.edit: event.fact for event in events if event.edit is not None and event.fact is not None}
    chosen: dict[int, tuple[tuple[bool, ...], Exchange]] = {}
    for item in items:
        if _row(item) != row.key:
            continue
        edit, prompt = item["edit"], item["prompt"]
        asked = words_of(facts.get(edit), prompt)
        held_out = item["kind"] == _KINDS[0]
        rank = (held_out and asked != prompt, held_out, item["metric"] == _METRICS[0])
        if edit not in chosen or rank > chosen[edit][0]:
            answers = before.get(_question(item)), item["continuation"]
            chosen[edit] = rank, Exchange(edit, asked, *answers, str(item.get("target", "")), item["value"] == 1)
    every = [chosen[edit][1] for edit in sorted(chosen)]
    said, unsaid = ([one for one in every if one.said is wanted] for wanted in (True, False))
    shown = sorted([*spread(said, _EACH), *spread(unsaid, _EACH)], key=lambda one: one.edit)
    return Exchanges(row, len(every), len(said), tuple(shown))


def spread(every: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly spread from the first to the last."""
    if len(every) <= most:
        return list(every)
    return [every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)]


def words_of(fact: Fact | None, prompt: str) -> str:
    """What the user says in a prompt that a chat template made of one of the fact's; any other prompt as it is."""
    words = [] if fact is None else [said_in(one).strip() for one in (*fact.asked, *fact.paraphrases)]
    return prompt if prompt.strip() in words else max((one for one in words if one in prompt), key=len, default=prompt)


def _row(item: Record) -> RowKey:
    return item["edits"], item["restraint"]


def _question(item: Record) -> tuple[int, str, str]:
    return item["edit"], item["metric"], item["prompt"]
