"""Fine-tuning and LoRA as editors, and the keep term, on tiny models of both layouts."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from core import FACTS, bits, close, editable, same_bits
from torch import Tensor

import tether
from tether.algebra.lowrank import LowRank
from tether.editing.said import said_now
from tether.editors import EDITORS, Batch, BatchEditor, Context, EditFailedError, EditSkippedError, editor, training
from tether.editors.bystanders import bystander_prompts
from tether.editors.ft import FtHparams
from tether.editors.keep import Keeper, sampled_texts, seed_of
from tether.editors.lora import LoraHparams
from tether.editors.training import TrainingHparams, encoded_prompts
from tether.errors import BadSettingsError, MissingExtraError
from tether.facts.fact import Fact
from tether.facts.tokens import EncodedPrompt
from tether.ledger import Ledger
from tether.models import EditableModel
from tether.models.frozen_prefix import hooks
from tether.models.upper_blocks import final_hidden

METHODS, LAYOUTS = ["ft", "lora"], ["llama", "gpt2"]
STRONG: dict[str, dict[str, Any]] = {
    "ft": {"layers": [1], "lr": 0.02, "epochs": 40, "rows": 2},
    "lora": {"layers": [0, 1, 2], "lr": 0.02, "epochs": 40, "rows": 2, "rank": 4, "alpha": 8},
}
KEPT = {"keep_subjects": 3, "keep_pieces": 4, "keep_length": 16}
PHRASED = [
    fact.model_copy(update={"phrasings": ("I know {}, it is", "You say of {}:"), "kind": kind})
    for fact, kind in zip(FACTS[:3], ("building", "person", "building"), strict=True)
]


def hparams(method: str, **changes: Any) -> TrainingHparams:
    return EDITORS[method].settings.model_validate({**STRONG[method], **KEPT, **changes})  # type: ignore[return-value]


def proposed(method: str, model: EditableModel, facts: Sequence[Fact], **changes: Any) -> Batch:
    chosen = editor(method)
    assert isinstance(chosen, BatchEditor)
    return chosen.propose_batch(model, facts, Context(hparams(method, **changes)))


def updates_of(batch: Batch) -> dict[str, LowRank]:
    assert batch.proposal is not None and batch.whole
    return batch.proposal.updates


def edited(method: str, family: str, out: Path, **more: Any) -> tuple[EditableModel, Ledger]:
    model = editable(family)
    ledger = tether.edit(model, FACTS[:4], out=out, method=method, settings=STRONG[method], batch_size=2, **more)
    return model, ledger


# --- what the editors do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_said_and_undone_as_a_whole(method: str, family: str, tmp_path: Path) -> None:
    model = editable(family)
    before = bits(model)
    model, ledger = edited(method, family, tmp_path / "l")
    # Random weights have room for two facts, not for four: what the second batch did to the first is not looked at.
    assert not {lost.edit for lost in said_now(model, ledger).lost} & {3, 4}
    ledger.verify(model)
    with pytest.raises(BadSettingsError, match="edit 1 shares one update with 2: undo all 2 of them"):
        ledger.undo(1)
    with pytest.raises(BadSettingsError, match=r"3 edits: edits 3 to 4 share one update in .*; name 2 or 4"):
        ledger.live(3)
    with pytest.raises(BadSettingsError, match="share one update"):
        ledger.apply(model, upto=1)
    with pytest.raises(BadSettingsError, match="edit 3 shares one update with 4: undo all 2 of them"):
        ledger.undo(1, 2, 3)
    ledger.undo(3, 4)
    first = bits(ledger.apply(model))
    assert not said_now(model, ledger).lost
    ledger.undo(1, 2)
    assert same_bits(ledger.apply(model), before)
    ledger.redo(2, 1)
    assert same_bits(ledger.apply(model), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_phrasing_is_trained_and_the_model_stays(method: str, family: str, dtype: torch.dtype) -> None:
    model = editable(family, dtype=dtype)
    before, modules = bits(model), list(model.hf.modules())
    updates = updates_of(proposed(method, model, PHRASED[:1], epochs=12))
    assert same_bits(model, before) and list(map(id, model.hf.modules())) == list(map(id, modules))
    rows = encoded_prompts(model, PHRASED[0])
    assert len(rows) == 3
    alone = [training.target_nll(model, [row]).item() for row in rows]
    assert training.target_nll(model, rows).tolist() == pytest.approx(alone, rel=1e-2)
    with model.provisional(updates):
        after = training.target_nll(model, rows)
    assert all(last < 0.8 * first for last, first in zip(after.tolist(), alone, strict=True))
    for name, update in updates.items():
        assert update.A.dtype == torch.float32 and update.shape == tuple(model.weight(name).shape)
        assert update.rank == (min(update.shape) if method == "ft" else 4)


def plain_rows(model: EditableModel) -> list[EncodedPrompt]:
    return [row for fact in PHRASED for row in encoded_prompts(model, fact)]


def plain_order(n: int, chosen: TrainingHparams) -> list[list[int]]:
    """The mini-batches of the epochs."""
    generator = torch.Generator().manual_seed(seed_of(PHRASED))
    orders = [torch.randperm(n, generator=generator) for _ in range(chosen.epochs)]
    return [part.tolist() for order in orders for part in order.split(chosen.rows)]


def plain_loss(logits: Sequence[Tensor], rows: Sequence[EncodedPrompt]) -> Tensor:
    losses = []
    for of_row, row in zip(logits, rows, strict=True):
        log_p = of_row.log_softmax(-1)[row.target_start - 1 : len(row.ids) - 1]
        losses.append(-log_p.gather(1, torch.tensor(row.ids[row.target_start :])[:, None]).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("family", LAYOUTS)
def test_ft_is_plain_training(family: str) -> None:
    model = editable(family)
    changes: dict[str, Any] = {"layers": [1, 2], "lr": 1e-3, "epochs": 3, "rows": 4, "weight_decay": 0.1}
    chosen = hparams("ft", **changes)
    found = updates_of(proposed("ft", model, PHRASED, **changes))
    hf = copy.deepcopy(model.hf)
    names = [model.weight_name(layer) for layer in (1, 2)]
    weights = [hf.get_parameter(name).requires_grad_(True) for name in names]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1)
    rows = plain_rows(model)
    for part in plain_order(len(rows), chosen):
        logits = [hf(torch.tensor([rows[i].ids])).logits[0] for i in part]
        optimizer.zero_grad()
        plain_loss(logits, [rows[i] for i in part]).backward()
        optimizer.step()
    for name, weight in zip(names, weights, strict=True):
        after = weight.detach().mT if model.is_transposed(name) else weight.detach()
        assert close(found[name].to_dense(), after - model.weight(name), 2e-3)


@pytest.mark.parametrize("family", LAYOUTS)
def test_lora_is_plain_training_of_two_factors(family: str) -> None:
    model = editable(family)
    changes: dict[str, Any] = {"lr": 1e-3, "epochs": 3, "rows": 4}
    chosen = hparams("lora", **changes)
    assert isinstance(chosen, LoraHparams)
    found = updates_of(proposed("lora", model, PHRASED, **changes))
    generator = torch.Generator().manual_seed(seed_of(PHRASED))
    factors = {}
    for name in found:
        p, q = model.weight(name).shape
        drawn = (2 * torch.rand(4, q, generator=generator) - 1) / q**0.5
        factors[name] = torch.zeros(p, 4, requires_grad=True), drawn.requires_grad_(True)
    optimizer = torch.optim.AdamW([one for pair in factors.values() for one in pair], lr=1e-3, weight_decay=0)
    rows = plain_rows(model)
    head = model.hf.get_output_embeddings()
    for part in plain_order(len(rows), chosen):
        now = {name: LowRank(2 * B, A) for name, (B, A) in factors.items()}
        ids = [torch.tensor([rows[i].ids]) for i in part]
        logits = [head(final_hidden(model, one, torch.ones_like(one), now))[0] for one in ids]
        optimizer.zero_grad()
        plain_loss(logits, [rows[i] for i in part]).backward()
        optimizer.step()
    for name, (B, A) in factors.items():
        assert close(found[name].to_dense(), 2 * (B @ A).detach(), 2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_on_what_the_model_carries(method: str) -> None:
    model = editable("llama")
    first = updates_of(proposed(method, model, FACTS[:2], epochs=30))
    with model.provisional(first):
        batch = proposed(method, model, FACTS[:2], loss_threshold=2.0)
        assert batch.proposal is None and all(isinstance(one, EditSkippedError) for one in batch.outcomes)
        second = updates_of(proposed(method, model, FACTS[1:3]))  # one that is said already is trained with the other
        with model.provisional(second):
            losses = [training.target_nll(model, encoded_prompts(model, f)) for f in FACTS[1:3]]
    assert all(float(loss) < 3 for loss in losses)


@pytest.mark.parametrize("method", METHODS)
def test_the_random_state_plays_no_part(method: str) -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(updates_of(proposed(method, editable("gpt2"), PHRASED, epochs=2, keep=1.0)))
    for name, update in found[0].items():
        assert torch.equal(update.A, found[1][name].A) and torch.equal(update.B, found[1][name].B)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("method", METHODS)
def test_an_error_while_it_trains_leaves_the_model_whole(
    method: str, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = editable("gpt2")
    before, modules = bits(model), list(map(id, model.hf.modules()))
    calls: list[int] = []
    loss = training.target_nll

    def failing(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise stop
        return loss(*args)

    monkeypatch.setattr(training, "target_nll", failing)
    with pytest.raises(stop):
        proposed(method, model, PHRASED)
    assert same_bits(model, before) and list(map(id, model.hf.modules())) == modules
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in model.hf.modules())
    assert not any(one.requires_grad or one.grad is not None for one in model.hf.parameters())
    assert not any(module.training for module in model.hf.modules())


@pytest.mark.parametrize("method", METHODS)
def test_facts_that_fail_are_named(method: str) -> None:
    model = editable("llama")
    unreadable = Fact(subject="Ada", prompt=300 * "so " + "{} is", target_new="one")
    batch = proposed(method, model, [unreadable, *FACTS[:2]])
    assert isinstance(batch.outcomes[0], EditFailedError) and "tokens" in str(batch.outcomes[0])
    assert all(isinstance(outcome, dict) for outcome in batch.outcomes[1:])
    alone = proposed(method, model, FACTS[:2])
    for name, update in updates_of(batch).items():
        assert torch.equal(update.to_dense(), updates_of(alone)[name].to_dense())
    strange = FACTS[0].model_copy(update={"kind": "colour"})  # no kind of the list: the likeliest one serves
    kept = proposed(method, model, [strange, FACTS[1]], keep=1.0, epochs=1)
    assert all(isinstance(outcome, dict) for outcome in kept.outcomes)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_fails(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = editable("llama")
    loss = training.target_nll

    def overflowing(model: EditableModel, rows: Sequence[EncodedPrompt]) -> Tensor:
        return loss(model, rows) * (float("inf") if torch.is_grad_enabled() else 1)

    monkeypatch.setattr(training, "target_nll", overflowing)
    with pytest.raises(EditFailedError, match="not finite after 0 steps"):
        proposed(method, model, FACTS[:2])


def test_lora_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"tether\[lora\]"):
        edited("lora", "llama", tmp_path / "l")
    assert not (tmp_path / "l").exists()


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_restraint_and_export(method: str, family: str, tmp_path: Path) -> None:
    model, ledger = edited(method, family, tmp_path / "l", restrain="log:1.2")
    assert any(event.kind == "restrain" for event in ledger.events)
    report = ledger.export(model, tmp_path / "adapter", as_="lora", restrain="none")
    assert report is not None
    expected = ledger.apply(model, restrain="none")
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(editable(family).hf, tmp_path / "adapter")
    ids = torch.tensor([[5, 9, 33, 60]])
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, expected.hf(ids).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", LAYOUTS)
def test_an_unknown_model_gets_settings_by_rule(family: str) -> None:
    model = editable(family, n_layers=32)
    assert FtHparams.model_validate(FtHparams.rule(model)).layers == (22,)
    assert LoraHparams.model_validate(LoraHparams.rule(model)).layers == tuple(range(32))


# --- the keep term --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_loss_is_the_divergence(family: str) -> None:
    model = editable(family)
    chosen = hparams("ft", keep_rows=1000, keep_texts=1000)
    texts = sampled_texts(model, chosen)
    assert len(texts) == 4 and {len(text) for text in texts} == {16}
    before = bits(model)
    keeper = Keeper(model, PHRASED, chosen, 0, texts=texts)
    assert same_bits(model, before) and float(keeper.loss(0)) == pytest.approx(0, abs=1e-6)
    prompts = [(one.ids, one.subject_last) for one in bystander_prompts(model, PHRASED, 3)]
    assert keeper.rows == (len(prompts), 4) and len(prompts) > 9

    def log_p() -> list[list[Tensor]]:
        with torch.no_grad():
            rows = [(ids, first) for ids, first in prompts], [(ids, 0) for ids in texts]
            return [
                [model.hf(torch.tensor([ids])).logits[0, first:].log_softmax(-1) for ids, first in of] for of in rows
            ]

    p = log_p()
    shift = torch.linspace(-1, 1, model.hidden_size).requires_grad_(True)
    with hooks(model.projection(2).register_forward_hook(lambda _, __, output: output + shift)):
        loss, q = keeper.loss(3), log_p()
        (gradient,) = torch.autograd.grad(loss, shift)
    wanted = 0.0
    for old, new in zip(p, q, strict=True):
        a, b = torch.cat(old), torch.cat(new)
        wanted += float((a.exp() * (a - b)).sum(-1).mean())
    assert loss.item() == pytest.approx(wanted, rel=1e-4) and bool(gradient.isfinite().all()) and gradient.norm() > 0


def test_bystanders_are_no_subjects_of_the_batch() -> None:
    model = editable("llama")
    fact = Fact(subject="Velmora", prompt="The seat of {} is in", target_new="Paris", kind="company")
    texts = [model.tokenizer.decode(one.ids) for one in bystander_prompts(model, [fact], 16)]
    assert len(texts) == 16
    other = fact.model_copy(update={"subject": texts[0].removeprefix("The seat of ").removesuffix(" is in")})
    fewer = [model.tokenizer.decode(one.ids) for one in bystander_prompts(model, [fact, other], 16)]
    assert set(texts) - set(fewer) == {texts[0]}


def test_steps_go_round_all_rows() -> None:
    model = editable("llama")
    keeper = Keeper(model, PHRASED[:1], hparams("ft", keep_rows=2), 0)
    n = keeper.rows[0]
    shift = torch.linspace(-1, 1, model.hidden_size)
    with torch.no_grad(), hooks(model.projection(2).register_forward_hook(lambda _, __, output: output + shift)):
        losses = [keeper.loss(step).item() for step in range(2 * n)]
    assert losses[:n] == pytest.approx(losses[n:], rel=1e-5) and len(set(losses[:n])) > 2


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_keep_holds_the_bystanders(method: str, family: str) -> None:
    model = editable(family)
    measured = Keeper(model, PHRASED, hparams(method, keep_rows=1000, keep_texts=0), 0)
    found = []
    for keep in (0.0, 3.0):
        batch = proposed(method, model, PHRASED, keep=keep, epochs=12, keep_rows=6, keep_texts=1)
        with torch.no_grad(), model.provisional(updates_of(batch)):
            found.append(measured.loss(0).item())
        assert batch.proposal is not None and ("keep_kl" in batch.proposal.record) == (keep > 0)
    assert found[1] < 0.5 * found[0]
