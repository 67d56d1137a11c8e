"""The upper blocks alone: where nothing below block `first` ever changes, its input is computed once and kept.

    entry = lower_states(model, ids, first)                  # once
    with entered_at(model, entry, first, as_tuple):           # any number of times
        hidden = final_hidden(model, ids, mask, updates)     # with any updates on top of the model's weights

It uses nothing but the model's own modules: the blocks below pass their input through, and the first
edited one gets `entry`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether.algebra.lowrank import LowRank
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import forward_until, hooks, pass_through, replaced_forward


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
            replacement = pass_through(entry if index == first - 1 else None, as_tuple)
            stack.enter_context(replaced_forward(model.block(index), replacement))
        yield


def final_hidden(
    model: EditableModel,
    ids: Int[Tensor, "n t"],
    mask: Int[Tensor, "n t"],
    updates: Mapping[str, LowRank] | None = None,
) -> Float[Tensor, "n t d"]:
    """Final hidden states (those the head takes) with `updates` (by parameter name) on top of what the weights are,
    differentiable in the factors: A (B x) is added where W x is made, no p×q matrix and no gradient of one is formed
    (in a model below float32, W + AB is therefore not rounded). Rows are padded on the right."""

    given = updates or {}

    def adding(update: LowRank) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + (args[0].float() @ update.B.mT @ update.A.mT).to(output.dtype)

        return add

    modules = {model.hf.get_submodule(name.removesuffix(".weight")): u.to(model.device) for name, u in given.items()}
    with hooks(*(module.register_forward_hook(adding(update)) for module, update in modules.items())):
        return model.base(input_ids=ids, attention_mask=mask, use_cache=False)[0]
