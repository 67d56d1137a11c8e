"""A fact edited for several prompts: a key and a column each, one δ; bystanders' keys, which must not move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core import FACTS, PREFIXES, bits, editable, random_moments, same_bits
from core import hparams as rome_hparams
from edits import run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_memit import context as memit_context
from torch import Tensor

from tether.editors import BatchEditor, Context, Editor, editor
from tether.editors import rome as rome_module
from tether.editors.bystanders import bystander_prompts, keys_of
from tether.editors.delta import Group, merged, optimise
from tether.editors.metric import Metric, equally
from tether.editors.moments import Moments
from tether.editors.prompts import encode_contexts, group_of
from tether.facts import Fact, encode_fact
from tether.ledger.history import LedgerHistory
from tether.models import EditableModel
from tether.models.frozen_prefix import align, keys_and_states

LAYOUTS = ["llama", "gpt2"]
PHRASED = [
    FACTS[0].model_copy(update={"phrasings": ("Who visits the {} is in", "Where is {}?"), "kind": "building"}),
    FACTS[1],
    FACTS[4].model_copy(update={"phrasings": ("{} is ruled from",), "kind": "country"}),
]
COLUMNS = [3, 1, 2]


def own_keys(model: EditableModel, fact: Fact, layer: int) -> Tensor:
    """The input of a projection at the subject, of every prompt alone; n×q float64."""
    rows = [contexts[0] for contexts in encode_contexts(model, fact, ()).phrasings]
    return keys_and_states(model, align(rows, model.device), layer, layer)[0].double()


# --- the metric -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(n=st.integers(0, 12), m=st.integers(1, 4), weight=st.sampled_from([0.0, 0.3, 50.0]), seed=st.integers(0, 99))
def test_the_metric_is_that_of_the_dense_formula(n: int, m: int, weight: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, moments = 7, random_moments(7, seed)
    B, k = (torch.randn(rows, q, generator=generator, dtype=torch.float64) for rows in (n, m))
    dense = (
        moments.C
        + 0.1 * moments.C.diagonal().mean() * torch.eye(q, dtype=torch.float64)
        + weight * (B.mT @ B) / max(1, n)
    )
    found = Metric(moments, equally(B, weight), 0.1).solve(k)
    torch.testing.assert_close(found, torch.linalg.solve(dense, k.mT).mT, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(Metric(moments, equally(B, weight), 0.1).solve(k[0]), found[0], rtol=1e-12, atol=1e-12)


# --- keys and columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LAYOUTS)
def test_r_rome_writes_delta_at_every_key(family: str) -> None:
    """ΔW K = R: at every phrasing the edited projection gives what it gave, and δ."""
    model, fact = editable(family), PHRASED[0]
    layer = 1
    name = model.weight_name(layer)
    found = Context(rome_hparams(prefixes=()), (), {layer: random_moments(model.weight(name).shape[1])})
    rome = editor("r-rome")
    assert isinstance(rome, Editor)
    proposal = rome.propose(model, fact, found)
    update, keys = proposal.updates[name], own_keys(model, fact, layer)
    assert update.rank == 3 and proposal.vectors[f"{name}/V"].shape[0] == 3
    torch.testing.assert_close(proposal.vectors[f"{name}/K"].double(), keys, rtol=1e-5, atol=1e-6)
    added = keys @ update.to_dense().double().mT
    torch.testing.assert_close(added[1], added[0], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(added[2], added[0], rtol=2e-3, atol=1e-4)
    assert abs(float(added[0].norm()) - proposal.record["delta_norm"]) < 2e-3 * proposal.record["delta_norm"]
    # One phrasing: the rank-one update of before, whatever the setting says of several.
    alone = rome.propose(model, fact.model_copy(update={"phrasings": ()}), found)
    assert alone.updates[name].rank == 1
    mean = replace(found, hparams=rome_hparams(prefixes=(), phrasing_keys="mean"))
    assert rome.propose(model, fact, mean).updates[name].rank == 1


@pytest.mark.parametrize("method", ["memit", "emmet"])
@pytest.mark.parametrize("family", LAYOUTS)
def test_a_batch_has_a_column_for_every_phrasing(family: str, method: str) -> None:
    model = editable(family)
    found, memit = memit_context(model), editor(method)
    assert isinstance(memit, BatchEditor)
    before = bits(model)
    batch = memit.propose_batch(model, PHRASED, found)
    assert same_bits(model, before) and batch.proposal is not None
    assert list(batch.columns or ()) == COLUMNS and not batch.whole
    last = model.weight_name(found.hparams.layers[-1])
    for layer in found.hparams.layers:
        name = model.weight_name(layer)
        assert batch.proposal.updates[name].rank == 6
        assert batch.proposal.vectors[f"{name}/K"].shape[0] == 6
        with model.provisional({n: u for n, u in batch.proposal.updates.items() if n < name}):
            keys = own_keys(model, PHRASED[0], layer)
        torch.testing.assert_close(batch.proposal.vectors[f"{name}/K"][1:3].double(), keys[1:], rtol=1e-4, atol=1e-5)
    # Each column's target is its own state and one δ.
    targets = batch.proposal.vectors[f"{last}/V"][:3].double()
    rows = [contexts[0] for contexts in encode_contexts(model, PHRASED[0], PREFIXES).phrasings]
    _, states = keys_and_states(model, align(rows, model.device), found.hparams.layers[-1], found.hparams.layers[-1])
    deltas = targets - states.double()
    torch.testing.assert_close(deltas, deltas[:1].expand(3, -1), rtol=1e-4, atol=1e-5)
    mean = replace(found, hparams=found.hparams.model_copy(update={"phrasing_keys": "mean"}))
    averaged = memit.propose_batch(model, PHRASED, mean)
    assert averaged.proposal is not None and list(averaged.columns or ()) == [1, 1, 1]
    torch.testing.assert_close(
        averaged.proposal.vectors[f"{last}/V"][0], batch.proposal.vectors[f"{last}/V"][:3].mean(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", LAYOUTS)
def test_undo_takes_out_all_columns_of_a_fact(family: str, tmp_path: Path) -> None:
    """Of a batch, a fact with three keys: what is left is the solve without them, exactly."""
    model = editable(family)
    changes = {"layers": [1], "mom2_update_weight": 2.0}
    ledger = run(model, PHRASED, tmp_path / "ledger", method="memit", changes=changes, batch_size=3)
    assert [(e.column, e.columns) for e in ledger.events] == [(0, 3), (3, None), (4, 2)]
    name = model.weight_name(1)
    history = LedgerHistory(ledger)
    assert history.rows(name) == (1, 1, 1, 2, 3, 3)
    assert history.keys(name).shape[0] == history.values(name).shape[0] == history.residuals(name).shape[0] == 6
    K, R = history.keys(name).double(), ledger.tensors(ledger.events[0])[f"{name}/A"].double()
    ledger.undo(1)
    left = ledger.sums(model=model).of[name].dense.double()
    assert history.rows(name) == (2, 3, 3) and torch.equal(history.keys(name), K[3:].float())
    (moments,) = _moments(ledger, model)
    C = 2.0 * moments.C
    expected = R[:, 3:] @ torch.linalg.solve(C + K[3:].mT @ K[3:], K[3:].mT).mT
    torch.testing.assert_close(left, expected, rtol=1e-3, atol=1e-6)
    ledger.undo(2, 3)
    assert same_bits(ledger.apply(model), bits(editable(family)))
    factors = ledger.factors(ledger.events[0])[name]
    assert factors.rank == 3 and ledger.vectors(ledger.events[2], "K")[name].shape[0] == 2


def _moments(ledger: Any, model: EditableModel) -> list[Moments]:
    from tether.editing.prepare import recorded_moments

    return list(recorded_moments(model, ledger.header).values())


# --- bystanders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["r-rome", "memit"])
@pytest.mark.parametrize("family", LAYOUTS)
def test_bystanders_move_less(family: str, method: str) -> None:
    """With their keys in the metric the update moves those very keys less, beside the fact's own, than without."""
    model = editable(family)
    if method == "memit":
        found = memit_context(model, layers=(1,))
    else:
        found = Context(rome_hparams(), PREFIXES, {1: random_moments(model.weight(model.weight_name(1)).shape[1])})
    name, facts = model.weight_name(1), [PHRASED[0], PHRASED[2]]
    held = replace(found, hparams=found.hparams.model_copy(update={"bystanders": 3, "bystander_weight": 20.0}))
    prompts = bystander_prompts(model, facts[:1], 3)
    assert len(prompts) == 9  # three prompts, three subjects
    keys = keys_of(model, prompts, [1])[1]
    moved = []
    for one in (found, held):
        chosen = editor(method)
        if isinstance(chosen, BatchEditor):
            proposal = chosen.propose_batch(model, facts, one).proposal
        else:
            proposal = chosen.propose(model, facts[0], one)
        assert proposal is not None
        update = proposal.updates[name].to_dense().double()
        moved.append((float((keys @ update.mT).norm()), float((own_keys(model, facts[0], 1) @ update.mT).norm())))
    (free, own), (kept, still) = moved
    assert kept / still < 0.6 * free / own and (method == "memit" or still > 0.9 * own)


# --- several facts of one subject -----------------------------------------------------------------------------------


def test_what_is_edited_is_no_longer_kept(tmp_path: Path) -> None:
    """A second fact takes over a phrasing of the first: only the other prompt of the first is kept."""
    model = editable("llama")
    old = FACTS[0].model_copy(update={"phrasings": ("Where is {}?",)})
    ledger = run(model, [old], tmp_path / "ledger", method="memit", changes={"layers": [1], "mom2_update_weight": 2.0})
    assert ledger.live_numbers() == [1]
    new = FACTS[0].model_copy(update={"prompt": "Where is {}?", "phrasings": ("You find {} in",), "target_new": "Oslo"})
    found = Context(memit_context(model).hparams, PREFIXES, history=LedgerHistory(ledger))
    group = group_of(model, new, found)
    assert group.edited == 1 and len(group.facts) == 2
    (kept,) = group.facts[1]
    assert kept[0].asked == encode_fact(model.tokenizer, old).asked
    again = FACTS[0].model_copy(update={"target_new": "Oslo"})  # in one batch: edits the very prompt that `new` keeps
    both = merged([group, group_of(model, again, found)])
    assert both.edited == len(both.facts) == 2, "each edits what the other one would keep"


@pytest.mark.parametrize("family", LAYOUTS)
def test_r_rome_optimises_what_it_writes(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fact of the same subject to keep: what the steps add to every prompt is what the update adds there."""
    model, fact = editable(family), PHRASED[0]
    before = fact.model_copy(update={"prompt": "{} was built in the year", "phrasings": (), "target_new": "1987"})
    ledger = run(model, [before], tmp_path / "ledger")
    settings = rome_hparams()
    found = Context(settings, PREFIXES, {1: random_moments(model.weight(model.weight_name(1)).shape[1])})
    found = replace(found, history=LedgerHistory(ledger))
    seen: list[Group] = []

    def watched(*arguments: Any, **more: Any) -> Any:
        seen.extend(arguments[1])
        return optimise(*arguments, **more)

    monkeypatch.setattr(rome_module, "optimise", watched)
    rome = editor("r-rome")
    assert isinstance(rome, Editor)
    proposal = rome.propose(model, fact, found)
    (group,), name = seen, model.weight_name(1)
    rows = list(group)[:-1]
    keys = keys_and_states(model, align(rows, model.device), 1, 1)[0].double()
    update, V = proposal.updates[name], proposal.vectors[f"{name}/V"].double()
    bare = keys_and_states(model, align([rows[0]], model.device), 1, 1)[0]
    with torch.no_grad():
        delta = V[0] - model.projection(1)(bare)[0].double()
    assert group.reach is not None and group.shift is not None
    added = torch.tensor(group.reach, dtype=torch.float64)[:, None] * (delta + group.shift.double())
    torch.testing.assert_close(keys @ update.to_dense().double().mT, added, rtol=2e-2, atol=2e-3 * float(delta.norm()))


def test_the_prompt_alone_where_the_settings_say_so() -> None:
    model = editable("llama")
    chosen = Context(rome_hparams(phrasing_keys="none"), PREFIXES)
    alone = PHRASED[0].model_copy(update={"phrasings": ()})
    assert group_of(model, PHRASED[0], chosen) == group_of(model, alone, chosen)
    assert len(group_of(model, PHRASED[0], Context(rome_hparams(), PREFIXES)).phrasings) == 3
