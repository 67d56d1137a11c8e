"""`portability`: does what follows from an edit follow? (KnowEdit, MQuAKE, WikiBigEdit)

Prompts one or several steps of reasoning further, by another name of the subject, with the relation turned round, or
about another relation that the edit implies. `portability_tokens` is the share of the answer's tokens that are the
argmax, teacher-forced, as the benchmarks have it; `portability_generate` whether the greedy continuation says it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from tether.evaluation.metrics.base import Asked, Item, Metric, Pair
from tether.evaluation.metrics.generate import continuations, said, says
from tether.evaluation.statistics.mean import Number, Record, measure
from tether.facts.fact import PORTABILITY, Fact
from tether.models.editable import EditableModel

if TYPE_CHECKING:
    from tether.evaluation.measurement import Measurement

TOKENS, GENERATE, ALL = "portability_tokens", "portability_generate", "all"


class Portability(Metric):
    """Whether what follows from the edits is answered: a mean for every kind of prompt there is, and one of all."""

    name = "portability"
    asks = PORTABILITY
    reports = MappingProxyType({TOKENS: (ALL, *PORTABILITY), GENERATE: (ALL, *PORTABILITY)})
    columns = ((TOKENS, ALL), (GENERATE, ALL))
    tested = (TOKENS, GENERATE)

    def missing(self, model: EditableModel, facts: Sequence[Fact], what: Measurement) -> str | None:
        lack = "portability needs prompts that follow from an edit, and no fact has any: name facts with `portability`"
        return None if any(fact.portability for fact in facts) else lack

    def pairs(self, item: Item) -> Sequence[Pair]:
        return [(item.prompt, str(item.answer))]

    def measure(self, asked: Asked) -> list[Record]:
        records = []
        for item, text in zip(asked.items, continuations(asked, asked.items), strict=True):
            answer = str(item.answer)
            correct = asked.scores[item.prompt, answer].argmax_correct
            records.append(item.record(TOKENS, sum(correct) / len(correct), n_tokens=len(correct)))
            records.append(item.record(GENERATE, says(text, said(asked.model, item)), continuation=text))
        return records

    def summary(self, records: Sequence[Record], kinds: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Number]]:
        there = {record["kind"] for record in records}
        kinds = {name: tuple(kind for kind in its if kind in there) for name, its in kinds.items()}
        found = super().summary(records, kinds)
        of_all = {name: measure(record for record in records if record["metric"] == name) for name in kinds}
        return {name: {ALL: of_all[name], **its} for name, its in found.items()}


METRIC = Portability()
