"""The frozen-prefix forward: run only what an added vector can change.

A vector δ added after block L at one token changes no block ≤ L and no earlier token. So one full forward is kept
(the output of block L from that token on; keys and values of the earlier tokens), and each further step runs the blocks
above L on the remaining tokens alone, with those keys and values as a read-only cache:

    rows = align(prompts, model)                      # the anchor token of every row in one column
    run = full_forward(model, rows, layer)
    step = Suffix(model, rows, run)
    hidden = step(delta)                              # final hidden states from the anchor on

It uses only modules of the model: blocks that need no work pass their input through, the rest runs as always, so
masks, positions, norms and the head are the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from tether.facts.tokens import EncodedPrompt
from tether.models.editable import EditableModel


@dataclass(frozen=True)
class Rows:
    """Prompts as one batch with every row's anchor (the subject's last token) in the same column.

    Padded on both sides: `mask` is 1 on tokens; `positions` count from each row's first token.
    """

    ids: Int[Tensor, "n t"]
    mask: Int[Tensor, "n t"]
    positions: Int[Tensor, "n t"]
    anchor: int

    def select(self, index: Int[Tensor, " k"]) -> Rows:
        """Some of the rows."""
        return Rows(self.ids[index], self.mask[index], self.positions[index], self.anchor)


def align(prompts: Sequence[EncodedPrompt], device: torch.device) -> Rows:
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
    return Rows(ids.to(device), mask.to(device), positions.to(device), anchor)


@dataclass(frozen=True)
class Run:
    """What one full forward leaves for the steps after it (n rows, s columns from the anchor on, hidden size d)."""

    layer: int
    keys: Float[Tensor, "n q"]  # input of the projection at the anchor
    values: Float[Tensor, "n p"]  # its output there, bias included
    hidden: Float[Tensor, "n s d"]  # output of block `layer` from the anchor on
    inputs: Float[Tensor, "n s d"]  # input of block `layer` from the anchor on
    last: Float[Tensor, "n s d"]  # final hidden states from the anchor on
    cache: Cache  # keys and values before the anchor, read-only
    returns_tuple: bool

    def select(self, index: Int[Tensor, " k"]) -> Run:
        """The run of some of its rows."""
        cache = DynamicCache()
        cache.layers = [
            _ReadOnly(kept.keys[index.to(kept.keys.device)], kept.values[index.to(kept.values.device)])
            for kept in self.cache.layers
        ]

        def some(tensor: Tensor) -> Tensor:
            return tensor[index.to(tensor.device)]

        return Run(
            self.layer, some(self.keys), some(self.values), some(self.hidden), some(self.inputs), some(self.last),
            cache, self.returns_tuple,
        )  # fmt: skip


class _ReadOnly(DynamicLayer):
    """Keys and values of the columns before the anchor; what is added serves one call and is not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.length = keys.shape[-2]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self.length


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
    return output[0] if isinstance(output, tuple) else output


def full_forward(model: EditableModel, rows: Rows, layer: int) -> Run:
    """One forward of the whole model, no gradient: keys, values, and everything `Suffix` needs."""
    seen: dict[str, Any] = {}

    def see_projection(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # Some layouts flatten batch and tokens before the projection.
        shape = (*rows.ids.shape, -1)
        seen["keys"] = args[0].reshape(shape)[:, rows.anchor].clone()
        seen["values"] = output.reshape(shape)[:, rows.anchor].clone()

    def see_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs = args[0] if args else kwargs["hidden_states"]
        seen["inputs"] = inputs[:, rows.anchor :].clone()
        seen["hidden"] = _first(output)[:, rows.anchor :].clone()
        seen["tuple"] = isinstance(output, tuple)

    cache = DynamicCache()
    with (
        torch.no_grad(),
        hooks(
            model.projection(layer).register_forward_hook(see_projection),
            model.block(layer).register_forward_hook(see_block, with_kwargs=True),
        ),
    ):
        last = model.base(
            input_ids=rows.ids,
            attention_mask=rows.mask,
            position_ids=rows.positions,
            past_key_values=cache,
            use_cache=True,
        )[0]
    frozen = DynamicCache()
    frozen.layers = [
        _ReadOnly(kept.keys[..., : rows.anchor, :].clone(), kept.values[..., : rows.anchor, :].clone())
        for kept in cache.layers
    ]
    return Run(
        layer, seen["keys"], seen["values"], seen["hidden"], seen["inputs"], last[:, rows.anchor :], frozen,
        seen["tuple"],
    )  # fmt: skip


class _Seen(Exception):  # noqa: N818 - no error: the modules after it need not run
    pass


def forward_until(model: EditableModel, module: nn.Module, **inputs: Any) -> Tensor:
    """Run the model, without gradient, until `module` is done; what comes after it is not run. Returns its output."""
    outputs: list[Tensor] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(_first(output))
        raise _Seen

    with torch.no_grad(), hooks(module.register_forward_hook(see)), suppress(_Seen):
        model.base(**inputs, use_cache=False)
    return outputs[0]


def projection_adds(model: EditableModel, layer: int) -> bool:
    """Whether a vector added to the projection's output arrives unchanged in the block's output: true for residual
    blocks, false where a norm lies between (Gemma 2 and 3). Measured on one token, up to the block, with a vector as
    large as the output, so that rounding hides nothing in any dtype."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    before = forward_until(model, model.block(layer), input_ids=ids).float()
    size = 1 + before.abs().max().item()

    def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + size

    with hooks(model.projection(layer).register_forward_hook(add)):
        after = forward_until(model, model.block(layer), input_ids=ids).float()
    return bool((after - before - size).abs().max() <= 16 * torch.finfo(model.dtype).eps * size)


def keys_and_states(
    model: EditableModel, rows: Rows, layer: int, last: int
) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n d"]]:
    """Inputs of the projection of `layer` and outputs of the block `last` (≥ layer), both at the anchor. Runs no block
    after `last`, takes no gradient, changes nothing."""
    seen: dict[str, Tensor] = {}

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["keys"] = args[0].reshape(*rows.ids.shape, -1)[:, rows.anchor].clone()

    with hooks(model.projection(layer).register_forward_pre_hook(see)):
        output = forward_until(
            model, model.block(last), input_ids=rows.ids, attention_mask=rows.mask, position_ids=rows.positions
        )
    return seen["keys"], output[:, rows.anchor]


class Suffix:
    """The steps after a full forward: `step(δ)` is the final hidden states from the anchor on, δ ∈ R^p (one for
    all rows, or n×p, one a row; float, any dtype) added to the projection's output at the anchor of every row,
    differentiable in δ. The model is unchanged.

    Blocks up to the edited one are skipped. Where the block passes its projection through a norm, the edited block runs
    as well (block 0 with a norm leaves nothing to skip: use `Plain`). `model` may be a copy of the run's model in
    another dtype. `columns` is how many columns from the anchor on are wanted (None: all); those after
    them change none of them and are not computed.
    """

    def __init__(self, model: EditableModel, rows: Rows, run: Run, *, adds: bool, columns: int | None = None) -> None:
        self.model, self.run, self.adds = model, run, adds
        end = rows.ids.shape[1] if columns is None else rows.anchor + columns
        self.mask = rows.mask[:, :end]
        self.ids, self.positions = rows.ids[:, rows.anchor : end], rows.positions[:, rows.anchor : end]
        entry = run.hidden if adds else run.inputs
        self.entry = entry[:, : self.ids.shape[1]].to(model.dtype)
        self.cache = _cast(run.cache, model.dtype)

    def __call__(self, delta: Float[Tensor, "*n p"]) -> Float[Tensor, "n s d"]:
        run, entry = self.run, self.entry
        skipped = run.layer + 1 if self.adds else run.layer
        if self.adds:
            entry = torch.cat([entry[:, :1] + delta.to(entry).unsqueeze(-2), entry[:, 1:]], dim=1)
        with ExitStack() as stack:
            for index in range(skipped):
                last = index == skipped - 1
                stack.enter_context(
                    replaced_forward(self.model.block(index), pass_through(entry if last else None, run.returns_tuple))
                )
            if not self.adds:
                stack.enter_context(hooks(_add_at(self.model.projection(run.layer), delta, 0, len(self.ids))))
            return self.model.base(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=self.cache,
                use_cache=True,
            )[0]


class Plain:
    """The same steps by the whole model on whole rows: the reference, and the way for blocks no cache can serve."""

    def __init__(self, model: EditableModel, rows: Rows, run: Run) -> None:
        self.model, self.rows, self.run = model, rows, run

    def __call__(self, delta: Float[Tensor, "*n p"]) -> Float[Tensor, "n s d"]:
        rows = self.rows
        with hooks(_add_at(self.model.projection(self.run.layer), delta, rows.anchor, len(rows.ids))):
            hidden = self.model.base(
                input_ids=rows.ids, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
            )[0]
        return hidden[:, rows.anchor :]


def _add_at(projection: nn.Module, delta: Tensor, column: int, n_rows: int) -> Any:
    """A hook that adds δ to the projection's output at one column of every row."""

    def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        shaped = output.reshape(n_rows, -1, output.shape[-1])
        at = torch.zeros(1, shaped.shape[1], 1, dtype=output.dtype, device=output.device)
        at[:, column] = 1
        return (shaped + at * delta.to(output).unsqueeze(-2)).reshape(output.shape)

    return projection.register_forward_hook(add)


def pass_through(entry: Tensor | None, as_tuple: bool) -> Callable[..., Any]:
    """A block that does nothing but pass its input through, or `entry` in its place."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = hidden_states if entry is None else entry.to(hidden_states.device)
        return (output,) if as_tuple else output

    return forward


def _cast(cache: Cache, dtype: torch.dtype) -> Cache:
    if all(layer.keys.dtype == dtype for layer in cache.layers):
        return cache
    cast = DynamicCache()
    cast.layers = [_ReadOnly(layer.keys.to(dtype), layer.values.to(dtype)) for layer in cache.layers]
    return cast


def head_logits(model: EditableModel, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
    """Logits of final hidden states as the model itself computes them (scale and soft cap included), in its dtype."""

    def given(*args: Any, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden[None])

    # Some heads call the module that holds the blocks, past the base that wraps it.
    trunk = model.hf.get_submodule(model.anatomy.blocks.rpartition(".")[0])
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=model.device)
    with replaced_forward(model.base, given), replaced_forward(trunk, given):
        return model.hf(input_ids=ids, use_cache=False).logits[0]
