"""The spectrum of W + A·B against dense singular values in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Spectrum


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(p: int, q: int, s: Tensor, seed: int) -> Tensor:
    u = torch.linalg.qr(normal(p, len(s), seed=seed))[0]
    v = torch.linalg.qr(normal(q, len(s), seed=seed + 1))[0]
    return (u * s) @ v.mT


def check(W: Tensor, update: LowRank | None, rtol: float = 1e-9) -> None:
    before = W.clone()
    spectrum = Spectrum(W)
    found = spectrum.of(update)
    dense = W.double() if update is None else W.double() + update.to(dtype=torch.float64).to_dense()
    s = torch.linalg.svdvals(dense)
    assert found.sigma_max == pytest.approx(float(s[0]), rel=rtol)
    assert found.sigma_min == pytest.approx(float(s[-1]), rel=1e-6, abs=1e-13 * float(s[0]))
    if found.sigma_min > 1e-10 * found.sigma_max:
        assert found.kappa == pytest.approx(float(s[0] / s[-1]), rel=1e-6)
    own = 0.0 if update is None else float(torch.linalg.matrix_norm(update.to(dtype=torch.float64).to_dense(), 2))
    assert found.update_sigma_max == pytest.approx(own, rel=1e-9, abs=1e-12)
    assert spectrum.sigma_max == pytest.approx(float(torch.linalg.svdvals(W.double())[0]), rel=rtol)
    assert torch.equal(W, before)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 6), st.floats(1e-3, 1e3), st.integers(0, 9999))
def test_extremes_of_any_shape(p: int, q: int, r: int, scale: float, seed: int) -> None:
    update = LowRank(scale * normal(p, r, seed=seed), normal(r, q, seed=seed + 1)) if r else None
    check(normal(p, q, seed=seed + 2), update)


@pytest.mark.parametrize(("p", "q"), [(30, 50), (50, 30), (40, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_orientations(p: int, q: int, dtype: torch.dtype) -> None:
    W = normal(p, q, seed=0).to(dtype)
    check(W, None)
    check(W, LowRank(normal(p, 4, seed=1).to(dtype), normal(4, q, seed=2).to(dtype)))


@pytest.mark.parametrize(("p", "q"), [(30, 50), (50, 30)])
def test_rank_deficient(p: int, q: int) -> None:
    """σ_min is zero to rounding, and an update can lift it or make it zero."""
    W = with_values(p, q, torch.linspace(10, 1, 25, dtype=torch.float64), seed=0)
    found = Spectrum(W).of(None)
    assert found.sigma_min < 1e-12
    assert found.kappa > 1e12
    assert Spectrum(torch.zeros(3, 4)).of(None).kappa == math.inf
    lifted = LowRank(normal(p, 5, seed=5), normal(5, q, seed=6))
    check(W, lifted)
    full = with_values(p, q, torch.linspace(10, 1, 30, dtype=torch.float64), seed=0)
    u, s, vh = torch.linalg.svd(full, full_matrices=False)
    gone = LowRank(-u[:, 29:] * s[29:], vh[29:])
    assert Spectrum(full).of(gone).sigma_min < 1e-12


@pytest.mark.parametrize(("p", "q"), [(40, 60), (60, 40)])
def test_ill_conditioned(p: int, q: int) -> None:
    """κ = 1e7, where a Gram matrix alone has lost σ_min."""
    W = with_values(p, q, torch.logspace(1, -6, 40, dtype=torch.float64), seed=3)
    assert Spectrum(W).of(None).kappa == pytest.approx(1e7, rel=1e-6)
    check(W, None)
    check(W, LowRank(100 * normal(p, 2, seed=4), normal(2, q, seed=5)))
    check(W, LowRank(1e-7 * normal(p, 2, seed=4), normal(2, q, seed=5)))


def test_beyond_a_thousand_rows() -> None:
    """The route of large weights: Lanczos for σ_max, a Cholesky factorisation for σ_min."""
    p, q = 1100, 1200
    W = normal(p, q, seed=7).float()
    update = LowRank(normal(p, 3, seed=8), normal(3, q, seed=9))
    spectrum = Spectrum(W)
    dense = W.double() + update.to_dense()
    s = torch.linalg.svdvals(dense)
    found = spectrum.of(update)
    assert found.sigma_max == pytest.approx(float(s[0]), rel=1e-9)
    assert found.sigma_min == pytest.approx(float(s[-1]), rel=1e-7)
    transposed = Spectrum(W.mT).of(LowRank(update.B.mT, update.A.mT))
    assert transposed.sigma_min == pytest.approx(found.sigma_min, rel=1e-9)
