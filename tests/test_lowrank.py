"""Low-rank updates against the dense matrices they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.algebra.lowrank import LowRank

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**31)


def make(p: int, q: int, r: int, seed: int, dtype: torch.dtype = torch.float64) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(p, r, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(r, q, generator=generator, dtype=torch.float64).to(dtype),
    )


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, st.integers(0, 15), seeds)
def test_svd_equals_the_dense_one(p: int, q: int, r: int, seed: int) -> None:
    """Also with r ≥ min(p, q), and with r = 0."""
    update = make(p, q, r, seed)
    u, s, vh = update.svd()
    k = min(p, q, r)
    assert (u.shape, s.shape, vh.shape) == ((p, k), (k,), (k, q))
    dense = update.to_dense()
    scale = max(1.0, float(dense.abs().max()) if k else 1.0)
    torch.testing.assert_close((u * s) @ vh, dense, rtol=0, atol=1e-11 * scale)
    expected = torch.linalg.svdvals(dense)
    torch.testing.assert_close(s, expected[:k], rtol=1e-10, atol=1e-10 * scale)
    assert bool((s[:-1] >= s[1:]).all()), "descending"
    eye = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(u.mT @ u, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(vh @ vh.mT, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(update.singular_values(), s, rtol=1e-10, atol=1e-10 * scale)


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, st.lists(st.integers(0, 4), min_size=1, max_size=4), seeds)
def test_sum_and_norm(p: int, q: int, ranks: list[int], seed: int) -> None:
    parts = [make(p, q, r, seed + i) for i, r in enumerate(ranks)]
    total = LowRank.sum(parts)
    dense = torch.stack([part.to_dense() for part in parts]).sum(0)
    assert total.rank == sum(ranks)
    torch.testing.assert_close(total.to_dense(), dense, rtol=1e-12, atol=1e-12)
    assert total.norm() == pytest.approx(float(torch.linalg.matrix_norm(dense)), rel=1e-10, abs=1e-12)
    folded = LowRank.zeros(p, q, dtype=torch.float64)
    for part in parts:
        folded = folded + part
    assert torch.equal(folded.A, total.A) and torch.equal(folded.B, total.B)
    # (Σ) + (−Σ) is zero up to the rounding of its terms.
    assert (total + -total).norm() <= 1e-7 * (1 + total.norm())


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, st.integers(0, 15), st.integers(0, 6), seeds)
def test_truncate_is_the_closest_of_its_rank(p: int, q: int, r: int, rank: int, seed: int) -> None:
    update = make(p, q, r, seed)
    s = update.singular_values()
    short = update.truncate(rank)
    assert short.rank == min(rank, len(s))
    error = float(torch.linalg.matrix_norm(update.to_dense() - short.to_dense()))
    assert error == pytest.approx(float(s[rank:].square().sum().sqrt()), rel=1e-9, abs=1e-9)  # Eckart-Young


def test_truncate_by_tolerance_and_to_the_numerical_rank() -> None:
    u = torch.linalg.qr(torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    v = torch.linalg.qr(torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    update = LowRank(u * torch.tensor([10.0, 1.0, 0.01]), v.mT)
    assert update.truncate(rtol=0.05).rank == 2
    assert update.truncate(rtol=0.2).rank == 1
    doubled = update + update
    assert doubled.rank == 6
    assert doubled.truncate().rank == 3
    torch.testing.assert_close(doubled.truncate().to_dense(), 2 * update.to_dense())
    assert LowRank.zeros(4, 5).truncate().rank == 0
    assert LowRank(torch.zeros(4, 2), torch.zeros(2, 5)).truncate().rank == 0


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, st.integers(0, 30), seeds)
def test_compacted_is_the_same_matrix_in_no_more_columns_than_it_needs(p: int, q: int, r: int, seed: int) -> None:
    update = make(p, q, r, seed)
    short = update.compacted()
    assert short.rank == min(p, q, r) and (short is update) == (r <= min(p, q))
    torch.testing.assert_close(short.to_dense(), update.to_dense(), rtol=0, atol=1e-12 * (1 + update.norm()))
    single = update.to(dtype=torch.float32).compacted()
    assert single.A.dtype == torch.float32
    torch.testing.assert_close(single.to_dense().double(), update.to_dense(), rtol=0, atol=1e-6 * (1 + update.norm()))


def test_singular_values_alone_form_no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither are û and v̂ᵀ kept, which are as large as the factors, in float64."""
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("vectors are formed"))
    for rank in (3, 9):
        update = make(7, 5, rank, 0)
        assert update.singular_values() is update.singular_values()
        sizes_kept = [value.numel() for name, value in vars(update).items() if name not in "AB"]
        assert sizes_kept == [min(5, rank)]


def test_dtypes() -> None:
    update = make(6, 5, 3, 0, torch.float32)
    assert update.svd()[1].dtype == torch.float64
    assert update.truncate(2).A.dtype == torch.float32
    assert update.to(dtype=torch.bfloat16).B.dtype == torch.bfloat16
    assert LowRank.zeros(3, 4).to_dense().dtype == torch.float32
    assert torch.equal(LowRank.zeros(3, 4).to_dense(), torch.zeros(3, 4))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not chain"):
        LowRank(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="do not chain"):
        LowRank(torch.zeros(3), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="shapes"):
        LowRank.zeros(3, 4) + LowRank.zeros(4, 3)
    with pytest.raises(ValueError, match="no shape"):
        LowRank.sum([])
    with pytest.raises(TypeError):
        LowRank.zeros(3, 4) + 1  # type: ignore[operator]
