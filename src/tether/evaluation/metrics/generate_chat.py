"""`generate_chat`: does the model say the answer when it is asked in its chat?

A fact with chat turns among its prompts is asked those: of the prompts it is edited for (efficacy), its paraphrases and
its locality prompts. One without any is asked its plain prompts as a user's turns. An answer ends with the token that
ends a turn; `says` in `generate.py` has the rules of what an answer says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from tether.evaluation.metrics.base import KINDS, Asked, Item, Metric
from tether.evaluation.metrics.generate import continuations, said, says
from tether.evaluation.statistics.mean import Record
from tether.facts.chat import render
from tether.facts.fact import Fact
from tether.facts.prompt import Turn
from tether.models.editable import EditableModel

if TYPE_CHECKING:
    from tether.evaluation.measurement import Measurement


class GenerateChat(Metric):
    """Whether the greedy answer to a chat turn says the answer, of every prompt that has one."""

    name = "generate_chat"
    reports = MappingProxyType({"generate_chat": KINDS})
    columns = (("generate_chat", "efficacy"),)
    holds = "generate_chat"

    def missing(self, model: EditableModel, facts: Sequence[Fact], what: Measurement) -> str | None:
        if model.tokenizer.chat_template:
            return None
        return "generate_chat asks in the chat, and the model has no chat template: take a chat model, or generate"

    def measure(self, asked: Asked) -> list[Record]:
        wanted = in_chat(asked.model, asked.items)
        return [
            item.record("generate_chat", says(text, said(asked.model, item)), continuation=text)
            for item, text in zip(wanted, continuations(asked, wanted), strict=True)
        ]


def in_chat(model: EditableModel, items: Iterable[Item]) -> list[Item]:
    """The items with an answer as chat turns, as the head of this file says."""
    return [turn for item in items if item.answer is not None for turn in _turns(model, item)]


def _turns(model: EditableModel, item: Item) -> Iterator[Item]:
    fact = item.fact
    if not _has_turns(fact):
        yield _asked_as(model, item, Turn(user=item.prompt))
    elif item.kind == "efficacy":
        yield from (_asked_as(model, item, prompt) for prompt in fact.asked if isinstance(prompt, Turn))
    elif item.turn is not None:
        yield item


def _has_turns(fact: Fact) -> bool:
    """Whether any prompt that is asked here is a chat turn; `Fact.has_turns` counts those of portability too."""
    others = (*fact.paraphrases, *(near.prompt for near in fact.locality))
    return any(isinstance(prompt, Turn) for prompt in (fact.prompt, *fact.phrasings, *others))


def _asked_as(model: EditableModel, item: Item, turn: Turn) -> Item:
    text = render(model.tokenizer, turn)
    answer, other = (one and item.fact.continuation(text, one.strip()) for one in (item.answer, item.other))
    return replace(item, prompt=text, answer=answer, other=other, turn=turn)


METRIC = GenerateChat()
