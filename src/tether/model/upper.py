"""The upper blocks alone: where nothing below block `first` ever changes, its input is computed once and kept.

    entry = lower_states(model, ids, first)                  # once
    with entered_at(model, entry, first, as_tuple):           # any number of times
        hidden = final_hidden(model, ids, mask, weights)     # with any weights in the place of the model's

It uses nothing but the model's own modules: the blocks below hand their input on, the first edited one gets `entry`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from tether.model.editable import EditableModel
from tether.model.suffix import forward_until, hand_on, hooks, replaced_forward


def lower_states(model: EditableModel, ids: Int[Tensor, "n t"], first: int) -> Float[Tensor, "n t d"]:
    """What block `first` (at least 1) takes, in the model's dtype; no gradient, no block from `first` on is run."""
    return forward_until(model, model.block(first - 1), input_ids=ids)


def blocks_return_tuples(model: EditableModel) -> bool:
    """Whether a block returns a tuple or a tensor: measured on one token."""
    seen: list[bool] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(isinstance(output, tuple))

    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with hooks(model.block(0).register_forward_hook(see)):
        forward_until(model, model.block(0), input_ids=ids)
    return seen[0]


@contextmanager
def entered_at(model: EditableModel, entry: Float[Tensor, "n t d"], first: int, as_tuple: bool) -> Iterator[None]:
    """Forwards of the model inside the block begin at block `first` (at least 1), which takes `entry`."""
    with ExitStack() as stack:
        for index in range(first):
            replacement = hand_on(entry if index == first - 1 else None, as_tuple)
            stack.enter_context(replaced_forward(model.block(index), replacement))
        yield


def final_hidden(
    model: EditableModel,
    ids: Int[Tensor, "n t"],
    mask: Int[Tensor, "n t"],
    weights: Mapping[str, Float[Tensor, "p q"]] | None = None,
) -> Float[Tensor, "n t d"]:
    """Final hidden states (those the head takes) with `weights` (by parameter name, out×in, in the model's dtype) in
    the place of the model's own, differentiable in them. Rows are padded on the right."""
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if not weights:
        return model.base(**given)[0]
    start = next(name for name, module in model.hf.named_modules() if module is model.base)
    stored = {name.removeprefix(f"{start}."): value for name, value in stored_weights(model, weights).items()}
    return functional_call(model.base, stored, kwargs=given)[0]


def stored_weights(model: EditableModel, weights: Mapping[str, Float[Tensor, "p q"]]) -> dict[str, Tensor]:
    """Weights given out×in, as the layout stores them."""
    return {name: value.mT if model.is_transposed(name) else value for name, value in weights.items()}
