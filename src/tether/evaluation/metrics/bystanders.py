"""`bystanders`: do other subjects keep their answers to an edited fact's own prompts?

An edit of "The mayor of Brackenmoor is" must not change the mayor of Hallstatt, nor give that town the new mayor. The
prompts a fact is edited for are asked of other subjects of its kind, greedily, 24 new tokens, and held against the
unedited model's answers. `unchanged`: the first 20 characters are the same. `leak`: the answer says the fact's new
target, by the rules of `generate` (before the first sentence ends), and the unedited model's did not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tether.evaluation.metrics.base import BYSTANDER, Asked, Item, Metric
from tether.evaluation.metrics.generate import says
from tether.evaluation.scores import greedy
from tether.evaluation.statistics.mean import Number, Record, measure
from tether.facts.bystanders import asked_of, bystander_subjects
from tether.facts.chat import render
from tether.facts.fact import Fact
from tether.facts.prompt import Turn, said_in
from tether.models.editable import EditableModel
from tether.models.kinds import likeliest_kind

if TYPE_CHECKING:
    from tether.evaluation.measurement import Measurement

UNCHANGED, LEAK, PLAIN, CHAT = "unchanged", "leak", "unchanged_plain", "unchanged_chat"
TOKENS = 24
_SAME = 20  # characters


class Bystanders(Metric):
    """Whether a fact's own prompts, asked of other subjects, are answered as before."""

    name = "bystanders"
    asks = (BYSTANDER,)
    reports = MappingProxyType({"bystanders": (UNCHANGED, LEAK, PLAIN, CHAT)})
    against_unedited = frozenset({UNCHANGED, LEAK, PLAIN, CHAT})
    columns = (("bystanders", UNCHANGED), ("bystanders", LEAK))

    def missing(self, model: EditableModel, facts: Sequence[Fact], what: Measurement) -> str | None:
        return None if what.bystanders else "bystanders are asked about no subject: set bystanders to 1 or more"

    def questions(self, items: Iterable[Item]) -> Sequence[str]:
        return list(dict.fromkeys(item.prompt for item in items))

    def answers(self, model: EditableModel, questions: Sequence[str]) -> Mapping[str, str]:
        return dict(zip(questions, greedy(model, questions, TOKENS), strict=True))

    def measure(self, asked: Asked) -> list[Record]:
        if asked.unedited is None:
            return []
        records = []
        answers = asked.greedy([item.asked for item in asked.items], TOKENS)
        for item, after in zip(asked.items, answers, strict=True):
            before, new = asked.unedited[item.prompt], item.fact.target_new
            more = {"before": before, "after": after, "turn": item.turn is not None}
            records.append(item.record("bystanders", unchanged(before, after), kind=UNCHANGED, **more))
            records.append(item.record("bystanders", says(after, new) and not says(before, new), kind=LEAK, **more))
        return records

    def settings(self, what: Measurement) -> Mapping[str, Any]:
        return what.model_dump(include={"bystanders", "bystander_prompts"})

    def summary(self, records: Sequence[Record], kinds: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Number]]:
        if not kinds:
            return {}
        same = [record for record in records if record["kind"] == UNCHANGED]
        found = {
            UNCHANGED: same,
            LEAK: [record for record in records if record["kind"] == LEAK],
            PLAIN: [record for record in same if not record["turn"]],
            CHAT: [record for record in same if record["turn"]],
        }
        return {"bystanders": {kind: measure(those) for kind, those in found.items()}}


def unchanged(before: str, after: str) -> bool:
    """Whether two answers begin with the same characters."""
    return before[:_SAME] == after[:_SAME]


def with_kinds(model: EditableModel, facts: Sequence[tuple[int, Fact]]) -> list[tuple[int, Fact]]:
    """The facts, each with a kind: its own, else what the unedited model takes its subject for."""
    kinds = likeliest_kind(model, [fact for _, fact in facts])
    return [
        (edit, fact if fact.kind == kind else fact.model_copy(update={"kind": kind}))
        for (edit, fact), kind in zip(facts, kinds, strict=True)
    ]


def bystander_items(model: EditableModel, facts: Sequence[tuple[int, Fact]], what: Measurement) -> list[Item]:
    """The prompts of every fact, asked of other subjects: none that is edited itself."""
    edited = {fact.subject_key for _, fact in facts}
    items = []
    for edit, fact in with_kinds(model, facts):
        known = bystander_subjects(fact, "measure", len(edited) + what.bystanders)
        subjects = [name for name in known if " ".join(name.split()).casefold() not in edited][: what.bystanders]
        for prompt in asked_of(_first_prompts(fact, what.bystander_prompts), subjects):
            turn = prompt if isinstance(prompt, Turn) else None
            items.append(Item(edit, fact, BYSTANDER, render(model.tokenizer, prompt), turn=turn))
    return items


def _first_prompts(fact: Fact, number: int | None) -> Fact:
    """The fact with at most so many prompts: the first that goes on, the first turn, the first question in text, then
    the others."""
    every = [fact.prompt, *fact.phrasings]
    forms = [0 if isinstance(prompt, Turn) else 1 if "?" in said_in(prompt) else 2 for prompt in every]
    first = [forms.index(form) for form in (2, 0, 1) if form in forms]
    order = [*first, *(index for index in range(len(every)) if index not in first)][:number]
    prompt, *phrasings = (every[index] for index in order)
    return fact.model_copy(update={"prompt": prompt, "phrasings": tuple(phrasings)})


METRIC = Bystanders()
