"""Bystanders: prompts of the same form as a fact's own, about other subjects, whose answers must stay as they are.

    subjects = bystander_subjects(fact, "keep", 8)              # other companies, where the fact is about a company
    asked = [about(prompt, subject) for prompt in (fact.prompt, *fact.phrasings) for subject in subjects]

The subjects come from a list by kind that is part of tether. One half of it serves edits, to hold them back, and the
other half measures what they did, so that no bystander is measured that an edit was held back by.
"""

import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Literal

from tether.errors import BadFactError
from tether.facts.fact import Fact
from tether.facts.prompt import Turn, about

Part = Literal["keep", "measure"]


@cache
def kinds() -> Mapping[str, tuple[str, ...]]:
    """The packaged subjects by kind: a company, a city, … All are real and known, and written for this project."""
    found = json.loads((resources.files("tether") / "data" / "subjects.json").read_text("utf-8"))
    return MappingProxyType({kind: tuple(names) for kind, names in found.items()})


def bystander_subjects(fact: Fact, part: Part, number: int, *, kind: str | None = None) -> list[str]:
    """At most `number` subjects of `kind` (None: the fact's own; where it has none, of all kinds), in an
    order that depends on the fact's relation alone: the facts of a relation share their bystanders. Never the fact's
    own subject, with or without "the". Raises BadFactError for a kind that is not in the list."""
    every = kinds()
    wanted = kind or fact.kind
    if wanted is not None and wanted not in every:
        raise BadFactError(f"kind {wanted!r} of {fact.subject!r}: choose from {', '.join(every)}, or leave it out")
    first = 0 if part == "keep" else 1
    chosen = [name for one in ([wanted] if wanted else sorted(every)) for name in every[one][first::2]]
    random.Random(f"{relation_of(fact)}/{part}").shuffle(chosen)
    own = fact.subject_key.removeprefix("the ")
    return [name for name in chosen if name.casefold().removeprefix("the ") != own][:number]


def relation_of(fact: Fact) -> str:
    """What facts that ask the same of other subjects have in common: their `relation`, else their prompt."""
    return fact.relation or str(fact.prompt)


def asked_of(fact: Fact, subjects: Sequence[str]) -> list[str | Turn]:
    """Every prompt that the fact is edited for, asked of each of the subjects."""
    return [about(prompt, subject) for prompt in (fact.prompt, *fact.phrasings) for subject in subjects]
