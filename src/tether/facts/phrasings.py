"""Phrasings by rule, for facts that bring none: what their prompt becomes in a chat.

A question of zsRE, WikiBigEdit or QAEdit is also asked as a chat turn and as "Question: … Answer:"; a statement
that stops before its answer, as CounterFact's, becomes a chat turn of the same words.
"""

from transformers import PreTrainedTokenizerFast

from tether.facts.chat import special_tokens
from tether.facts.fact import Fact
from tether.facts.prompt import Turn

_QUESTION = ("?", "？", "؟", "\u037e")  # the last is the Greek question mark


def with_phrasings(tokenizer: PreTrainedTokenizerFast, fact: Fact) -> Fact:
    """The fact with the phrasings that the rule makes, chat turns where the model has a chat template, in which an edit
    then also teaches to end the answer; the fact itself
    where it has phrasings, or its prompt is a chat turn or a rendered one."""
    prompt = fact.prompt
    if fact.phrasings or isinstance(prompt, Turn) or any(token in prompt for token in special_tokens(tokenizer)):
        return fact
    made: list[str | Turn] = [Turn(user=prompt)] if tokenizer.chat_template else []
    if prompt.endswith(_QUESTION):
        made.append(f"Question: {prompt}\nAnswer:")
    end = fact.end or ("chat" if tokenizer.chat_template else False)
    return fact.model_copy(update={"phrasings": tuple(made), "end": end})
