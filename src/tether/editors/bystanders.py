"""Keys that an edit must not move: those of the fact's own prompts, asked of other subjects.

They join the moments in the metric of every solve, C + w·E[b bᵀ] over their keys b, as keys with nothing to write do. A
fact's update then keeps away from what its prompts have in common with the same prompts about somebody else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tether.editors.moments import Moments
from tether.errors import BadFactError
from tether.facts.bystanders import bystander_subjects
from tether.facts.chat import template
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt, encode, too_long
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import align, keys_and_states

_ROWS = 128  # prompts a forward


@dataclass(frozen=True)
class Metric:
    """C of a layer with the keys of bystanders (n×q, float64 on the CPU) in it, each with the share `weight`/n."""

    moments: Moments
    keys: Float[Tensor, "n q"]
    weight: float
    ridge: float

    def solve(self, k: Float[Tensor, "*m q"]) -> Float[Tensor, "*m q"]:
        """(C + ridge·mean(diag C)·I + weight·E[b bᵀ])⁻¹k of one key or of each of many, float64, by Woodbury."""
        x = self.moments.solve(k, ridge=self.ridge)
        if not (len(self.keys) and self.weight):
            return x
        solved, factor = self._solved
        inner = x.reshape(-1, x.shape[-1]) @ self.keys.mT
        return x - (torch.cholesky_solve(inner.mT, factor).mT @ solved).reshape(x.shape)

    @cached_property
    def _solved(self) -> tuple[Tensor, Tensor]:
        """C⁻¹B as rows, and the Cholesky factor of n/weight·I + BᵀC⁻¹B."""
        solved = self.moments.solve(self.keys, ridge=self.ridge)
        gram = self.keys @ solved.mT
        gram = (gram + gram.mT) / 2
        gram.diagonal().add_(len(self.keys) / self.weight)
        return solved, torch.linalg.cholesky(gram)


def bystander_prompts(model: EditableModel, facts: Sequence[Fact], number: int) -> list[EncodedPrompt]:
    """Every prompt that the facts are edited for, asked of `number` other subjects each, every text once, and never of
    a subject of these facts. Those with no token of their own for the subject, or too long for the model, are left
    out."""
    found: dict[tuple[int, ...], EncodedPrompt] = {}
    edited = {fact.subject_key for fact in facts}
    for fact in facts if number else ():
        others = bystander_subjects(fact, "keep", number + len(facts))
        subjects = [name for name in others if " ".join(name.split()).casefold() not in edited][:number]
        for prompt in (fact.prompt, *fact.phrasings):
            text = template(model.tokenizer, prompt)
            for subject in subjects:
                try:
                    encoded = encode(model.tokenizer, text, subject)
                except BadFactError:
                    continue
                if not too_long(model.limit, text, [encoded.ids]):
                    found.setdefault(encoded.ids, encoded)
    return list(found.values())


def bystander_keys(model: EditableModel, prompts: Sequence[EncodedPrompt], layer: int) -> Float[Tensor, "n q"]:
    """The inputs of the layer's projection at the subject of every prompt, of the model as it is now; float64 on the
    CPU. Changes nothing."""
    keys = [torch.zeros(0, model.weight(model.weight_name(layer)).shape[1], dtype=torch.float64)]
    for start in range(0, len(prompts), _ROWS):
        found, _ = keys_and_states(model, align(prompts[start : start + _ROWS], model.device), layer, layer)
        keys.append(found.cpu().double())
    return torch.cat(keys)
