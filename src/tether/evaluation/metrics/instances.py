"""ConceptEdit's instance change: how many instances of an edited concept are no longer taken for instances of it.

Each instance prompt ("Whether Port of Oslo belongs to category harbour?") stands behind a Yes and a No in the same
words, and is answered greedily. The change is the share answered Yes by the unedited model less that by the model as it
is now. As in the benchmark's own code an answer with "yes" anywhere in it is Yes, else one with "no" anywhere is No,
whatever the case, and one with neither counts as Yes; how many of those there were is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tether.evaluation.scores import greedy
from tether.evaluation.statistics.mean import Answered, Measure, Record, measure
from tether.facts.fact import Fact
from tether.models.editable import EditableModel

INSTANCE_CHANGE = "instance_change"
DEMONSTRATION = (  # our own, in the form of the benchmark's questions
    "Whether Lake Geneva belongs to category lake? Yes\nWhether Mount Etna belongs to category novel? No\n"
)
_NEW_TOKENS = 2

Answers = Mapping[str, str]  # instance prompt -> what it is continued with


def instance_answers(model: EditableModel, facts: Iterable[tuple[int, Fact]]) -> Answers:
    """What the model as it is now says to every instance prompt of `facts`, in two tokens. It is not changed."""
    prompts = list(dict.fromkeys(prompt for _, fact in facts for prompt in fact.instances))
    texts = greedy(model, [DEMONSTRATION + prompt for prompt in prompts], _NEW_TOKENS)
    return dict(zip(prompts, texts, strict=True))


def instance_change(
    facts: Sequence[tuple[int, Fact]], before: Answers, after: Answers
) -> tuple[dict[str, Measure], list[Record]]:
    """`before` and `after`: percent answered Yes, with the number of answers that are neither; `change`: before −
    after, its standard error that of the facts' own differences. A record a prompt, `value` from −1 to 1."""
    records = [
        {
            "edit": edit,
            "fact": fact.id,
            "metric": INSTANCE_CHANGE,
            "kind": "change",
            "prompt": prompt,
            "value": float(_yes(before[prompt]) - _yes(after[prompt])),
            "before": before[prompt],
            "after": after[prompt],
            "neither_before": word(before[prompt]) is None,
            "neither_after": word(after[prompt]) is None,
        }
        for edit, fact in facts
        for prompt in fact.instances
    ]
    return {when: _answered(records, when) for when in ("before", "after")} | {"change": measure(records)}, records


def word(answer: str) -> str | None:
    """ "yes" or else "no", where the letters stand anywhere in an answer ("None" has a no); None for neither."""
    return next((said for said in ("yes", "no") if said in answer.lower()), None)


def _yes(answer: str) -> bool:
    return word(answer) != "no"


def _answered(records: Sequence[Record], when: str) -> Answered:
    found = measure({"edit": record["edit"], "value": float(_yes(record[when]))} for record in records)
    return {**found, "neither": sum(record[f"neither_{when}"] for record in records)}
