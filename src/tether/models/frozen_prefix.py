"""The frozen-prefix forward: run only what an added vector can change.

A vector δ added after block L at one token changes no block ≤ L and no earlier token. So one full forward is kept
(the output of block L from that token on; keys and values of the earlier tokens), and each further step runs the blocks
above L on the remaining tokens alone, with those keys and values as a read-only cache:

    rows = align(prompts, model.device)               # the anchor token of every row in one column
    run = full_forward(model, rows, layer)
    step = Steps(model, rows, run)
    hidden = step(delta)                              # final hidden states from the anchor on

It uses only modules of the model: blocks that need no work pass their input through, the rest runs as always, so
masks, positions, norms and the head are the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from tether.errors import WrongModelError
from tether.facts.tokens import EncodedPrompt
from tether.models.editable import EditableModel


@dataclass(frozen=True)
class AlignedPrompts:
    """Prompts as one batch with every row's anchor (the subject's last token) in the same column.

    Padded on both sides: `mask` is 1 on tokens; `positions` count from each row's first token.
    """

    ids: Int[Tensor, "n t"]
    mask: Int[Tensor, "n t"]
    positions: Int[Tensor, "n t"]
    anchor: int

    @property
    def arguments(self) -> dict[str, Any]:
        """What a forward of the whole rows takes."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}

    def at_anchor(self, values: Tensor) -> Tensor:
        """Of one value a token, those at the anchor. Some layouts flatten rows and tokens before the projection."""
        return values.reshape(*self.ids.shape, -1)[:, self.anchor].clone()

    def select(self, index: Int[Tensor, " k"]) -> AlignedPrompts:
        """Some of the rows."""
        return AlignedPrompts(self.ids[index], self.mask[index], self.positions[index], self.anchor)


def align(prompts: Sequence[EncodedPrompt], device: torch.device) -> AlignedPrompts:
    """Batch prompts around their subjects' last tokens."""
    anchor = max(p.subject_last for p in prompts)
    width = anchor + max(len(p.ids) - p.subject_last for p in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = anchor - prompt.subject_last
        ids[row, start : start + len(prompt.ids)] = torch.tensor(prompt.ids)
        mask[row, start : start + len(prompt.ids)] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return AlignedPrompts(ids.to(device), mask.to(device), positions.to(device), anchor)


@dataclass(frozen=True)
class PrefixRun:
    """What one full forward leaves for the steps after it (n rows, s columns from the anchor on, hidden size d)."""

    layer: int
    keys: Float[Tensor, "n q"]  # input of the projection at the anchor
    values: Float[Tensor, "n p"]  # its output there, bias included
    hidden: Float[Tensor, "n s d"]  # output of block `layer` from the anchor on
    inputs: Float[Tensor, "n s d"]  # input of block `layer` from the anchor on
    last: Float[Tensor, "n s d"]  # final hidden states from the anchor on
    cache: Cache | None  # keys and values before the anchor, read-only; None: the model keeps others (`keeps_keys`)
    residual: bool  # as `is_residual` says of the layer
    returns_tuple: bool  # whether a block returns one

    def select(self, index: Int[Tensor, " k"]) -> PrefixRun:
        """The run of some of its rows."""

        def some(tensor: Tensor) -> Tensor:
            return tensor[index.to(tensor.device)]

        tensors: dict[str, Any] = {name: some(kept) for name, kept in vars(self).items() if isinstance(kept, Tensor)}
        return replace(self, cache=self.cache and _read_only(self.cache, some), **tensors)


_OF_KEYS = (DynamicLayer, DynamicSlidingWindowLayer)


class _ReadOnly(DynamicLayer):
    """Keys and values of the columns before the anchor; what is added serves one call and is not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def _read_only(cache: Cache, change: Callable[[Tensor], Tensor]) -> Cache:
    """The cache with its keys and values as `change` gives them."""
    frozen = DynamicCache()
    frozen.layers = [_ReadOnly(change(layer.keys), change(layer.values)) for layer in cache.layers]
    return frozen


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` computes `forward` inside the block; what it computed before is back after it."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.forward = own


@contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    """Remove the given hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def full_forward(model: EditableModel, rows: AlignedPrompts, layer: int) -> PrefixRun:
    """One forward of the whole model, no gradient: keys, values, and everything `Steps` needs."""
    seen: dict[str, Any] = {}

    def see_projection(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen["keys"], seen["values"] = rows.at_anchor(args[0]), rows.at_anchor(output)

    def see_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = args[0] if args else kwargs["hidden_states"]
        seen["inputs"] = inputs[:, rows.anchor :].clone()
        seen["hidden"] = _first(output)[:, rows.anchor :].clone()
        seen["returns_tuple"] = isinstance(output, tuple | list)

    cache = DynamicCache() if keeps_keys(model) else None
    handles = (
        model.projection(layer).register_forward_hook(see_projection),
        model.block(layer).register_forward_hook(see_block, with_kwargs=True),
    )
    with torch.no_grad(), hooks(*handles):
        keeping = {"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True}
        last = model.base(**rows.arguments, **keeping)[0][:, rows.anchor :]
    before = cache and _read_only(cache, lambda kept: kept[..., : rows.anchor, :].clone())
    return PrefixRun(layer=layer, last=last, cache=before, residual=is_residual(model, layer), **seen)


class _Seen(Exception):  # noqa: N818 - no error: the modules after it need not run
    pass


def _output_of(model: EditableModel, module: nn.Module, **arguments: Any) -> Any:
    outputs: list[Any] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output)
        raise _Seen

    with torch.no_grad(), hooks(module.register_forward_hook(see)), suppress(_Seen):
        model.base(**arguments, use_cache=False)
    return outputs[0]


def forward_until(model: EditableModel, module: nn.Module, **arguments: Any) -> Tensor:
    """Run the model, without gradient, until `module` is done; what comes after it is not run. Returns its output."""
    return _first(_output_of(model, module, **arguments))


def blocks_return_tuples(model: EditableModel) -> bool:
    """Whether a block returns a tuple (or a list) or a tensor: measured on one token."""
    return isinstance(_output_of(model, model.block(0), input_ids=_one_token(model)), tuple | list)


def _one_token(model: EditableModel) -> Tensor:
    return torch.zeros(1, 1, dtype=torch.long, device=model.device)


def check_states(model: EditableModel) -> None:
    """Raise WrongModelError unless a block gives one hidden state a token. Runs the first block on one token."""
    found = list(forward_until(model, model.block(0), input_ids=_one_token(model)).shape)
    if found != [1, 1, model.hidden_size]:
        raise WrongModelError(
            f"{model.id}: for one token a block gives a tensor of shape {found}, and an edit needs one hidden state a "
            f"token, [1, 1, {model.hidden_size}]: models that carry several cannot be edited"
        )


def keeps_keys(model: EditableModel) -> bool:
    """Whether all that a later token sees of earlier ones is their keys and values: false for models with recurrent or
    convolutional layers (Mamba, linear attention), and for those that keep nothing. There every step runs the whole
    model. Measured once, on one token."""
    if model.keeps_keys is None:
        with torch.no_grad():
            output = model.base(input_ids=_one_token(model), use_cache=True)
        layers = getattr(getattr(output, "past_key_values", None), "layers", [])
        model.keeps_keys = bool(layers) and all(type(layer) in _OF_KEYS for layer in layers)
    return model.keeps_keys


def is_residual(model: EditableModel, layer: int) -> bool:
    """Whether a vector added to the projection's output arrives unchanged in the block's output: true for residual
    blocks, false where a norm lies between (Gemma 2 and 3). Measured once a layer and kept with the model."""
    if layer not in model.residual:
        model.residual[layer] = _measure_residual(model, layer)
    return model.residual[layer]


def _measure_residual(model: EditableModel, layer: int) -> bool:
    """On one token, up to the block, with a vector as large as the output: rounding hides nothing in any dtype."""
    block, ids = model.block(layer), _one_token(model)
    before = forward_until(model, block, input_ids=ids).float()
    size = 1 + before.abs().max().item()
    with hooks(model.projection(layer).register_forward_hook(lambda _, __, output: output + size)):
        after = forward_until(model, block, input_ids=ids).float()
    return bool((after - before - size).abs().max() <= 16 * torch.finfo(model.dtype).eps * size)


class Ascending:
    """What blocks from low to high make of the same rows, while those below are edited one after the other.

    No block sees a token after the anchor, so those are not run, nor is a block twice that nothing changes any more:
    every call goes on where the one before it was. Layers must ascend, and an edit between two calls may change no
    block below the layer of the first of them. `frozen` false: from the first block on every time, the reference.
    Takes no gradient, changes nothing. Keeps the states of the rows on the device.
    """

    def __init__(self, model: EditableModel, rows: AlignedPrompts, *, frozen: bool = True) -> None:
        self._model = model
        self._arguments = {name: kept[:, : rows.anchor + 1] for name, kept in rows.arguments.items()}
        self._frozen = frozen and keeps_keys(model)
        self._tuples = blocks_return_tuples(model) if self._frozen else False
        self._layer = 0
        self._entry: Tensor | None = None

    def keys(self, layer: int) -> Float[Tensor, "n q"]:
        """Inputs of the projection of `layer` at the anchor."""
        model, seen = self._model, dict[str, Tensor]()

        def see_projection(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen["keys"] = args[0].reshape(*self._arguments["input_ids"].shape, -1)[:, -1].clone()

        def see_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["entry"] = (args[0] if args else kwargs["hidden_states"]).clone()

        handles = (
            model.projection(layer).register_forward_pre_hook(see_projection),
            model.block(layer).register_forward_pre_hook(see_block, with_kwargs=True),
        )
        with hooks(*handles):
            self._until(model.projection(layer))
        if self._frozen:
            self._layer, self._entry = layer, seen["entry"]
        return seen["keys"]

    def states(self, last: int, index: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k d"]:
        """Outputs of the block `last` at the anchor, of some rows or of all; from the last layer of `keys` on."""
        return self._until(self._model.block(last), index)[:, -1]

    def _until(self, module: nn.Module, index: Int[Tensor, " k"] | None = None) -> Tensor:
        arguments, entry = self._arguments, self._entry
        if index is not None:
            arguments = {name: kept[index] for name, kept in arguments.items()}
            entry = None if entry is None else entry[index.to(entry.device)]
        if entry is None:
            return forward_until(self._model, module, **arguments)
        with entered_at(self._model, entry, self._layer, self._tuples):
            return forward_until(self._model, module, **arguments)


def keys_and_states(
    model: EditableModel, rows: AlignedPrompts, layer: int, last: int
) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n d"]]:
    """Inputs of the projection of `layer` and outputs of the block `last` (≥ layer), both at the anchor. Runs no block
    after `last`, takes no gradient, changes nothing."""
    ascending = Ascending(model, rows)
    return ascending.keys(layer), ascending.states(last)


class Steps:
    """The steps after a full forward: `step(δ)` is the final hidden states from the anchor on, δ ∈ R^p (one for
    all rows, or n×p, one a row; float, any dtype) added to the projection's output at the anchor of every row,
    differentiable in δ. The model is unchanged.

    Blocks up to the edited one are skipped. Where the block passes its projection through a norm, the edited block runs
    as well. `frozen` false, nothing to skip (block 0 with a norm), or a run without a cache: the whole model on whole
    rows, the reference. `model` may be a copy of the run's model in another dtype. `columns` is how many columns from
    the anchor on are wanted (None: all); those after them change none of them and are not computed.
    """

    def __init__(
        self, model: EditableModel, rows: AlignedPrompts, run: PrefixRun, columns: int | None = None, *,
        frozen: bool = True,
    ) -> None:  # fmt: skip
        self.model, self.run = model, run
        self.skipped = run.layer + run.residual if frozen and run.cache is not None else 0
        self.arguments: dict[str, Any] = {**rows.arguments, "use_cache": False}
        self.anchor, self.entry = rows.anchor, run.hidden if run.residual else run.inputs
        if self.skipped and run.cache is not None:
            end = rows.ids.shape[1] if columns is None else rows.anchor + columns
            self.arguments = {name: kept[:, rows.anchor : end] for name, kept in rows.arguments.items()}
            self.arguments |= {"attention_mask": rows.mask[:, :end], "use_cache": True}
            self.arguments["past_key_values"] = _read_only(run.cache, lambda kept: kept.to(model.dtype))
            self.anchor, self.entry = 0, self.entry[:, : end - rows.anchor].to(model.dtype)

    def __call__(self, delta: Float[Tensor, "*n p"]) -> Float[Tensor, "n s d"]:
        entry, layer = self.entry, self.run.layer
        with ExitStack() as stack:
            if self.skipped > layer:
                entry = torch.cat([entry[:, :1] + delta.to(entry).unsqueeze(-2), entry[:, 1:]], dim=1)
            else:
                stack.enter_context(hooks(self.model.projection(layer).register_forward_hook(self._adding(delta))))
            stack.enter_context(entered_at(self.model, entry, self.skipped, self.run.returns_tuple))
            return self.model.base(**self.arguments)[0][:, self.anchor :]

    def _adding(self, delta: Tensor) -> Callable[..., Tensor]:
        """A hook that adds δ to a module's output at the anchor of every row."""

        def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            shaped = output.reshape(len(self.entry), -1, output.shape[-1])
            at = torch.zeros(1, shaped.shape[1], 1, dtype=output.dtype, device=output.device)
            at[:, self.anchor] = 1
            return (shaped + at * delta.to(output).unsqueeze(-2)).reshape(output.shape)

        return add


@contextmanager
def entered_at(model: EditableModel, entry: Float[Tensor, "n t d"], first: int, as_tuple: bool) -> Iterator[None]:
    """Forwards of the model inside the block begin at block `first`, which takes `entry`; at 0 they run as always.
    `as_tuple` says whether a block returns a tuple."""

    def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = entry.to(hidden_states.device)
        return (output,) if as_tuple else output

    with ExitStack() as stack:
        for block in model.blocks[:first]:
            stack.enter_context(replaced_forward(block, skip))
        yield


class _HiddenAlone(BaseModelOutputWithPastAndCrossAttentions):
    """A base's output with hidden states alone, whatever else a head hands on (of images, of experts): None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def head_logits(model: EditableModel, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
    """Logits of final hidden states as the model itself computes them (scale and soft cap included), in its dtype."""

    def given(*args: Any, **kwargs: Any) -> _HiddenAlone:
        return _HiddenAlone(last_hidden_state=hidden[None])

    # Some heads call the module that holds the blocks, past the base that wraps it.
    trunk = model.hf.get_submodule(model.anatomy.blocks.rpartition(".")[0])
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=model.device)
    with replaced_forward(model.base, given), replaced_forward(trunk, given):
        return model.hf(input_ids=ids, use_cache=False).logits[0]
