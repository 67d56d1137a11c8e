"""What long sequential editing asks of the editors: AlphaEdit's solve, NAS's norm, ENCORE's early stopping."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import torch
from core import FACTS, PREFIXES, close, editable, hparams, random_moments, random_update
from test_memit import context as memit_context
from test_memit import memit
from torch import Tensor

from tether.algebra.joint_solve import Solution
from tether.algebra.null_space import null_space
from tether.editors import Batch, Context, Editor, EditSkippedError, Proposal, editor
from tether.editors.delta import OptimisedDelta, optimise, rows_of
from tether.editors.metric import Metric, equally
from tether.editors.moments import Moments
from tether.editors.prompts import encode_contexts
from tether.editors.settings import settings_for
from tether.editors.target_norm import TargetNorm
from tether.errors import BadSettingsError
from tether.facts import Fact, read_facts
from tether.models import EditableModel
from tether.models.frozen_prefix import align, full_forward, hooks

LAYOUTS = ["llama", "gpt2"]
T = 0.8  # of the mean eigenvalue: about half of the directions of `random_moments`


def one(name: str) -> Editor:
    found = editor(name)
    assert isinstance(found, Editor)
    return found


def context(model: EditableModel, prefixes: tuple[str, ...] = PREFIXES, **changes: Any) -> Context:
    q = model.weight(model.weight_name(1)).shape[1]
    return Context(hparams(**changes), prefixes, {1: random_moments(q)})


def proposed(batch: Batch) -> Proposal:
    assert batch.proposal is not None
    return batch.proposal


# --- AlphaEdit's solve ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("weight", [20.0, 0.5])
def test_memit_in_the_null_space_is_alphaedits_solve(family: str, weight: float) -> None:
    """ΔWᵀ = (P K Kᵀ + bI)⁻¹ P K Rᵀ, for the keys and residuals that the editor used; b = λ · mean(diag C)."""
    model = editable(family)
    given = memit_context(model, null_space=T, mom2_update_weight=weight)
    proposal = proposed(memit().propose_batch(model, FACTS[:3], given))
    for layer in given.hparams.layers:
        name, C = model.weight_name(layer), given.moments[layer].C
        K, R = proposal.vectors[f"{name}/K"].double().mT, proposal.updates[name].A.double()
        values, vectors = torch.linalg.eigh(C)
        low = vectors[:, values < T * values.mean()]
        P, b = low @ low.mT, weight * C.diagonal().mean()
        assert 0 < low.shape[1] < len(C)
        dense = torch.linalg.solve(P @ K @ K.mT + b * torch.eye(len(C), dtype=C.dtype), P @ K @ R.mT).mT
        update = proposal.updates[name].to_dense().double()
        assert close(update, dense, 1e-5)
        assert float((update - update @ P).norm()) < 1e-6 * float(update.norm()), "nothing outside the null space"
        # An undo within the batch: the same solve without that fact's key.
        G, H = proposal.updates[name].B.double(), proposal.vectors[f"{name}/H"].double()
        kept = Solution(G, H).without([1]).G
        K, R = K[:, [0, 2]], R[:, [0, 2]]
        dense = torch.linalg.solve(P @ K @ K.mT + b * torch.eye(len(C), dtype=C.dtype), P @ K @ R.mT).mT
        assert close(R @ kept, dense, 1e-4)


@pytest.mark.parametrize("count", [3, 30])
def test_bystanders_join_the_null_space(count: int) -> None:
    """In coordinates of U: (c̄I + w UᵀE[bbᵀ]U)⁻¹, for fewer and for more bystanders than a key has numbers."""
    q, weight = 12, 0.7
    C = random_moments(q).C * torch.logspace(0, -1, q, dtype=torch.float64).outer(
        torch.logspace(0, -1, q, dtype=torch.float64)
    )
    keys, k = (random_update(n, q, n, seed=n).B.double() for n in (count, 4))
    U = null_space(C, T)
    inner = (
        C.diagonal().mean() * torch.eye(U.shape[1], dtype=torch.float64) + weight * U.mT @ (keys.mT @ keys / count) @ U
    )
    found = Metric(Moments(C, 100, ()), equally(keys, weight), 0.3, T).solve(k)
    torch.testing.assert_close(found, k @ U @ torch.linalg.inv(inner) @ U.mT)


def test_an_empty_null_space_ends_the_run() -> None:
    model = editable("llama")
    with pytest.raises(BadSettingsError, match=r"no eigenvalue of the moments lies below 0\.001 times their mean"):
        memit().propose_batch(model, FACTS[:2], memit_context(model, null_space=0.001))
    with pytest.raises(BadSettingsError, match="null_space"):
        settings_for("memit", model, given={"null_space": 0})
    with pytest.raises(BadSettingsError, match="null_space"):
        settings_for("rome", model, given={"null_space": 0.5})


# --- ENCORE's early stopping ------------------------------------------------------------------------------------------

SEARCH: dict[str, Any] = {"v_lr": 0.2, "v_num_grad_steps": 40, "loss_threshold": 1e-6, "kl_factor": 0.0}
ENDS = tuple(Fact(subject=f.subject, prompt="I think that you know {}", target_new="x") for f in FACTS[:4])


def likely(model: EditableModel, fact: Fact) -> list[Fact]:
    """The fact with other targets, each one token: the likeliest first."""
    ids = model.tokenizer(fact.text)["input_ids"]
    with torch.no_grad():
        order = model.hf(input_ids=torch.tensor([ids])).logits[0, -1].argsort(descending=True).tolist()
    words = {token: model.tokenizer.decode([token]) for token in order}
    alone = [word for token, word in words.items() if model.tokenizer(fact.text + word)["input_ids"] == [*ids, token]]
    return [fact.model_copy(update={"target_new": word, "join": ""}) for word in alone if word.isalnum()]


def searched(model: EditableModel, facts: list[Fact], **changes: Any) -> list[OptimisedDelta]:
    groups = [encode_contexts(model, fact, PREFIXES) for fact in facts]
    rows = align([prompt for group in groups for prompt in group], model.device)
    run, firsts = full_forward(model, rows, 1), [first for first, _ in rows_of(groups)]
    return optimise(model, groups, rows, run, run.values[firsts], hparams(**{**SEARCH, **changes}))


def says(model: EditableModel, fact: Fact, delta: Tensor, prefixes: tuple[str, ...] = PREFIXES) -> bool:
    """Whether the model with δ at the subject finds the target the most probable in every context: whole forwards."""
    said = []
    for prompt in encode_contexts(model, fact, prefixes)[:-1]:

        def add(_: Any, __: Any, output: Tensor, at: int = prompt.subject_last) -> Tensor:
            return torch.cat([output[:, :at], output[:, at : at + 1] + delta, output[:, at + 1 :]], dim=1)

        with torch.no_grad(), hooks(model.projection(1).register_forward_hook(add)):
            logits = model.hf(input_ids=torch.tensor([prompt.ids])).logits[0]
        start = prompt.target_start
        said.append(logits[start - 1 : -1].argmax(-1).tolist() == list(prompt.ids[start:]))
    return all(said)


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_search_stops_when_the_target_is_the_most_probable(family: str) -> None:
    """Exactly there, and not one evaluation before."""
    model = editable(family)
    fact = likely(model, ENDS[1])[5]
    (stopped,) = searched(model, [fact], most_probable=1)
    steps = len(stopped.losses)
    assert 2 < steps < 40 and stopped.said and says(model, fact, stopped.delta)
    (before,) = searched(model, [fact], v_num_grad_steps=steps - 1)
    assert before.losses == stopped.losses[:-1] and not before.said and not says(model, fact, before.delta)
    (later,) = searched(model, [fact], most_probable=3)
    assert len(later.losses) == steps + 2, "two evaluations more that find it so"


def test_a_batch_stops_fact_by_fact() -> None:
    model = editable("gpt2")
    facts = [likely(model, fact)[place] for fact, place in zip(ENDS, (2, 8, 14, 20), strict=True)]
    together = searched(model, facts, most_probable=1)
    alone = [searched(model, [fact], most_probable=1)[0] for fact in facts]
    assert [len(x.losses) for x in together] == [len(x.losses) for x in alone]
    assert len({len(x.losses) for x in alone}) > 1 and sum(x.said for x in alone) > 1
    for x, y in zip(together, alone, strict=True):
        assert x.said == y.said and close(x.delta, y.delta, 1e-4)


def test_what_the_model_says_already_is_skipped() -> None:
    model = editable("llama")
    found = [likely(model, fact)[0] for fact in (*ENDS, *FACTS)]
    said = next(f for f in found if says(model, f, torch.zeros(model.hidden_size), ()))
    given = context(model, (), **SEARCH, most_probable=1)
    with pytest.raises(EditSkippedError, match="already says"):
        one("r-rome").propose(model, said, given)
    one("r-rome").propose(model, said, context(model, (), **SEARCH))  # its loss is not below the threshold


# --- NAS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_every_value_has_the_norm(family: str, name: str) -> None:
    model = editable(family)
    fact = FACTS[0].model_copy(update={"phrasings": ("You can see the {} in",)})
    weight = model.weight_name(1)
    plain = one(name).propose(model, fact, context(model))
    scaled = one(name).propose(model, fact, context(model, target_norm=2.5))
    V, before = (torch.atleast_2d(x.vectors[f"{weight}/V"]).double() for x in (scaled, plain))
    assert len(V) == (2 if name == "r-rome" else 1)
    torch.testing.assert_close(V, 2.5 * before / before.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)
    if name == "r-rome":  # v* is what the edited weight gives at its key, bias included
        bias = model.projection(1).bias
        K, W = scaled.vectors[f"{weight}/K"].double(), model.weight(weight).double()
        given = K @ (W + scaled.updates[weight].to_dense().double()).mT + (0 if bias is None else bias.double())
        torch.testing.assert_close(given[1], V[1], rtol=1e-3, atol=1e-3)
    assert scaled.record["loss_last"] == plain.record["loss_last"] and scaled.record["steps"] == plain.record["steps"]


@pytest.mark.parametrize("family", LAYOUTS)
def test_memit_scales_the_projections_share_of_its_target(family: str) -> None:
    """z = h − v₀ + a·(v₀ + δ)/‖v₀ + δ‖."""
    model, weight = editable(family), editable(family).weight_name(1)
    batches = [
        memit().propose_batch(model, FACTS[:3], memit_context(model, **more)) for more in ({}, {"target_norm": 3})
    ]
    plain, Z = (proposed(batch).vectors[f"{weight}/V"] for batch in batches)
    groups = [encode_contexts(model, fact, ()) for fact in FACTS[:3]]
    run = full_forward(model, align([group[0] for group in groups], model.device), 1)
    share = plain - run.hidden[:, 0] + run.values
    expected = run.hidden[:, 0] - run.values + 3 * share / share.norm(dim=1, keepdim=True)
    torch.testing.assert_close(Z, expected, rtol=1e-4, atol=1e-4)
    before, record = (batch.outcomes[0] for batch in batches)
    assert isinstance(record, dict) and record["target_norm"] == 3
    assert isinstance(before, dict) and "target_norm" not in before
    assert record["v0_norm"] == pytest.approx(float(run.hidden[0, 0].norm()), rel=1e-4)


def test_the_pilot_is_of_the_unedited_model() -> None:
    """The trimmed mean of ‖v*‖ of the 64 facts, each from its bare prompt, also while the model carries edits."""
    model, few = editable("llama", n_layers=3), {"v_num_grad_steps": 2}
    facts = read_facts(str(resources.files("tether") / "data" / "demo_facts.jsonl"))
    groups = [encode_contexts(model, fact.model_copy(update={"phrasings": ()}), ()) for fact in facts]
    rows = align([prompt for group in groups for prompt in group], model.device)
    run, firsts = full_forward(model, rows, 1), list(range(0, 128, 2))  # a KL prompt after each
    found = optimise(model, groups, rows, run, run.values[firsts], hparams(**few))
    sizes = sorted((run.values[firsts] + torch.stack([one.delta for one in found])).norm(dim=1).tolist())
    p, q = model.weight(model.weight_name(1)).shape
    with model.provisional({model.weight_name(1): random_update(p, q, 2, seed=3)}):
        norm = TargetNorm().of(model, hparams(target_norm="nas", **few), of_block=False)
        assert model.edited, "it carries what it carried"
    assert len(sizes) == 64 and norm == pytest.approx(sum(sizes[:61]) / 61, rel=1e-4)
    assert TargetNorm().of(model, hparams(target_norm=1.5), of_block=False) == 1.5
    assert TargetNorm().of(model, hparams(), of_block=False) is None


@pytest.mark.parametrize("value", [0, -1, "other"])
def test_a_bad_norm_is_refused(value: Any) -> None:
    with pytest.raises(BadSettingsError, match="target_norm"):
        settings_for("memit", editable("llama"), given={"target_norm": value})
