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
    texts = [render(model.tokenizer, fact.asked[0]) for fact in facts]
    asked = tokenize(
        model.tokenizer,
        [Pair(text, fact.continuation(text, fact.target_new), "") for text, fact in zip(texts, facts, strict=True)],
    )
    with model.unedited():
        before = _logits(model, whole, asked)
        after = _logits(model, kept, asked)
    whole_alive, alive = (
        sum(_says(one, text) for one, text in zip(side, asked, strict=True)) for side in (before, after)
    )
    apart = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    return Loss(len(facts), whole_alive, alive, apart)


@torch.inference_mode()
def _logits(model: EditableModel, updates: Mapping[str, LowRank], asked: Sequence[Continuation]) -> list[Tensor]:
    """Of every text the logits at its scored positions, t×vocabulary in float32 on the CPU."""
    with model.provisional(updates):
        return [
            model.hf(torch.tensor([text.ids], device=model.device)).logits[0, text.start - 1 : -1].float().cpu()
            for text in asked
        ]


def _says(logits: Tensor, text: Continuation) -> bool:
    return logits.argmax(-1).tolist() == list(text.ids[text.start :])
