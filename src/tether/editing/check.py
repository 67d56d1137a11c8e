"""What is wrong with a list of facts for one model, found before a minute is spent on editing."""

from collections.abc import Iterator, Mapping, Sequence

from tether.evaluation.scores import score_ids
from tether.facts.check import FactCheck, check_encoded
from tether.facts.fact import Fact
from tether.facts.tokens import Continuation, EncodedPrompt
from tether.models.editable import EditableModel


def check_facts(
    model: EditableModel, facts: Sequence[Fact], known: Sequence[Fact] | Mapping[str, Fact] = ()
) -> list[FactCheck]:
    """One FactCheck a fact, in order, as `check_encoded` says, for the model as it is now.

    `known` are facts edited before, those of a ledger, by name where they have one. Batched forward passes over prompts
    and targets; changes nothing.
    """

    def answers(prompts: Sequence[EncodedPrompt]) -> Iterator[bool]:
        """Whether greedy decoding gives the target: where every target token is the argmax after those before it."""
        for one in score_ids(model, [Continuation(prompt.ids, prompt.target_start) for prompt in prompts]):
            yield all(one.argmax_correct)

    return check_encoded(model.tokenizer, facts, known, limit=model.limit, answers=answers)
