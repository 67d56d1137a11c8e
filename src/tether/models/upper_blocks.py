"""The upper blocks alone: where nothing below block `first` ever changes, its input is computed once and kept.

entry = forward_until(model, model.block(first - 1), input_ids=ids)     # once
with entered_at(model, entry, first, as_tuple):           # any number of times
    hidden = final_hidden(model, ids, mask, updates)     # with any updates on top of the model's weights
"""

import copy
import weakref
from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether.algebra.lowrank import LowRank
from tether.models.editable import EditableModel
from tether.models.frozen_prefix import hooks


def final_hidden(
    model: EditableModel,
    ids: Int[Tensor, "n t"],
    mask: Int[Tensor, "n t"],
    updates: Mapping[str, LowRank] | None = None,
) -> Float[Tensor, "n t d"]:
    """Final hidden states (those the head takes) with `updates` (by parameter name) on top of what the weights are,
    differentiable in the factors: A (B x) is added where W x is made, no p×q matrix and no gradient of one is formed
    (in a model below float32, W + AB is therefore not rounded). Rows are padded on the right."""

    def add(update: LowRank, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + (args[0].float() @ update.B.mT @ update.A.mT).to(output.dtype)

    given = {model.hf.get_submodule(name.removesuffix(".weight")): u for name, u in (updates or {}).items()}
    with hooks(*(module.register_forward_hook(partial(add, u.to(model.device))) for module, u in given.items())):
        return model.base(input_ids=ids, attention_mask=mask, use_cache=False)[0]


class UpperCopy:
    """A copy, in another dtype, of all of a model but its blocks up to a layer; one at a time, kept until the model or
    its upper weights change.

    The lower blocks of the copy hold no weights: use it only where they are replaced (`Steps`, `entered_at`).
    """

    def __init__(self) -> None:
        self._of: weakref.ref[EditableModel] | None = None
        self._key: tuple[object, ...] = ()
        self._copy: EditableModel | None = None

    def of(self, model: EditableModel, layer: int, dtype: torch.dtype) -> EditableModel:
        """The copy of `model` above block `layer`. The model is not changed."""
        lower = {id(p) for block in model.blocks[: layer + 1] for p in block.parameters()}
        # A parameter's version grows with every change in place.
        versions = tuple((p.data_ptr(), p._version) for p in model.hf.parameters() if id(p) not in lower)
        key = (layer, dtype, versions)
        if self._copy is None or self._of is None or self._of() is not model or self._key != key:
            self._copy = None  # first: two copies need not fit into memory
            memo = {id(block): _hollow(block) for block in model.blocks[: layer + 1]}
            hf = copy.deepcopy(model.hf, memo).to(dtype)
            self._copy = EditableModel(hf, model.tokenizer, id=model.id, anatomy=model.anatomy)
            self._of, self._key = weakref.ref(model), key
        return self._copy


def _hollow(block: nn.Module) -> nn.Module:
    """A module of the block's class with its plain attributes and none of its weights."""
    hollow = copy.copy(block)
    hollow._parameters, hollow._buffers, hollow._modules = {}, {}, {}
    return hollow
