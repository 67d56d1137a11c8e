"""`compare`: is the new answer likelier than the one before?

P(target_new) > P(target_true), and on a locality prompt P(its answer) > P(target_new); P is the length-normalised
teacher-forced likelihood. Prompts without both answers do not count.
"""

from collections.abc import Sequence
from types import MappingProxyType

from tether.evaluation.metrics.base import KINDS, Asked, Item, Metric, Pair
from tether.evaluation.statistics.mean import Record


class PrefersNew(Metric):
    """Whether the new answer is likelier than the old one; the paper's metric for CounterFact."""

    name = "compare"
    reports = MappingProxyType({"compare": KINDS})
    tested = ("compare",)
    columns = (("compare", "efficacy"), ("compare", "generalization"), ("compare", "locality"))
    holds = "compare"

    def pairs(self, item: Item) -> Sequence[Pair]:
        if item.answer is None or item.other is None:
            return ()
        return (item.prompt, item.answer), (item.prompt, item.other)

    def measure(self, asked: Asked) -> list[Record]:
        records = []
        for item in asked.items:
            if pairs := self.pairs(item):
                answer, other = (asked.scores[pair].mean for pair in pairs)
                records.append(
                    item.record(
                        "compare", answer > other, log_likelihood=answer, against=str(item.other).strip(), other=other
                    )
                )
        return records


METRIC = PrefersNew()
