"""ROME and R-ROME: their formulas, their optimisation on both routes, and what an edit means for a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core import (
    FACTS,
    PREFIXES,
    bits,
    close,
    context,
    editable,
    hparams,
    random_moments,
    random_update,
    reciter,
    same_bits,
)
from tiny import tiny_config, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3Config

from tether.editors import Context, EditFailedError, EditSkippedError, Proposal, editor
from tether.editors.corpus import Corpus
from tether.editors.delta import Group, OptimisedDelta, optimise
from tether.editors.moments import moments
from tether.editors.prompts import encode_contexts
from tether.errors import TetherError
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt, encode
from tether.models import EditableModel, frozen_prefix
from tether.models.frozen_prefix import AlignedPrompts, PrefixRun, align, full_forward
from tether.models.upper_blocks import UpperCopy

FACT = FACTS[0]
LAYOUTS = ["llama", "gpt2"]  # Linear without bias, Conv1D with one


def prepared(model: EditableModel, layer: int) -> tuple[Group, AlignedPrompts, PrefixRun]:
    contexts = tuple(
        encode(model.tokenizer, FACT.prompt, FACT.subject, prefix=prefix, target=FACT.target_new)
        for prefix in ("", *PREFIXES)
    )
    prompts = Group(((contexts,),), encode(model.tokenizer, "{} is a", FACT.subject))
    rows = align(prompts, model.device)
    return prompts, rows, full_forward(model, rows, layer)


def latent(model: EditableModel, layer: int, **changes: Any) -> OptimisedDelta:
    prompts, rows, run = prepared(model, layer)
    return optimise(model, [prompts], rows, run, run.values[:1], hparams(layers=(layer,), **changes))[0]


# --- δ --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layer"), [("llama", 1), ("llama", 0), ("gpt2", 1), ("gemma2", 1), ("gemma2", 0), ("gpt_neox", 2)]
)
def test_the_frozen_prefix_gives_the_same_losses_and_delta(family: str, layer: int) -> None:
    model = editable(family)
    before = bits(model)
    frozen = latent(model, layer, frozen_prefix=True)
    whole = latent(model, layer, frozen_prefix=False)
    assert len(frozen.losses) == len(whole.losses) == hparams().v_num_grad_steps
    assert frozen.losses == pytest.approx(whole.losses, rel=1e-4)
    assert close(frozen.delta, whole.delta, 1e-3)
    assert same_bits(model, before)


@pytest.mark.parametrize("kl_position", ["subject", "end"])
@pytest.mark.parametrize("family", [*LAYOUTS, "gemma2"])
def test_the_loss_is_the_methods(family: str, kl_position: str) -> None:
    """The last evaluation, again from whole forwards of each prompt alone with δ added by hand."""
    model, layer = editable(family), 1
    settings = hparams(kl_position=kl_position, v_num_grad_steps=6, v_lr=1.0, kl_factor=5.0, v_weight_decay=20.0)
    prompts, rows, run = prepared(model, layer)
    (found,) = optimise(model, [prompts], rows, run, run.values[:1], settings)

    def log_probabilities(prompt: EncodedPrompt, delta: Tensor) -> Tensor:
        def add(_: Any, __: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed.view(len(prompt.ids), -1)[prompt.subject_last] += delta
            return changed

        handle = model.projection(layer).register_forward_hook(add)
        logits = model.hf(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0]
        handle.remove()
        return logits.double().log_softmax(-1)

    nll = 0.0
    for prompt in prompts[:-1]:
        log_p = log_probabilities(prompt, found.delta)
        targets = range(prompt.target_start, len(prompt.ids))
        nll -= sum(float(log_p[i - 1, prompt.ids[i]]) for i in targets) / len(targets) / (len(prompts) - 1)
    at = prompts[-1].subject_last if kl_position == "subject" else len(prompts[-1].ids) - 1
    after = log_probabilities(prompts[-1], found.delta)[at]
    before = log_probabilities(prompts[-1], torch.zeros_like(found.delta))[at]
    kl = float((after.exp() * (after - before)).sum())
    decay = float(found.delta.norm() / run.values[0].norm() ** 2)
    total = nll + settings.kl_factor * kl + settings.v_weight_decay * decay
    assert settings.kl_factor * kl > 1e-3 and settings.v_weight_decay * decay > 1e-1, "every term counts"
    assert found.losses[-1] == pytest.approx(total, rel=2e-5)


@pytest.mark.parametrize("family", LAYOUTS)
def test_clamp_steps_and_threshold(family: str) -> None:
    model = editable(family)
    _, _, run = prepared(model, 1)
    v0 = float(run.values[0].norm())
    short = latent(model, 1, clamp_norm_factor=0.1)
    assert float(short.delta.norm()) <= 0.1 * v0 * (1 + 1e-6)
    assert float(short.delta.norm()) == pytest.approx(0.1 * v0, rel=1e-5), "the clamp acted"
    once = latent(model, 1, v_num_grad_steps=1)
    assert len(once.losses) == 1 and not once.delta.any(), "one evaluation, no step"
    twice = latent(model, 1, v_num_grad_steps=2)
    assert len(twice.losses) == 2
    # Adam's first step is v_lr in every coordinate.
    torch.testing.assert_close(twice.delta.abs(), torch.full_like(twice.delta, 0.1), rtol=1e-3, atol=0)
    free = latent(model, 1)
    threshold = free.losses[4]
    stopped = latent(model, 1, loss_threshold=threshold + 1e-6)
    assert stopped.losses == free.losses[: len(stopped.losses)]
    assert stopped.losses[-1] < threshold + 1e-6 <= min(stopped.losses[:-1])


# --- ΔW -------------------------------------------------------------------------------------------------------------


def seen_alone(model: EditableModel, layer: int, prompt: EncodedPrompt) -> tuple[Tensor, Tensor]:
    """Key and value of the projection at the subject's last token, from a whole forward of one prompt."""
    seen = []

    def see(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0][0, prompt.subject_last].double(), output[0, prompt.subject_last].double()))

    handle = model.projection(layer).register_forward_hook(see)
    model.hf(input_ids=torch.tensor([prompt.ids]), use_cache=False)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("method", ["rome", "r-rome"])
@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_the_update_says_v_for_k(ridge: float, family: str, method: str) -> None:
    model, layer = editable(family), 1
    before = bits(model)
    name = model.weight_name(layer)
    given = context(model, moments_ridge=ridge)
    proposal = editor(method).propose(model, FACT, given)
    assert same_bits(model, before), "an editor never writes a weight"

    seen = [seen_alone(model, layer, prompt) for prompt in prepared(model, layer)[0][:-1]]
    k0, v0 = seen[0]
    k_mean = torch.stack([key for key, _ in seen]).mean(0)
    W = model.weight(name).double()
    bias = getattr(model.projection(layer), "bias", None)
    b = torch.zeros(len(W), dtype=torch.float64) if bias is None else bias.detach().double()
    assert (family == "gpt2") == bool(b.any())
    assert close(W @ k0 + b, v0, 1e-5)

    assert list(proposal.updates) == [name]
    update = proposal.updates[name]
    assert update.rank == 1 and update.A.dtype == update.B.dtype == torch.float32
    C = given.moments[layer].C
    u = torch.linalg.solve(C + ridge * C.diagonal().mean() * torch.eye(len(C)), k_mean)
    assert close(update.B[0].double(), u / u.norm(), 1e-4)

    delta = latent(model, layer).delta.double()
    changed = W + update.to_dense().double()
    key = k0 if method == "rome" else k_mean
    assert close(changed @ key + b, v0 + delta, 1e-4)
    assert close(proposal.vectors[f"{name}/K"].double(), key, 1e-5)
    assert close(proposal.vectors[f"{name}/V"].double(), v0 + delta, 1e-4)
    if method == "rome":
        assert close(update.A[:, 0].double(), delta / ((u / u.norm()) @ k0), 1e-4)
    # The other key is not met: the two methods differ.
    other = k_mean if method == "rome" else k0
    assert not close(changed @ other + b, v0 + delta, 1e-2)
    # The model itself says v* for the bare prompt once it carries a ROME update.
    if method == "rome":
        with model.provisional(proposal.updates):
            assert close(seen_alone(model, layer, prepared(model, layer)[0][0])[1], v0 + delta, 1e-4)


@pytest.mark.parametrize("method", ["rome", "r-rome"])
@pytest.mark.parametrize("family", LAYOUTS)
def test_both_routes_give_the_same_update(family: str, method: str) -> None:
    model = editable(family)
    frozen, whole = (
        editor(method).propose(model, FACT, context(model, frozen_prefix=value)) for value in (True, False)
    )
    (name,) = frozen.updates
    assert close(frozen.updates[name].to_dense(), whole.updates[name].to_dense(), 1e-3)
    assert frozen.record["loss_last"] == pytest.approx(whole.record["loss_last"], rel=1e-4)
    again = editor(method).propose(model, FACT, context(model))
    assert torch.equal(again.updates[name].A, frozen.updates[name].A), "the same bits every time"


def test_the_record_says_how_it_went() -> None:
    model = editable("gpt2")
    record = editor("rome").propose(model, FACT, context(model)).record
    assert record["loss_last"] < record["loss_first"]
    assert record["steps"] == hparams().v_num_grad_steps
    assert 0 < record["delta_norm"] <= 4 * record["v0_norm"]


@pytest.mark.parametrize("family", [*LAYOUTS, "gemma2"])
def test_bfloat16_arithmetic(family: str) -> None:
    """The steps run on a copy; the model stays float32, δ points the same way."""
    model = editable(family)
    before = bits(model)
    exact = editor("r-rome").propose(model, FACT, context(model))
    rough = editor("r-rome").propose(model, FACT, context(model, delta_dtype="bfloat16"))
    assert same_bits(model, before) and model.dtype == torch.float32
    (name,) = exact.updates
    assert rough.record["loss_last"] < rough.record["loss_first"]
    cosine = torch.cosine_similarity(exact.updates[name].A[:, 0], rough.updates[name].A[:, 0], dim=0)
    assert float(cosine) > 0.9
    assert rough.updates[name].A.dtype == torch.float32


@pytest.mark.parametrize("family", LAYOUTS)
def test_bfloat16_models(family: str) -> None:
    model = editable(family, dtype=torch.bfloat16)
    proposal: Proposal = editor("r-rome").propose(model, FACT, context(model))
    assert proposal.record["loss_last"] < proposal.record["loss_first"]
    assert all(u.A.dtype == torch.float32 for u in proposal.updates.values())


@pytest.mark.parametrize("frozen_prefix", [True, False])
def test_the_copy_in_another_dtype_is_no_older_than_the_model(frozen_prefix: bool) -> None:
    """One editor, one model, edits in between: the copy steps through blocks above the edited one alone."""
    model, one = editable("llama"), editor("r-rome")
    given = context(model, delta_dtype="bfloat16", frozen_prefix=frozen_prefix)
    first = one.propose(model, FACT, given)
    with model.provisional(first.updates):
        kept = one.propose(model, FACTS[1], given)
        fresh = editor("r-rome").propose(model, FACTS[1], given)
    (name,) = kept.updates
    assert torch.equal(kept.updates[name].A, fresh.updates[name].A)


@pytest.mark.parametrize("change", ["another model", "another weight above"])
def test_the_copy_in_another_dtype_is_the_models_own(change: str) -> None:
    """One editor object, and then another model, or a weight above the edited layer that changed."""
    model, one = editable("llama"), editor("r-rome")
    given = context(model, delta_dtype="bfloat16")
    one.propose(model, FACT, given)
    if change == "another model":
        model = editable("llama", seed=7)
    else:
        model.set_update(model.weight_name(2), random_update(32, 80, 2, seed=0, scale=3.0).to_dense())
    again, fresh = (each.propose(model, FACT, given) for each in (one, editor("r-rome")))
    (name,) = again.updates
    assert torch.equal(again.updates[name].A, fresh.updates[name].A)


def test_only_what_lies_above_is_copied() -> None:
    model, copies = editable("llama"), UpperCopy()
    upper = copies.of(model, 2, torch.bfloat16)
    sizes = [sum(p.numel() for p in block.parameters()) for block in upper.blocks]
    assert sizes[:3] == [0, 0, 0] and sizes[3] == sum(p.numel() for p in model.blocks[3].parameters())
    assert upper.dtype == torch.bfloat16 and model.dtype == torch.float32
    assert all(sum(p.numel() for p in block.parameters()) for block in model.blocks)
    assert copies.of(model, 2, torch.bfloat16) is upper
    assert copies.of(model, 1, torch.bfloat16) is not upper


def test_what_a_layer_adds_to_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    measure = frozen_prefix._measure_residual
    monkeypatch.setattr(
        frozen_prefix, "_measure_residual", lambda model, layer: measured.append(layer) or measure(model, layer)
    )
    model, one = editable("llama"), editor("r-rome")
    for fact in FACTS[:2]:
        one.propose(model, fact, context(model, delta_dtype="bfloat16"))
    assert measured == [1]


# --- what cannot be edited ------------------------------------------------------------------------------------------


def test_an_absurd_learning_rate_fails_and_a_known_fact_is_skipped() -> None:
    model = editable("gpt2")
    before = bits(model)
    with pytest.raises(EditFailedError, match="the loss went from") as failed:
        editor("rome").propose(model, FACT, context(model, v_lr=1e6, clamp_norm_factor=1e9))
    assert not isinstance(failed.value, EditSkippedError)
    assert failed.value.record["steps"] == hparams().v_num_grad_steps
    with pytest.raises(EditFailedError):
        editor("rome").propose(model, FACT, context(model, v_num_grad_steps=1))
    with pytest.raises(EditSkippedError, match="already says") as skipped:
        editor("rome").propose(model, FACT, context(model, loss_threshold=1e9))
    assert skipped.value.record["steps"] == 1
    assert same_bits(model, before)


def test_moments_without_an_inverse_are_one_clear_line() -> None:
    model = editable("llama")
    given = context(model)
    singular = replace(random_moments(80), C=torch.zeros(80, 80, dtype=torch.float64))
    with pytest.raises(TetherError, match="singular"):
        editor("rome").propose(model, FACT, Context(given.hparams, given.prefixes, {1: singular}))


def test_a_prompt_longer_than_the_model_takes() -> None:
    """Also where the configuration of the text model lies inside another."""
    text = tiny_config("gemma3", n_layers=1).to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = Gemma3Config(text_config=text, vision_config=vision | {"image_size": 14, "patch_size": 14})
    nested = EditableModel(AutoModelForCausalLM.from_config(whole), tiny_tokenizer())
    long = Fact(subject="Big Ben", prompt=300 * "so " + "{} is in", target_new="Paris")
    for model in (editable("gpt2"), editable("llama"), nested):
        assert encode_contexts(model, FACT, PREFIXES)
        with pytest.raises(EditFailedError, match="tokens, the model takes 256; shorten the prompt"):
            encode_contexts(model, long, PREFIXES)


def test_unknown_method() -> None:
    with pytest.raises(TetherError, match="rome, r-rome"):
        editor("ROME2")


# --- meaning --------------------------------------------------------------------------------------------------------


def answers(model: EditableModel, facts: list[Fact]) -> list[str]:
    """Greedy, as many tokens as the true answer has."""
    found = []
    for fact in facts:
        ids = model.tokenizer(fact.text).input_ids
        length = len(model.tokenizer(f" {fact.target_true}").input_ids)
        for _ in range(length):
            ids.append(int(model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        found.append(model.tokenizer.decode(ids[-length:]).strip())
    return found


def test_an_edit_changes_its_answer_and_leaves_the_others(tmp_path: Path) -> None:
    hf, tokenizer, facts = reciter()
    model = EditableModel(hf, tokenizer)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(" ".join(f"{t} {f.target_true}." for f in facts for t in (f.text, *f.paraphrases)) * 3)
    found = moments(model, [1], Corpus.parse(corpus, window=64), cache=tmp_path)
    prefixes = tuple(f"{fact.text} {fact.target_true}" for fact in facts[::8])
    given = Context(hparams(v_num_grad_steps=25, v_lr=0.5), prefixes, found)
    before = answers(model, facts)
    assert before == [fact.target_true for fact in facts]
    for method in ("rome", "r-rome"):
        for edited in (0, 9, 21):
            fact = facts[edited]
            proposal = editor(method).propose(model, fact, given)
            with model.provisional(proposal.updates):
                after = answers(model, facts)
            assert after[edited] == fact.target_new != fact.target_true
            others = [i for i in range(len(facts)) if i != edited]
            assert sum(after[i] == before[i] for i in others) >= len(others) - 1
    assert answers(model, facts) == before
