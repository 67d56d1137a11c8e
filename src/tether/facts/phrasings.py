"""Phrasings by rule, for facts that bring none: what their prompt becomes in a chat.

A question of zsRE, WikiBigEdit or QAEdit is also asked as a chat turn and as "Question: … Answer:"; a statement
that stops before its answer, as CounterFact's, becomes a chat turn of the same words.
"""

from tether.facts.fact import Fact
from tether.facts.prompt import Turn

_QUESTION = ("?", "？", "؟", ";")  # the last is the Greek question mark


def with_phrasings(fact: Fact, *, chat: bool) -> Fact:
    """The fact itself where it has phrasings, or its prompt is a chat turn; else with those that the rule makes. `chat`
    says whether the model has a chat template: without one no turn is made."""
    prompt = fact.prompt
    if fact.phrasings or isinstance(prompt, Turn):
        return fact
    made: list[str | Turn] = [Turn(user=prompt)] if chat else []
    if prompt.endswith(_QUESTION):
        made.append(f"Question: {prompt}\nAnswer:")
    return fact.model_copy(update={"phrasings": tuple(made)})
