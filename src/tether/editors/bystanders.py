"""Keys that an edit must not move: those of the fact's own prompts, asked of other subjects.

They join the moments in the metric of every solve, C + w·E[b bᵀ] over their keys b, as keys with nothing to write do. A
fact's update then keeps away from what its prompts have in common with the same prompts about somebody else.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.errors import BadFactError
from tether.facts.bystanders import bystander_subjects
from tether.facts.chat import template
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt, encode, too_long
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import AlignedPrompts, align, forward_until, hooks
from tether.models.kinds import likeliest_kind

_TOKENS = 4096  # of a forward


def bystander_prompts(model: EditableModel, facts: Sequence[Fact], number: int) -> list[EncodedPrompt]:
    """Every prompt that the facts are edited for, asked of `number` other subjects each, every text once, and never of
    a subject of these facts. Those with no token of their own for the subject, or too long for the model, are left
    out."""
    found: dict[tuple[int, ...], EncodedPrompt] = {}
    edited = {fact.subject_key for fact in facts}
    for fact, kind in zip(facts, likeliest_kind(model, facts), strict=True) if number else ():
        others = bystander_subjects(fact, "keep", number + len(facts), kind=kind)
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


def keys_of(
    model: EditableModel, prompts: Sequence[EncodedPrompt], layers: Sequence[int]
) -> dict[int, Float[Tensor, "n q"]]:
    """The inputs of every layer's projection at the subject of every prompt, of the model as it is now, in one pass
    that stops after the last layer; float64 on the CPU. Changes nothing."""
    found: dict[int, list[Tensor]] = {
        layer: [torch.zeros(0, model.weight(model.weight_name(layer)).shape[1], dtype=torch.float64)]
        for layer in layers
    }
    each = max(1, _TOKENS // max((len(prompt.ids) for prompt in prompts), default=1))
    for start in range(0, len(prompts), each):
        rows = align(prompts[start : start + each], model.device)

        def see(layer: int, _: nn.Module, args: tuple[Tensor, ...], rows: AlignedPrompts = rows) -> None:
            found[layer].append(rows.at_anchor(args[0]).cpu().double())

        with hooks(*(model.projection(layer).register_forward_pre_hook(partial(see, layer)) for layer in layers)):
            forward_until(model, model.projection(max(layers)), **rows.arguments)
    return {layer: torch.cat(parts) for layer, parts in found.items()}
