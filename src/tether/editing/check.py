"""What is wrong with a list of facts for one model, found before a minute is spent on editing."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from tether.facts.check import FactCheck, check_encoded
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt, padded
from tether.models.editable import EditableModel

_BATCH = 8  # prompts a forward pass: logits of 8 short prompts stay small for any vocabulary


def check_facts(model: EditableModel, facts: Sequence[Fact], known: Sequence[Fact] = ()) -> list[FactCheck]:
    """One FactCheck a fact, in order, as `check_encoded` says, for the model as it is now.

    `known` are facts edited before, those of a ledger. One batched forward pass over prompts and targets; changes
    nothing.
    """
    return check_encoded(model.tokenizer, facts, known, limit=model.limit, answers=partial(_answered, model))


@torch.no_grad()
def _answered(model: EditableModel, prompts: Sequence[EncodedPrompt]) -> Iterator[bool]:
    """Whether greedy decoding from each bare prompt gives its target: exactly where every target token is the argmax
    after the ones before it, so one forward pass with the target in place decides."""
    for first in range(0, len(prompts), _BATCH):
        batch = prompts[first : first + _BATCH]
        ids, mask = padded([prompt.ids for prompt in batch], model.device)
        best = model.hf(input_ids=ids, attention_mask=mask).logits.argmax(dim=-1)
        for row, prompt in zip(best.tolist(), batch, strict=True):
            start, stop = prompt.target_start, len(prompt.ids)
            yield tuple(row[start - 1 : stop - 1]) == prompt.ids[start:stop]
