"""Solves that carry the keys of the edits before them: one sum, whatever the order; an undo is exact."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from core import FACTS, editable, random_moments
from edits import run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tether.algebra.joint_solve import solve
from tether.algebra.ridge import ridge_sum
from tether.editors import metric as metric_module
from tether.editors.metric import Memory
from tether.errors import BadSettingsError
from tether.ledger import Ledger
from tether.ledger.combine import merge, pick

LAMBDA = 20.0


def positive(q: int, generator: torch.Generator) -> Tensor:
    keys = torch.randn(3 * q, q, generator=generator, dtype=torch.float64)
    return keys.mT @ keys / len(keys)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), order=st.randoms(use_true_random=False),
    seed=st.integers(0, 999), weight=st.sampled_from([0.3, 5.0]),
)  # fmt: skip
def test_any_order_and_batch_size_adds_up_to_one_solve(sizes: list[int], order: Any, seed: int, weight: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q, n = 5, 9, sum(sizes)
    C, W0 = positive(q, generator), torch.randn(p, q, generator=generator, dtype=torch.float64)
    K, V = (torch.randn(n, size, generator=generator, dtype=torch.float64) for size in (q, p))
    rows = order.sample(range(n), n)
    W, A = W0.clone(), weight * C
    for size in sizes:
        now, rows = rows[:size], rows[size:]
        solution = solve(K[now], torch.linalg.solve(A, K[now].mT).mT, weight=1.0)
        W = W + (V[now] - K[now] @ W.mT).mT @ solution.G
        A = A + K[now].mT @ K[now]
    once = W0 + (V.mT - W0 @ K.mT) @ K @ torch.linalg.inv(weight * C + K.mT @ K)
    torch.testing.assert_close(W, once, rtol=1e-8, atol=1e-9)
    X = torch.linalg.solve(weight * C, K.mT).mT
    found = ridge_sum(K, X, V - K @ W0.mT)
    torch.testing.assert_close(found.to_dense(), (once - W0).float(), rtol=1e-4, atol=1e-5)


def edited(folder: Path, layout: str, method: str, facts: Any = FACTS, **options: Any) -> tuple[Any, Ledger]:
    model = editable(layout)
    changes: dict[str, Any] = {"history": True, "mom2_update_weight": LAMBDA}
    if method != "r-rome":
        changes["layers"] = (0, 1)
    ledger = run(model, facts, folder, method=method, changes=changes, **options)
    assert [event.kind for event in ledger.events] == ["edit"] * len(facts)
    return model, ledger


def of_live(ledger: Ledger, name: str, edits: Any = None) -> Tensor:
    """The dense formula on what the ledger recorded of its live edits: D Xᵀ-form made from K, V alone."""
    parts = []
    for event in ledger.live():
        if edits is None or event.edit in edits:
            tensors = ledger.tensors(event)
            parts.append([tensors[f"{name}/{kind}"][event.part].double() for kind in "KXD"])
    K, X, D = (torch.cat(one) for one in zip(*parts, strict=True))
    return D.mT @ torch.linalg.inv(torch.eye(len(K), dtype=torch.float64) + K @ X.mT) @ X


def same(found: Any, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-5 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
@pytest.mark.parametrize(("method", "size"), [("r-rome", 1), ("memit", 1), ("memit", 4), ("emmet", 2)])
def test_the_weights_are_the_ridge_solution_of_the_live_edits(
    layout: str, method: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_module, "_PENDING", 2)
    model, ledger = edited(tmp_path / "l", layout, method, batch_size=size)
    for name in ledger.header.weights:
        same(ledger.sums().of[name].dense, of_live(ledger, name))
        same(model.update(name), of_live(ledger, name))
        same(ledger.sums(3).of[name].dense, of_live(ledger, name, {1, 2, 3}))
    whole = {name: held.dense for name, held in ledger.sums().of.items()}

    ledger.undo(2)
    for name in ledger.header.weights:
        same(ledger.sums().of[name].dense, of_live(ledger, name))
        same(ledger.sums(4).of[name].dense, of_live(ledger, name, {1, 3, 4}))
        assert not torch.allclose(ledger.sums().of[name].dense, whole[name])
        simply = sum(ledger.factors(event)[name].to_dense() for event in ledger.live())
        assert float((simply - ledger.sums().of[name].dense).norm()) > 1e-4 * float(whole[name].norm())
    ledger.redo(2)
    for name in ledger.header.weights:
        same(ledger.sums().of[name].dense, whole[name].double())


@pytest.mark.parametrize("restrain", ["none", "log:1.2"])
def test_edits_after_an_undo_go_on_from_what_is_live(restrain: str, tmp_path: Path) -> None:
    model, ledger = edited(tmp_path / "l", "llama", "memit", FACTS[:4], batch_size=2)
    ledger.undo(1)
    ledger.apply(model)
    ledger = run(model, FACTS[4:], ledger.path, batch_size=2, restrain=restrain)
    assert ledger.live_numbers() == [2, 3, 4, 5, 6]
    for name in ledger.header.weights:
        if restrain == "none":
            same(model.update(name), of_live(ledger, name))
        assert torch.equal(model.update(name), Ledger.open(ledger.path).sums().of[name].dense), "the same bits"
        free = ledger.sums(restrain="none", exact=False).of[name].dense
        same(free, of_live(ledger, name))
    ledger.undo(2, 6)
    for name in ledger.header.weights:
        same(ledger.sums(restrain="none").of[name].dense, of_live(ledger, name))
    states = [sums.of[name].dense for _, sums in ledger.replay().solves()]
    same(states[-1], ledger.sums(exact=False).of[name].dense.double())


def test_a_guard_looks_at_the_ledger_without_some_edits(tmp_path: Path) -> None:
    _, ledger = edited(tmp_path / "l", "gpt2", "memit", FACTS[:4], batch_size=2)
    trial = ledger.replay().without({2}).sums()
    ledger.undo(2)
    for name in ledger.header.weights:
        assert torch.equal(trial.of[name].dense, ledger.sums().of[name].dense)


def test_history_and_bystanders_are_not_had_together(tmp_path: Path) -> None:
    with pytest.raises(BadSettingsError, match="history true asks for bystanders 0"):
        run(editable("llama"), FACTS[:1], tmp_path / "l", method="memit", changes={"history": True, "bystanders": 3})
    with pytest.raises(BadSettingsError, match=r"history true: rome .* use r-rome"):
        run(editable("llama"), FACTS[:1], tmp_path / "m", method="rome", changes={"history": True})


def test_a_memory_costs_no_growing_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys beside the matrix, and keys put into it, give the dense formula's answer; an undo is noticed."""
    monkeypatch.setattr(metric_module, "_PENDING", 3)
    q, moments, memory = 8, random_moments(8), Memory()
    keys = torch.randn(12, q, generator=torch.Generator().manual_seed(1))
    hparams = SimpleNamespace(history=True, moments_ridge=0.1, mom2_update_weight=5.0)
    k = torch.randn(2, q, dtype=torch.float64)
    ridge = 0.1 * moments.C.diagonal().mean() * torch.eye(q, dtype=torch.float64)
    for live in [(), (1,), (1, 2), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6), (1, 3, 4, 5, 6), tuple(range(1, 12))]:
        rows = [edit - 1 for edit in live]
        history = SimpleNamespace(rows=lambda _, live=live: live, keys=lambda _, rows=rows: keys[rows])
        metric = memory.metric(
            "w", SimpleNamespace(hparams=hparams, moments={0: moments}, history=history), 0, keys[:0]
        )
        dense = moments.C + ridge + keys[rows].double().mT @ keys[rows].double() / 5.0
        torch.testing.assert_close(metric.solve(k), torch.linalg.solve(dense, k.mT).mT, rtol=1e-9, atol=1e-10)
        assert len(metric.keys) <= 3


def test_edits_that_hold_each_other_are_not_taken_apart(tmp_path: Path) -> None:
    _, ledger = edited(tmp_path / "l", "llama", "memit", FACTS[:2])
    with pytest.raises(BadSettingsError, match="carry each other's keys"):
        pick(ledger, [2], tmp_path / "picked")
    with pytest.raises(BadSettingsError, match="edit the facts of the one onto the other"):
        merge(ledger, ledger, tmp_path / "merged")
    assert not (tmp_path / "picked").exists() and not (tmp_path / "merged").exists()
    whole = pick(ledger, [1, 2], tmp_path / "whole")
    for name, held in whole.sums().of.items():
        assert torch.equal(held.dense, ledger.sums().of[name].dense)
    whole.undo(1)
    ledger.undo(1)
    for name, held in whole.sums().of.items():
        assert torch.equal(held.dense, ledger.sums().of[name].dense)
