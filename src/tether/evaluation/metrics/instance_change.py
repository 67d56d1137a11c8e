"""ConceptEdit's instance change: how many instances of an edited concept are no longer taken for instances of it.

Each instance prompt ("Whether Port of Oslo belongs to category harbour?") stands after a Yes and a No in the same
words, and is answered greedily. The change is the share answered Yes by the unedited model less that by the model as it
is now. As in the benchmark's own code an answer with "yes" anywhere in it is Yes, else one with "no" anywhere is No,
whatever the case, and one with neither counts as Yes; how many of those there were is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from tether.evaluation.metrics.base import INSTANCE, Asked, Item, Metric
from tether.evaluation.scores import greedy
from tether.evaluation.statistics.mean import Number, Record, measure
from tether.facts.fact import Fact
from tether.models.editable import EditableModel

if TYPE_CHECKING:
    from tether.evaluation.measurement import Measurement

INSTANCE_CHANGE = "instance_change"
DEMONSTRATION = (  # our own, in the form of the benchmark's questions
    "Whether Lake Geneva belongs to category lake? Yes\nWhether Mount Etna belongs to category novel? No\n"
)
_NEW_TOKENS = 2


class InstanceChange(Metric):
    """How many instances of an edited concept are no longer taken for instances of it (ConceptEdit).

    `before` and `after`: percent answered Yes, with the number of answers that are neither; `change`: before −
    after, its standard error that of the facts' own differences. A record a prompt, `value` from −1 to 1."""

    name = INSTANCE_CHANGE
    asks = (INSTANCE,)
    reports = MappingProxyType({INSTANCE_CHANGE: ("before", "after", "change")})
    against_unedited = frozenset({"before", "after", "change"})
    columns = ((INSTANCE_CHANGE, "change"),)

    def missing(self, model: EditableModel, facts: Sequence[Fact], what: Measurement) -> str | None:
        if any(fact.instances for fact in facts):
            return None
        return (
            "instance_change needs instance prompts, and no fact has any: name facts with `instances`, such as "
            "ConceptEdit's, or another metric"
        )

    def questions(self, items: Iterable[Item]) -> Sequence[str]:
        return list(dict.fromkeys(item.prompt for item in items))

    def answers(self, model: EditableModel, questions: Sequence[str]) -> Mapping[str, str]:
        """In two tokens each."""
        texts = greedy(model, [DEMONSTRATION + prompt for prompt in questions], _NEW_TOKENS)
        return dict(zip(questions, texts, strict=True))

    def measure(self, asked: Asked) -> list[Record]:
        if asked.unedited is None:
            return []
        answers, records = asked.greedy([DEMONSTRATION + item.prompt for item in asked.items], _NEW_TOKENS), []
        for item, after in zip(asked.items, answers, strict=True):
            said = {"before": asked.unedited[item.prompt], "after": after}
            neither = {f"neither_{when}": word(answer) is None for when, answer in said.items()}
            change = _yes(said["before"]) - _yes(said["after"])
            records.append(item.record(INSTANCE_CHANGE, change, kind="change", **said, **neither))
        return records

    def summary(self, records: Sequence[Record], kinds: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Number]]:
        if not kinds:
            return {}
        shares = {when: _share(records, when) for when in ("before", "after")}
        return {INSTANCE_CHANGE: {**shares, "change": measure(records)}}

    def note(self, numbers: Mapping[str, Mapping[str, Number]]) -> str | None:
        shares = numbers.get(INSTANCE_CHANGE, {}).items()
        counts = [f"{share.neither} of {share.prompts} {when}" for when, share in shares if share.neither is not None]
        return f"answers neither Yes nor No, which count as Yes: {', '.join(counts)}" if counts else None


def word(answer: str) -> str | None:
    """ "yes" or else "no", where the letters stand anywhere in an answer ("None" has a no); None for neither."""
    return next((said for said in ("yes", "no") if said in answer.lower()), None)


def _yes(answer: str) -> bool:
    return word(answer) != "no"


def _share(records: Sequence[Record], when: str) -> Number:
    share = measure({"edit": record["edit"], "value": float(_yes(record[when]))} for record in records)
    return share.model_copy(update={"neither": sum(record[f"neither_{when}"] for record in records)})


METRIC = InstanceChange()
