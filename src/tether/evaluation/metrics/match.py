"""`match`: are the tokens of the answer the model's own choice, teacher-forced?

`match_tokens` is the share of the answer's tokens that are the argmax, `match_all` whether all are. The kind
`locality_unchanged` compares with the unedited model instead: of the argmax tokens on a locality prompt and its answer,
those that are the unedited model's on the same text; where a locality prompt has no answer, the one token next to it.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from tether.evaluation.metrics.base import KINDS, Asked, Item, Metric, Pair
from tether.evaluation.scores import score
from tether.evaluation.statistics.mean import Record
from tether.models.editable import EditableModel

UNCHANGED = "locality_unchanged"


class Match(Metric):
    """Whether the tokens of the answer are the argmax, teacher-forced: their share, and all of them."""

    name = "match"
    reports = MappingProxyType({"match_tokens": (*KINDS, UNCHANGED), "match_all": (*KINDS, UNCHANGED)})
    against_unedited = frozenset({UNCHANGED})
    tested = ("match_tokens", "match_all")
    columns = (("match_tokens", "efficacy"), ("match_all", "efficacy"))
    holds = "match_all"

    def pairs(self, item: Item) -> Sequence[Pair]:
        if item.kind == "locality":
            return [_stable(item)]
        return [] if item.answer is None else [(item.prompt, item.answer)]

    def questions(self, items: Iterable[Item]) -> Sequence[Pair]:
        return list(dict.fromkeys(_stable(item) for item in items if item.kind == "locality"))

    def answers(self, model: EditableModel, questions: Sequence[Pair]) -> Mapping[Pair, tuple[int, ...]]:
        """The argmax ids."""
        scores = score(model, questions, join="")
        return {pair: found.argmax_ids for pair, found in zip(questions, scores, strict=True)}

    def measure(self, asked: Asked) -> list[Record]:
        records = []
        for item in asked.items:
            if item.answer is not None:
                records += _both(item, item.kind, asked.scores[item.prompt, item.answer].argmax_correct)
            if item.kind == "locality" and asked.unedited is not None:
                pair, read = _stable(item), None if item.answer is not None else 1
                now, before = asked.scores[pair].argmax_ids[:read], asked.unedited[pair][:read]
                records += _both(item, UNCHANGED, [a == b for a, b in zip(now, before, strict=True)])
        return records


def _stable(item: Item) -> Pair:
    """The text on which a locality prompt's argmax is compared with the unedited model's."""
    return item.prompt, item.answer or item.fact.continuation(item.prompt, item.fact.target_new)


def _both(item: Item, kind: str, correct: Sequence[bool]) -> list[Record]:
    n = len(correct)
    return [
        item.record("match_tokens", sum(correct) / n, kind=kind, n_tokens=n),
        item.record("match_all", all(correct), kind=kind),
    ]


METRIC = Match()
