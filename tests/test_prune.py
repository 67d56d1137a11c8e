"""PRUNE's restraints on hand-made spectra, and the restrained weight W + F(Σ)."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tether import restraint
from tether.algebra.lowrank import LowRank
from tether.constraints.prune import Restraint, parse, restrain

spectra = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20).map(
    lambda s: torch.tensor(sorted(s, reverse=True), dtype=torch.float64)
)
restraints = st.one_of(
    st.just(restraint.none()),
    st.floats(1.001, 100).map(restraint.log),
    st.floats(1.001, 100).map(restraint.linear),
    st.just(restraint.log(math.e)),
)


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_log_on_a_hand_made_spectrum() -> None:
    s = values(40.0, 20.0, 10.0, 9.999, 1.0, 0.0)
    expected = values(10 + math.log(4) / math.log(1.2), 10 + math.log(2) / math.log(1.2), 10.0, 9.999, 1.0, 0.0)
    before = s.clone()
    torch.testing.assert_close(restraint.log(1.2)(s, 10.0), expected, rtol=1e-14, atol=0)
    assert torch.equal(s, before), "the argument is not changed"
    torch.testing.assert_close(restraint.log(math.e)(values(10 * math.e), 10.0), values(11.0))


def test_linear_and_none_on_a_hand_made_spectrum() -> None:
    s = values(40.0, 20.0, 10.0, 1.0)
    torch.testing.assert_close(restraint.linear(2)(s, 10.0), values(25.0, 15.0, 10.0, 1.0))
    torch.testing.assert_close(restraint.linear(4)(s, 10.0), s / 4 + torch.where(s > 10, 7.5, 0.75 * s))
    assert torch.equal(restraint.none()(s, 10.0), s)
    assert restraint.none()(s, 10.0) is not s


@settings(deadline=None)
@given(spectra, st.floats(1e-3, 1e3), restraints)
def test_never_larger_monotone_and_untouched_below_m(s: Tensor, m: float, f: Restraint) -> None:
    out = f(s, m)
    assert bool((out <= s).all())
    assert bool((out[:-1] >= out[1:]).all()), "monotone"
    assert torch.equal(out[s <= m], s[s <= m])
    assert bool((out[s > m] >= m).all()), "nothing above m falls below it"


@given(st.floats(1e-3, 1e3), restraints)
def test_continuous_at_m(m: float, f: Restraint) -> None:
    assert float(f(values(m), m)) == m
    assert float(f(values(m * (1 + 1e-9)), m)) == pytest.approx(m, rel=1e-8)


def test_cap_where_m_is_below_one_over_ln_alpha(caplog: pytest.LogCaptureFixture) -> None:
    """There the formula alone would enlarge values just above m."""
    m, f = 1.0, restraint.log(1.2)
    assert m + math.log(1.5) / math.log(1.2) > 1.5
    assert float(f(values(1.5), m)) == 1.5
    assert float(f(values(1000.0), m)) == pytest.approx(1 + math.log(1000) / math.log(1.2))
    assert f.cap_limit(m) == pytest.approx(5.4848, rel=1e-4)
    assert f.cap_limit(5.49) is None
    assert restraint.linear(2).cap_limit(m) is None
    update = LowRank(torch.eye(3, 1), 1.5 * torch.eye(1, 4))
    with caplog.at_level(logging.WARNING, logger="tether"):
        restrain(LowRank(update.A, 0.5 * update.B), m, f)
        assert not caplog.text, "nothing is above m"
        torch.testing.assert_close(restrain(update, m, f).to_dense(), update.to_dense())
    assert "m = 1 below 1/ln α = 5.48" in caplog.text


@given(restraints)
def test_what_is_written_is_read_back(f: Restraint) -> None:
    """The journal keeps the written form alone: it must give the same bits."""
    assert parse(str(f)) == f
    assert parse(f) is f


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", restraint.none()),
        (" log:1.2 ", restraint.log(1.2)),
        ("log:e", restraint.log(math.e)),
        ("linear:2", restraint.linear(2)),
    ],
)
def test_parse(text: str, expected: Restraint) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


def weight_and_sum(p: int, q: int, r: int, scale: float, seed: int) -> tuple[Tensor, LowRank, float]:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(p, q, generator=generator, dtype=torch.float64)
    W *= 8 / torch.linalg.matrix_norm(W, 2)
    A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((p, r), (r, q)))
    A *= scale * 8 / torch.linalg.matrix_norm(A @ B, 2)
    return W, LowRank(A, B), float(torch.linalg.matrix_norm(W, 2))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 14), st.floats(1.1, 50), st.integers(0, 999), restraints)
def test_large_sums_equal_the_dense_formula(p: int, q: int, r: int, scale: float, seed: int, f: Restraint) -> None:
    """W̄ = W + Σ σ̄ û v̂ᵀ (eq. 6) by a dense SVD; not W + Σ + F(Σ)."""
    W, update, m = weight_and_sum(p, q, r, scale, seed)
    u, s, vh = torch.linalg.svd(update.to_dense(), full_matrices=False)
    expected = W + (u * f(s, m)) @ vh
    restrained = restrain(update, m, f)
    torch.testing.assert_close(W + restrained.to_dense(), expected, rtol=0, atol=1e-10 * scale * m)
    assert restrained.rank <= update.rank
    assert float(torch.linalg.matrix_norm(W + update.to_dense() + restrained.to_dense() - expected)) > m


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 8), st.integers(0, 999), restraints)
def test_small_sums_come_back_as_they_are(p: int, q: int, r: int, seed: int, f: Restraint) -> None:
    """No σ̂ above m: the same object, so W̄ = W + Σ bit for bit."""
    _, update, m = weight_and_sum(p, q, max(r, 1), 0.99, seed)
    assert restrain(update, m, f) is update
    nothing = LowRank.zeros(p, q)
    assert restrain(nothing, m, f) is nothing


def test_restrain_keeps_the_dtype_and_its_argument() -> None:
    _, update, m = weight_and_sum(8, 5, 3, 4.0, 0)
    single = update.to(dtype=torch.float32)
    A, B = single.A.clone(), single.B.clone()
    restrained = restrain(single, m, restraint.log(1.2))
    assert restrained is not single
    assert restrained.A.dtype == restrained.B.dtype == torch.float32
    assert torch.equal(single.A, A) and torch.equal(single.B, B)
    assert float(restrained.singular_values()[0]) == pytest.approx(m + math.log(4) / math.log(1.2), rel=1e-6)


def test_vectors_are_formed_only_where_something_exceeds_m(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    update = LowRank(torch.randn(9, 3, generator=generator), torch.randn(3, 12, generator=generator))
    top, formed = float(update.singular_values()[0]), []
    svd = LowRank.svd
    monkeypatch.setattr(LowRank, "svd", lambda self: formed.append(self) or svd(self))
    assert restrain(update, 1.01 * top, parse("log:1.2")) is update and not formed
    assert restrain(update, 0.5 * top, parse("linear:2")) is not update and formed
