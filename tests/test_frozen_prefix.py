"""The frozen-prefix forward against the whole model, in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_model
from torch import Tensor

from tether.facts.tokens import EncodedPrompt, encode
from tether.models import EditableModel
from tether.models.frozen_prefix import AlignedPrompts, PrefixRun, Steps, align, full_forward, head_logits, is_residual

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "falcon-alibi": ("falcon", {"alibi": True}),
    "falcon-sequential": ("falcon", {"parallel_attn": False, "new_decoder_architecture": False}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "mistral-sliding": ("mistral", {"sliding_window": 7}),
}
NORM_BEHIND = {"gemma2", "gemma3"}  # a norm between the projection and the residual stream


def build(variant: str, **more: Any) -> EditableModel:
    family, extra = VARIANTS[variant]
    return EditableModel(*tiny_model(family, n_layers=4, **extra, **more))


def contexts(
    model: EditableModel, prompt: str, subject: str, target: str, prefixes: tuple[str, ...]
) -> list[EncodedPrompt]:
    """An edit's prompts: contexts of unequal length with the target behind, and the KL prompt with another end."""
    rows = [encode(model.tokenizer, prompt, subject, prefix=prefix, target=target) for prefix in prefixes]
    return [*rows, encode(model.tokenizer, "{} is a", subject)]


def middle(model: EditableModel) -> list[EncodedPrompt]:
    return contexts(model, "The {} is in the city of", "Eiffel Tower", "London", ("", "Because it is so", "I think"))


def at_the_start(model: EditableModel) -> list[EncodedPrompt]:
    """The subject's last token is the very first one: no column before the anchor."""
    prompts = contexts(model, "{} think that the answer is", "I", "True", ("",))
    assert all(p.subject_last == 0 for p in prompts)
    return prompts


def state(model: EditableModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.hf.state_dict().items()}


def assert_untouched(model: EditableModel, before: dict[str, Tensor]) -> None:
    after = model.hf.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for name, module in model.hf.named_modules():
        assert not module._forward_hooks and not module._forward_pre_hooks, name
        assert "forward" not in module.__dict__, name


def hidden_and_gradient(step: Callable[[Tensor], Tensor], rows: AlignedPrompts, size: int) -> tuple[Tensor, Tensor]:
    """The final hidden states of real tokens, and the gradient in δ of a loss that reads all of them."""
    generator = torch.Generator().manual_seed(1)
    delta = (0.5 * torch.randn(size, generator=generator)).requires_grad_()
    hidden = step(delta).float()[rows.mask[:, rows.anchor :].bool()]
    loss = (hidden * torch.randn(hidden.shape, generator=generator)).sum()
    return hidden.detach(), torch.autograd.grad(loss, delta)[0]


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("prompts_of", [middle, at_the_start])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_equals_the_whole_model(
    variant: str, prompts_of: Callable[[EditableModel], list[EncodedPrompt]]
) -> None:
    model = build(variant)
    before = state(model)
    rows = align(prompts_of(model), model.device)
    for layer in (0, 1, 3):
        run = full_forward(model, rows, layer)
        assert run.residual == (variant not in NORM_BEHIND)
        suffix, plain = Steps(model, rows, run), Steps(model, rows, run, frozen=False)
        for _ in range(2):  # the cache serves every call anew
            hidden, gradient = hidden_and_gradient(suffix, rows, model.hidden_size)
            expected, expected_gradient = hidden_and_gradient(plain, rows, model.hidden_size)
            assert difference(hidden, expected) < 1e-5
            assert difference(gradient, expected_gradient) < 1e-5
        nothing = torch.zeros(model.hidden_size)
        real = rows.mask[:, rows.anchor :].bool()
        assert difference(suffix(nothing)[real], run.last[real]) < 1e-5
    assert_untouched(model, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_rows_equals_each_prompt_alone(variant: str) -> None:
    """Padding, positions and masks; keys and values of the projection at the subject's last token."""
    model = build(variant)
    prompts = middle(model)
    rows = align(prompts, model.device)
    assert len({p.subject_last for p in prompts}) > 2
    layer = 2
    run = full_forward(model, rows, layer)
    for row, prompt in enumerate(prompts):
        seen: dict[str, Tensor] = {}

        def see(_: Any, args: tuple[Tensor, ...], output: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen["key"] = args[0].reshape(-1, args[0].shape[-1]).clone()
            seen["value"] = output.reshape(-1, output.shape[-1]).clone()  # Falcon adds to it in place

        handle = model.projection(layer).register_forward_hook(see)
        last = model.base(input_ids=torch.tensor([prompt.ids]), use_cache=False)[0][0]
        handle.remove()
        assert difference(run.keys[row], seen["key"][prompt.subject_last]) < 1e-5
        assert difference(run.values[row], seen["value"][prompt.subject_last]) < 1e-5
        real = len(prompt.ids) - prompt.subject_last
        assert difference(run.last[row, :real], last[prompt.subject_last :]) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_head_logits_are_the_models_own(variant: str) -> None:
    """With what the model does behind its head: the soft cap of Gemma 2, the scale of others."""
    model = build(variant)
    before = state(model)
    ids = torch.tensor([middle(model)[0].ids])
    hidden = model.base(input_ids=ids, use_cache=False)[0][0]
    expected = model.hf(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(head_logits(model, hidden), expected, rtol=1e-6, atol=1e-6)
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    assert (variant == "gemma2") == (cap is not None)
    assert cap is None or not torch.allclose(model.hf.get_output_embeddings()(hidden), expected, atol=1e-4)
    assert_untouched(model, before)


def broken(model: EditableModel, call: Callable[[], object]) -> None:
    """`call` with a last block that raises."""

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.block(3).register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        call()
    handle.remove()


@pytest.mark.parametrize("variant", ["llama", "gemma2", "gpt2"])
def test_the_model_is_as_before_after_an_interruption(variant: str) -> None:
    model = build(variant)
    before = state(model)
    rows = align(middle(model), model.device)
    run = full_forward(model, rows, 1)
    delta = torch.zeros(model.hidden_size)
    suffix, plain = Steps(model, rows, run), Steps(model, rows, run, frozen=False)
    expected = suffix(delta)
    for call in (
        lambda: suffix(delta),
        lambda: plain(delta),
        lambda: full_forward(model, rows, 1),
        lambda: is_residual(model, 3),
    ):
        broken(model, call)
        assert_untouched(model, before)
    with pytest.raises(RuntimeError):
        head_logits(model, torch.zeros(2, 7))
    assert_untouched(model, before)
    assert torch.equal(suffix(delta), expected)


@pytest.mark.parametrize("variant", ["llama", "gemma2", "gemma3", "gpt2", "gpt_neox", "falcon-alibi"])
def test_bfloat16(variant: str) -> None:
    """A bfloat16 model, and a bfloat16 copy that steps behind a float32 model's run."""
    model = build(variant, dtype=torch.bfloat16)
    rows = align(middle(model), model.device)
    run = full_forward(model, rows, 2)
    assert run.residual == (variant not in NORM_BEHIND)
    hidden, gradient = hidden_and_gradient(Steps(model, rows, run), rows, model.hidden_size)
    expected, expected_gradient = hidden_and_gradient(Steps(model, rows, run, frozen=False), rows, model.hidden_size)
    assert difference(hidden, expected) < 0.03
    assert difference(gradient, expected_gradient) < 0.05

    single = build(variant)
    run = full_forward(single, rows, 2)
    mixed, _ = hidden_and_gradient(Steps(model, rows, run), rows, model.hidden_size)
    exact, _ = hidden_and_gradient(Steps(single, rows, run, frozen=False), rows, model.hidden_size)
    assert difference(mixed, exact) < 0.05


@pytest.mark.parametrize("scale", [1, 20, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["gemma2", "gemma3", "gemma", "llama", "gpt2", "falcon"])
def test_a_norm_behind_the_projection_is_seen_however_large_the_activations(
    variant: str, dtype: torch.dtype, scale: float
) -> None:
    model = build(variant, dtype=dtype)
    model.hf.get_input_embeddings().weight.mul_(scale)
    assert [is_residual(model, layer) for layer in range(4)] == [variant not in NORM_BEHIND] * 4


def test_what_a_run_keeps_is_not_changed_by_its_steps() -> None:
    model = build("llama")
    rows = align(middle(model), model.device)
    run: PrefixRun = full_forward(model, rows, 1)
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in run.cache.layers]
    hidden, last = run.hidden.clone(), run.last.clone()
    suffix = Steps(model, rows, run)
    for _ in range(3):
        hidden_and_gradient(suffix, rows, model.hidden_size)
    for layer, (keys, values) in zip(run.cache.layers, kept, strict=True):
        assert layer.keys.shape[-2] == rows.anchor
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    assert torch.equal(run.hidden, hidden) and torch.equal(run.last, last)
