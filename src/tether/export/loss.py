"""What an adapter that is not the whole sum of edits does to their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.facts.chat import render
from tether.facts.fact import Fact
from tether.facts.tokens import Continuation, Pair, tokenize
from tether.models.editable import EditableModel

_AT_ONCE = 64  # facts whose logits are kept: of a vocabulary of 256k words, three tokens each, 400 MB


@dataclass(frozen=True)
class Loss:
    """Of `edits` facts, how many every weight's whole update makes the model say and how many the adapter does, by the
    rule that each token of the answer is the model's own choice; the largest difference of a logit where it is read."""

    edits: int
    alive_whole: int
    alive: int
    largest_logit_difference: float

    def line(self) -> str:
        """As a person reads it."""
        return (
            f"{self.alive} of {self.edits} edits are alive in the adapter, {self.alive_whole} in the merged weights; "
            f"the largest difference of a logit is {self.largest_logit_difference:.2e}"
        )


def measure(
    model: EditableModel, whole: Mapping[str, LowRank], kept: Mapping[str, LowRank], facts: Sequence[Fact]
) -> Loss:
    """The model with `whole` on the unedited weights against the one with `kept`: two forwards a fact. The model
    carries afterwards what it carried before."""
    texts = asked(model, facts)
    alive, apart = [0, 0], 0.0
    for part in (texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)):
        sides = []
        with model.unedited():
            for side, updates in enumerate((whole, kept)):
                with model.provisional(updates):
                    sides.append(logits_of(model, part))
                alive[side] += sum(says(one, text) for one, text in zip(sides[side], part, strict=True))
        apart = max(apart, *(float((a - b).abs().max()) for a, b in zip(*sides, strict=True)))
    return Loss(len(facts), alive[0], alive[1], apart)


def asked(model: EditableModel, facts: Sequence[Fact]) -> list[Continuation]:
    """Every fact's prompt with its new answer."""
    prompts = [render(model.tokenizer, fact.asked[0]) for fact in facts]
    pairs = [
        Pair(text, fact.continuation(text, fact.target_new), "") for text, fact in zip(prompts, facts, strict=True)
    ]
    return tokenize(model.tokenizer, pairs)


@torch.inference_mode()
def logits_of(model: EditableModel, texts: Sequence[Continuation]) -> list[Tensor]:
    """Of every text the logits at its scored positions, t×vocabulary in float32 on the CPU, of the model as it is."""
    return [
        model.hf(torch.tensor([text.ids], device=model.device)).logits[0, text.start - 1 : -1].float().cpu()
        for text in texts
    ]


def says(logits: Tensor, text: Continuation) -> bool:
    """Whether every token of the answer is the choice of the logits (t×vocabulary) before it."""
    return logits.argmax(-1).tolist() == list(text.ids[text.start :])
