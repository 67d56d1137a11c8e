"""The spectrum of W + A·B against dense singular values in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Extremes, RunningSpectrum, Spectrum
from tether.errors import TetherError


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


# --- while updates are added ------------------------------------------------------------------------------------------


def check_look(running: RunningSpectrum, W: Tensor, total: Tensor, update: LowRank | None) -> None:
    """One look against dense singular values; everything that is measured, σ_min too."""
    added = total if update is None else total + update.to(dtype=torch.float64).to_dense()
    s, own = (torch.linalg.svdvals(matrix) for matrix in (W.double() + added, added))
    found = running.look(update, sigma_min=True)
    assert isinstance(found, Extremes)
    assert found.sigma_max == pytest.approx(float(s[0]), rel=1e-6)
    assert found.update_sigma_max == pytest.approx(float(own[0]), rel=1e-6, abs=1e-9 * float(s[0]))
    assert found.sigma_min == pytest.approx(float(s[-1]), rel=1e-6, abs=1e-12 * float(s[0]))
    if found.sigma_min > 1e-8 * found.sigma_max:
        assert found.kappa == pytest.approx(float(s[0] / s[-1]), rel=1e-6)


steps = st.lists(
    st.tuples(st.sampled_from(["commit", "look", "unseen", "reset"]), st.integers(0, 3), st.floats(-3, 2)), max_size=12
)


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(st.integers(1, 12), st.integers(129, 150)), st.one_of(st.integers(1, 12), st.integers(129, 150)),
    st.floats(0, 1), steps, st.integers(1, 8), st.integers(0, 9999),
)  # fmt: skip
def test_a_running_spectrum_is_that_of_the_dense_sum(
    p: int, q: int, share: float, plan: list[tuple[str, int, float]], anchor_every: int, seed: int
) -> None:
    """W₀ of any shape and rank; updates proposed and left, proposed and added, added unseen; the sum replaced."""
    rank = max(1, round(share * min(p, q)))
    W = (normal(p, rank, seed=seed) @ normal(rank, q, seed=seed + 1) / rank).float()
    running, total = RunningSpectrum(W, anchor_every=anchor_every), torch.zeros(p, q, dtype=torch.float64)
    check_look(running, W, total, None)
    for i, (step, k, exponent) in enumerate(plan):
        update = LowRank(10**exponent * normal(p, k, seed=i), normal(k, q, seed=i + 100)).to(dtype=torch.float32)
        if step == "reset":
            running.reset(update)
            total = update.to(dtype=torch.float64).to_dense()
            continue
        if step != "unseen":
            check_look(running, W, total, update)
        if step != "look":
            running.commit(update)
            total = total + update.to(dtype=torch.float64).to_dense()
    check_look(running, W, total, None)


@pytest.mark.parametrize(("p", "q"), [(140, 200), (200, 140)])
def test_a_direction_orthogonal_to_the_last_one_is_not_missed(p: int, q: int) -> None:
    """The last singular vector is an eigenvector of what follows, so Lanczos from it alone would stop there."""
    W = torch.zeros(p, q)
    W.diagonal().copy_(torch.linspace(5, 1, 140))
    running, total = RunningSpectrum(W), torch.zeros(p, q, dtype=torch.float64)
    for i in (100, 50, 20, 50):
        column, row = torch.zeros(p, 1), torch.zeros(1, q)
        column[i], row[0, i] = 4.0, 1.0
        check_look(running, W, total, LowRank(column, row))
        running.commit(LowRank(column, row))
        total[i, i] += 4


@pytest.mark.parametrize(("p", "q"), [(150, 140), (40, 60)])
def test_many_edits_do_not_drift(p: int, q: int) -> None:
    W, total = normal(p, q, seed=0).float(), torch.zeros(p, q, dtype=torch.float64)
    running = RunningSpectrum(W, anchor_every=1000)

    def held() -> int:
        tensors = [*running.__dict__.values(), *running.__dict__["_grams"]]
        return sum(one.numel() for one in tensors if isinstance(one, Tensor))

    running.look(None)
    at_first = held()
    for i in range(400):
        update = LowRank(normal(p, 1, seed=2 * i) / p, normal(1, q, seed=2 * i + 1)).to(dtype=torch.float32)
        if i % 7 == 0:
            running.look(update)
        running.commit(update)
        total += update.to(dtype=torch.float64).to_dense()
    check_look(running, W, total, None)
    assert held() == at_first, "what is kept does not grow with the edits"


def test_sigma_min_is_measured_when_it_is_due() -> None:
    """First, every third commit, and where σ_max has grown by a tenth; never for a proposal that was not added."""
    p, q = 20, 30
    running = RunningSpectrum(normal(p, q, seed=0), sigma_min_every=3)

    def update(scale: float) -> LowRank:
        return LowRank(scale * normal(p, 1, seed=1), normal(1, q, seed=2))

    def measured(scale: float, *, commit: bool = True) -> bool:
        one = update(scale)
        found = running.look(one)
        if commit:
            running.commit(one)
        return isinstance(found, Extremes)

    assert measured(1e-6, commit=False) and measured(1e-6, commit=False), "not added, so still due"
    assert [measured(1e-6) for _ in range(7)] == [True, False, False, True, False, False, True]
    assert measured(10, commit=False) and not measured(1e-6), "a jump of σ_max"
    assert measured(10) and not measured(1e-6)
    running.reset(update(0.1))
    assert measured(1e-6)
    assert "kappa" not in running.look(update(1e-6)).to_dict()
    assert set(running.look(None, sigma_min=True).to_dict()) == {"sigma_max", "sigma_min", "kappa", "update_sigma_max"}


@pytest.mark.parametrize("size", [30, 140])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_in_one_line(size: int, value: float) -> None:
    W, update = normal(size, size + 1, seed=0), LowRank(normal(size, 1, seed=1), normal(1, size + 1, seed=2))
    update.A[3] = value
    for call in (lambda: Spectrum(W).of(update), lambda: RunningSpectrum(W).look(update)):
        with pytest.raises(TetherError, match="not finite") as caught:
            call()
        assert "\n" not in str(caught.value)
    W[0, 0] = value
    with pytest.raises(TetherError, match="not finite"):
        _ = Spectrum(W).unedited


def test_lanczos_that_does_not_converge_gives_way_to_a_whole_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise scipy.sparse.linalg.ArpackNoConvergence("No convergence", np.empty(0), np.empty((0, 0)))

    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", never)
    W, update = normal(140, 150, seed=0), LowRank(normal(140, 2, seed=1), normal(2, 150, seed=2))
    check_look(RunningSpectrum(W), W, torch.zeros_like(W), update)

    def broken(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge.\nAnother line")

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    with pytest.raises(TetherError, match="do not converge") as caught:
        RunningSpectrum(W).look(update)
    assert "\n" not in str(caught.value)


def test_the_weight_is_not_changed_and_both_ways_agree() -> None:
    W, update = normal(30, 20, seed=0).float(), LowRank(normal(30, 2, seed=1), normal(2, 20, seed=2))
    before, running = W.clone(), RunningSpectrum(W)
    running.commit(update)
    assert torch.equal(W, before)
    found, expected = running.look(None, sigma_min=True), Spectrum(W).of(update)
    assert found.to_dict() == pytest.approx(expected.to_dict(), rel=1e-9)
    assert Spectrum(W).unedited.kappa == pytest.approx(RunningSpectrum(W).look(None, sigma_min=True).to_dict()["kappa"])
