"""Every constraint against its published formula, with plain dense matrices in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.algebra.null_space import null_space
from tether.constraints.base import Constraint, Data, Weight, parse
from tether.constraints.prune import Log, restrain
from tether.constraints.sphere import Sphere
from tether.errors import BadSettingsError, TetherError

SHAPES = [(7, 11), (11, 7), (8, 8)]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(q: int, seed: int = 2) -> Tensor:
    """C of keys that take some directions a thousand times as much as others."""
    keys = normal(4 * q, q, seed=seed) * torch.logspace(0, -3, q, dtype=torch.float64)
    return keys.mT @ keys / len(keys)


def root_of(C: Tensor) -> Tensor:
    """The symmetric root of C, scaled to a mean diagonal of 1."""
    values, vectors = torch.linalg.eigh(C / C.diagonal().mean())
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


def case(p: int, q: int, rank: int, scale: float, seed: int = 0) -> tuple[Tensor, LowRank]:
    """W₀ (float32), and a sum whose σ̂_max is `scale` times its σ_max."""
    W = normal(p, q, seed=seed).float()
    made = LowRank(normal(p, rank, seed=seed + 10), normal(rank, q, seed=seed + 20))
    top = float(made.singular_values()[0])
    return W, LowRank(made.A * (scale * float(torch.linalg.matrix_norm(W, 2)) / top), made.B)


def applied(text: str | Constraint, update: LowRank, W: Tensor, C: Tensor | None = None) -> LowRank:
    constraint = parse(text)
    data = Data() if C is None else Data(lambda: C)
    weight = Weight((W.shape[0], W.shape[1]), float(torch.linalg.matrix_norm(W, 2)), lambda: W)
    return constraint.apply(update, constraint.init(weight, data))[0]


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


# --- RECT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("percent", [1.0, 20, 40.0, 90])
def test_rect_keeps_the_entries_of_the_largest_relative_change(shape: tuple[int, int], percent: float) -> None:
    W, update = case(*shape, rank=3, scale=0.5)
    S = update.to_dense()
    change = (S / W.double()).abs().flatten()
    kept = set(change.argsort(descending=True)[: math.ceil(percent / 100 * len(change))].tolist())
    mask = torch.tensor([place in kept for place in range(len(change))]).view(shape)
    found = applied(f"rect:{percent}", update, W)
    same(found.to_dense(), torch.where(mask, S, 0.0))
    assert int((found.to_dense() != 0).sum()) == len(kept) and found.rank == min(shape)
    again = applied(f"rect:{percent}", found, W)
    assert again is found, "what is left is what stays"


def test_rect_at_zeros() -> None:
    """Where W₀ is zero the change is infinite and stays first; where nothing changes there is no change."""
    W = torch.tensor([[0.0, 1.0, 0.0], [1.0, 2.0, 100.0]])
    update = LowRank.of_dense(torch.tensor([[0.1, 1.0, 0.0], [0.0, 5.0, 1.0]], dtype=torch.float64))
    expected = torch.tensor([[0.1, 0.0, 0.0], [0.0, 5.0, 0.0]], dtype=torch.float64)
    assert torch.equal(applied("rect:33", update, W).to_dense(), expected)
    assert applied("rect:67", update, W) is update, "four entries change, and four stay"
    ties = LowRank(torch.ones(2, 1), torch.ones(1, 3))
    assert applied("rect:10", ties, torch.ones(2, 3)) is ties, "all are as large as the smallest that stays"


def test_rect_can_enlarge_a_singular_value() -> None:
    """So it promises nothing of them, alone or in a chain."""
    W, update = case(8, 8, rank=1, scale=1.0)
    values = applied("rect:40", update, W).singular_values()
    assert float(values[1]) > 0.1 * float(values[0]), "a sum of rank 1 becomes one of full rank"
    assert not parse("rect:40").shrinks and not parse("log:1.2+rect:40").shrinks and parse("norm:1").shrinks


# --- norm -------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 3), st.floats(0.01, 20), st.integers(1, 12))
def test_the_norm_is_capped_at_its_share(share: float, scale: float, rank: int) -> None:
    W, update = case(7, 9, rank, scale)
    limit, S = share * float(W.double().norm()), update.to_dense()
    found = applied(f"norm:{share!r}", update, W)
    same(found.to_dense(), S * min(1.0, limit / float(S.norm())))
    assert (found is update) == (float(S.norm()) <= limit * (1 + 1e-6))
    small = applied(f"norm:{share!r}", update.to(dtype=torch.float32), W)
    assert applied(f"norm:{share!r}", small, W) is small, "what is capped in float32 is not capped again"


# --- null space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.02, 0.5])
def test_the_null_space_by_its_eigenvectors(shape: tuple[int, int], threshold: float) -> None:
    W, update = case(*shape, rank=4, scale=2.0)
    C = moments(shape[1])
    values, vectors = torch.linalg.eigh(C)
    low = vectors[:, values < threshold * values.mean()]
    assert 0 < low.shape[1] < shape[1]
    found = applied(f"null_space:{threshold}", update, W, C)
    same(found.to_dense(), update.to_dense() @ low @ low.mT)
    unit = applied(f"null_space:{threshold}", update, W, 1e-4 * C)
    same(unit.to_dense(), found.to_dense())  # whatever the unit of the keys
    P = null_space(C, threshold) @ null_space(C, threshold).mT
    assert float((P @ C).trace()) < threshold * float(C.trace()), "the share of the keys' energy that passes"


def test_a_threshold_below_every_eigenvalue_is_named_with_one_that_is_not() -> None:
    W, update = case(7, 6, rank=2, scale=1.0)
    C = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 15.0], dtype=torch.float64))
    with pytest.raises(
        BadSettingsError, match=r"below 0.02 times their mean \(the smallest is 0.2 times it\)"
    ) as caught:
        applied("null_space:0.02", update, W, C)
    remedy = str(caught.value).rpartition(" as ")[2]
    assert "\n" not in str(caught.value) and applied(f"null_space:{remedy}", update, W, C) is not update
    assert applied("null_space:9", update, W, C) is update, "P = I"


# --- SPHERE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("share", "strength"), [(0.5, 0.5), (0.2, 1.0), (0.9, 0.3)])
def test_sphere_by_the_eigenvectors_of_the_normalised_rows(
    shape: tuple[int, int], share: float, strength: float
) -> None:
    W, update = case(*shape, rank=3, scale=1.5)
    rows = W.double() / W.double().norm(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(rows.mT @ rows)
    values, vectors = values.flip(0), vectors.flip(1)
    count = next(r for r in range(1, len(values) + 1) if float(values[:r].sum() / values.sum()) > share)
    U = vectors[:, :count]
    projector = torch.eye(shape[1], dtype=torch.float64) - strength * U @ U.mT
    same(applied(Sphere(share, strength), update, W).to_dense(), update.to_dense() @ projector)


# --- PRUNE in the metric of the data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", ["log:1.2", "log:e", "linear:2"])
def test_prune_in_the_metric_of_the_data(shape: tuple[int, int], text: str) -> None:
    W, update = case(*shape, rank=5, scale=30.0)
    W, C = 20 * W, moments(shape[1])
    update, root = LowRank(20 * update.A, update.B), root_of(C)
    m = float(torch.linalg.matrix_norm(W.double() @ root, 2))
    u, s, vh = torch.linalg.svd(update.to_dense() @ root, full_matrices=False)
    restraint = parse(text)
    assert isinstance(restraint, Log) or text == "linear:2"
    held = restraint(s, m)  # type: ignore[operator]
    assert 0 < int((s > m).sum()) < int((s > 1e-6 * s[0]).sum()), "some are above m, and some are not"
    found = applied(f"data_{text}", update, W, C)
    same(found.to_dense() @ root, (u * held) @ vh)
    same(found.to_dense(), (u * held) @ vh @ torch.linalg.inv(root))
    same(applied(f"data_{text}", update, W, 1e5 * C).to_dense(), found.to_dense())  # whatever the unit of the keys
    assert found.rank == update.rank


@pytest.mark.parametrize("text", ["log:1.2", "linear:2"])
def test_where_keys_take_all_directions_alike_it_is_prune(text: str) -> None:
    W, update = case(7, 9, rank=4, scale=3.0)
    W, update = 20 * W, LowRank(20 * update.A, update.B)
    m = float(torch.linalg.matrix_norm(W.double(), 2))
    plain = restrain(update, m, parse(text))  # type: ignore[arg-type]
    same(applied(f"data_{text}", update, W, 3 * torch.eye(9, dtype=torch.float64)).to_dense(), plain.to_dense())
    below = LowRank(update.A / 4, update.B)
    assert applied(f"data_{text}", below, W, torch.eye(9, dtype=torch.float64)) is below


def test_moments_of_few_keys_do() -> None:
    """C may be singular: what no key takes is not restrained."""
    W, update = case(6, 8, rank=2, scale=30.0)
    W, update = 20 * W, LowRank(20 * update.A, update.B)
    keys = normal(3, 8, seed=5)
    C = keys.mT @ keys
    found, root = applied("data_linear:2", update, W, C), root_of(C)
    m = float(torch.linalg.matrix_norm(W.double() @ root, 2))
    s = torch.linalg.svdvals(found.to_dense() @ root)
    expected = torch.linalg.svdvals(update.to_dense() @ root)
    torch.testing.assert_close(s, torch.where(expected > m, m + (expected - m) / 2, expected), rtol=1e-6, atol=1e-6)


# --- as written -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "rect:0", "rect:101", "rect:nan", "rect", "norm:0", "norm:inf", "norm:-1", "norm:x", "null_space:0",
    "null_space:nan", "null_space:", "sphere:0.5", "sphere:0.5,", "sphere:0,0.5", "sphere:1,0.5", "sphere:0.5,0",
    "sphere:0.5,1.1", "sphere:0.5,0.5,0.5", "data_log:1", "data_log", "data_linear:1", "data:log:1.2",
])  # fmt: skip
def test_a_bad_parameter_is_named_with_the_rule_on_one_line(text: str) -> None:
    with pytest.raises(BadSettingsError) as caught:
        parse(text)
    assert "\n" not in str(caught.value) and ("write" in str(caught.value) or ";" in str(caught.value))


def test_what_they_need() -> None:
    needs: dict[str, set[str]] = {
        "log:1.2": set(), "rank:3": set(), "none": set(), "rect:40": {"weight"}, "norm:1": {"weight"},
        "sphere:0.5,0.5": {"weight"}, "null_space:0.5": {"moments"}, "data_log:1.2": {"weight", "moments"},
        "null_space:0.5+sphere:0.5,0.5": {"weight", "moments"}, "log:1.2+rank:3": set(),
    }  # fmt: skip
    assert {text: set(parse(text).needs) for text in needs} == needs
    for text, wanted in needs.items():
        if wanted:
            with pytest.raises(TetherError, match="no model is at hand"):
                parse(text).init(Weight((3, 4), 1.0), Data())


def test_the_spaces_and_exponents_of_two_parameters() -> None:
    made: list[Any] = [parse("sphere: 0.5, 0.25"), parse("sphere:5e-1,2.5e-1")]
    assert made == [Sphere(0.5, 0.25)] * 2 and str(made[0]) == "sphere:0.5,0.25"
