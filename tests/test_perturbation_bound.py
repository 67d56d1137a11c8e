"""The bound of theorem 3.1 on random acute perturbations of every shape, and along sequences of edits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from command import answer, run
from core import FACTS, editable, random_update
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_ledger import new_ledger
from torch import Tensor

from tether import restraint
from tether.algebra.large_singular_values import double
from tether.algebra.lowrank import LowRank
from tether.algebra.perturbation_bound import (
    Of,
    ReducedForm,
    Span,
    Split,
    Step,
    bound,
    psi2,
    reduced_form,
    walk,
)
from tether.analyses.bound import bound_rows
from tether.errors import TetherError
from tether.ledger import Attempt, Ledger


class Case(NamedTuple):
    """An acute perturbation E of A, built from its blocks, and right-hand sides b."""

    A: Tensor
    E: Tensor
    b: Tensor
    blocks: tuple[Tensor, Tensor, Tensor, Tensor]


def acute_case(p: int, q: int, r: int, seed: int, sizes: tuple[float, float, float]) -> Case:
    """A of rank r and norm 1 with a κ between 1 and 100; E₁₁, E₁₂, E₂₁ of norms `sizes`, E₂₂ = E₂₁Ã₁₁⁻¹E₁₂."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def block(m: int, n: int, size: float) -> Tensor:
        made = normal(m, n)
        return made * (size / float(torch.linalg.matrix_norm(made, 2))) if made.numel() else made

    U, V = (torch.linalg.qr(normal(n, n)).Q for n in (p, q))
    s = 10 ** (-2 * float(torch.rand(1, generator=generator)) * torch.linspace(0, 1, r, dtype=torch.float64))
    A11 = torch.diag(s)
    E11, E12, E21 = block(r, r, sizes[0]), block(r, q - r, sizes[1]), block(p - r, r, sizes[2])
    E22 = E21 @ torch.linalg.pinv(A11 + E11) @ E12
    E = U @ torch.cat([torch.cat([E11, E12], 1), torch.cat([E21, E22], 1)]) @ V.mT
    return Case(U[:, :r] @ A11 @ V[:, :r].mT, E, normal(p, 5), (E11, E12, E21, E22))


size = st.one_of(st.just(0.0), st.floats(-6, 1).map(lambda e: 10**e))


@st.composite
def acute_cases(draw: st.DrawFn) -> Case:
    """p < q, p > q, p = q, full rank or not, E from tiny to ten times A."""
    p, q = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    r = min(p, q) if draw(st.booleans()) else draw(st.integers(1, min(p, q)))
    case = acute_case(p, q, r, draw(st.integers(0, 9999)), (draw(size), draw(size), draw(size)))
    form = reduced_form(case.A)
    assert form.rank == r
    edited = torch.linalg.svdvals(form.split(case.E).edited11)
    # κ̂ below 10⁴, and no block that drowns the others, so that rounding stays far below what is compared.
    assume(float(edited[-1]) > 1e-4 and norm(case.blocks[3]) < 1e6)
    return case


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0


@settings(deadline=None, max_examples=400)
@given(acute_cases())
def test_the_bound_holds(case: Case) -> None:
    """Theorem 3.1, with κ̂ for every acute E and with κ/γ where γ > 0 (theorem 3.2)."""
    form = reduced_form(case.A)
    found = bound(form, case.E, case.b)
    constants = found.constants
    assert bool((found.error <= found.total * (1 + 1e-9) + 1e-9).all())
    assert bool((found.eta >= 1 - 1e-12).all())
    if constants.gamma > 0:
        assert constants.kappa_bound is not None and found.from_kappa is not None
        assert constants.kappa_hat <= constants.kappa_bound * (1 + 1e-9)
        assert bool((found.total <= found.from_kappa * (1 + 1e-9)).all())
    else:
        assert constants.kappa_bound is None and found.from_kappa is None


@settings(deadline=None, max_examples=150)
@given(acute_cases())
def test_every_number_is_the_one_of_its_definition(case: Case) -> None:
    """Norms of the blocks E was built from, pseudoinverses by numpy's rule, η and b₂ from A."""
    form, (E11, E12, E21, _) = reduced_form(case.A), case.blocks
    found = bound(form, case.E, case.b)
    constants = found.constants
    close = {"rel": 1e-8, "abs": 1e-11}
    assert constants.norm == pytest.approx(norm(case.A), **close)
    assert constants.kappa == pytest.approx(norm(case.A) * norm(torch.linalg.pinv(case.A, rtol=1e-10)), rel=1e-8)
    assert (constants.e11, constants.e12, constants.e21) == pytest.approx((norm(E11), norm(E12), norm(E21)), **close)
    edited11 = torch.linalg.inv(form.split(case.E).edited11)
    assert constants.kappa_hat == pytest.approx(norm(case.A) * norm(edited11), rel=1e-7)
    x = torch.linalg.pinv(case.A, rtol=1e-10) @ case.b
    b1 = case.A @ x  # the part of b in the range of A
    torch.testing.assert_close(found.eta, norm(case.A) * x.norm(dim=0) / b1.norm(dim=0))
    expected = (case.b - b1).norm(dim=0) / b1.norm(dim=0) / found.eta
    torch.testing.assert_close(found.residual, expected, rtol=1e-8, atol=1e-10)
    edited = torch.linalg.svd(case.A + case.E, full_matrices=False)  # the pseudoinverse of rank r
    r = form.rank
    pinv = edited.Vh[:r].mT @ torch.diag(1 / edited.S[:r]) @ edited.U[:, :r].mT
    error = (pinv @ case.b - x).norm(dim=0) / x.norm(dim=0)
    torch.testing.assert_close(found.error, error, rtol=1e-6, atol=1e-9)
    split = form.split(case.E)
    inside, outside = form.U @ split.left_in + split.left_out, split.right_in @ form.Vh + split.right_out
    whole = inside @ outside
    torch.testing.assert_close(whole, case.E, rtol=0, atol=1e-12 * max(1.0, norm(case.E)))


def difference(split: Split, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x̃ − x for x = A†b and acute E, in the three groups (each q×n) of the module's proof: of E₁₁, E₁₂ and E₂₁."""
    form, edited11 = split.form, split.edited11
    E11, E12, E21 = split.left_in @ split.right_in, split.left_in @ split.right_out, split.left_out @ split.right_in
    b1 = form.U.mT @ b
    b2, x1 = b - form.U @ b1, b1 / form.s[:, None]
    F21, F12 = torch.linalg.solve(edited11, E21, left=False), torch.linalg.solve(edited11, E12)
    eye = torch.eye(form.rank, dtype=torch.float64)

    def through(y: Tensor) -> Tensor:
        """Ã₁₁⁻¹M⁻¹y."""
        return torch.linalg.solve(edited11, torch.linalg.solve(eye + F21.mT @ F21, y))

    def lift(y: Tensor) -> Tensor:
        """J₁₂†y = (I F₁₂)ᵀ(I + F₁₂F₁₂ᵀ)⁻¹y, in the coordinates of x."""
        y = torch.linalg.solve(eye + F12 @ F12.mT, y)
        return form.Vh.mT @ y + F12.mT @ y

    return -lift(through(E11 @ x1)), lift(x1) - form.Vh.mT @ x1, lift(through(F21.mT @ (b2 - E21 @ x1)))


@settings(deadline=None, max_examples=200)
@given(acute_cases())
def test_the_difference_in_three_groups_is_exact_and_each_obeys_its_term(case: Case) -> None:
    form = reduced_form(case.A)
    split, x = form.split(case.E), form.solve(case.b)
    edited = reduced_form(case.A + case.E, rank=form.rank)
    change = edited.solve(case.b) - x
    groups = difference(split, case.b)
    scale = (edited.solve(case.b).norm(dim=0) + x.norm(dim=0)) * split.constants.kappa_hat * edited.kappa
    assert bool(((sum(groups) - change).norm(dim=0) <= 1e-12 * scale).all())
    for group, term in zip(groups, bound(form, case.E, case.b).terms, strict=True):
        ratio = group.norm(dim=0) / x.norm(dim=0)
        assert bool((ratio <= torch.as_tensor(term, dtype=torch.float64) * (1 + 1e-8) + 1e-9).all())


def test_the_bound_is_attained() -> None:
    """One term at a time: E₁₁ exactly; E₁₂ up to what Ψ₂ leaves."""
    A = torch.diag(torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64))
    E = torch.zeros_like(A)
    E[2, 2] = -0.3
    found = bound(reduced_form(A), E, torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64))
    assert float(found.error) == pytest.approx(float(found.total)) == pytest.approx(1.5)
    A = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    found = bound(reduced_form(A), torch.tensor([[0.0, 5.0]], dtype=torch.float64), torch.ones(1, 1))
    assert float(found.error) == pytest.approx(float(found.total)) == pytest.approx(psi2(2.5))


def test_step_46_alone_is_no_bound_but_the_theorem_is() -> None:
    """The paper bounds ‖J₁₂†Ã₁₁⁻¹((I + F₂₁ᵀF₂₁)⁻¹ − I)b₁‖ by ‖Ã₁₁⁻¹‖²‖E₂₁‖²‖x‖: numbers show that it cannot be."""
    A = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    E = torch.tensor([[-0.5], [0.25]], dtype=torch.float64)
    edited11, e21, x = 0.5, 0.25, 1.0
    f21 = e21 / edited11
    step = abs((1 / (1 + f21**2) - 1) / edited11)
    assert step == pytest.approx(0.4)
    assert (e21 / edited11) ** 2 * x == 0.25 < step
    found = bound(reduced_form(A), E, torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    assert float(found.error) == pytest.approx(0.6)
    assert float(found.total) == pytest.approx(1.25)


def test_where_gamma_is_not_positive_the_first_theorem_still_speaks() -> None:
    A, E = torch.eye(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    E[0, 0] = 7.0
    found = bound(reduced_form(A), E, torch.ones(2, 1))
    assert found.constants.gamma == -6
    assert found.constants.kappa_bound is None and found.from_kappa is None
    assert float(found.error) <= float(found.total) == 7


def message(call: Any) -> str:
    with pytest.raises(TetherError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 999), st.floats(1e-6, 1))
def test_perturbations_that_change_the_rank_are_refused(p: int, q: int, seed: int, amount: float) -> None:
    r = min(p, q) - 1
    case = acute_case(p, q, r, seed, (0.1, 0.1, 0.1))
    form = reduced_form(case.A)
    assume(float(torch.linalg.svdvals(form.split(case.E).edited11)[-1]) > 1e-3)
    _ = form.split(case.E).constants  # acute
    U, _, Vh = torch.linalg.svd(case.A + case.E)
    E = case.E + amount * U[:, -1:] @ Vh[-1:]
    text = message(lambda: bound(form, E, case.b))
    assert "not acute" in text and f"rank {r} of {min(p, q)}" in text and "take a weight of full rank" in text


def test_other_refusals_are_one_line() -> None:
    A = torch.eye(3, 5, dtype=torch.float64)
    singular = -torch.eye(3, 5, dtype=torch.float64)
    assert "Ã₁₁ is singular" in message(lambda: bound(reduced_form(A), singular, torch.ones(3, 1)))
    assert "is zero" in message(lambda: reduced_form(torch.zeros(2, 3)))
    assert "not finite" in message(lambda: reduced_form(torch.full((2, 2), math.nan)))
    tall = torch.eye(3, 1, dtype=torch.float64)
    outside = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert "right-hand side 1" in message(lambda: bound(reduced_form(tall), 0 * tall, outside))
    with pytest.raises(ValueError, match="A is 3×5"):
        reduced_form(A).split(A.mT)


def test_factors_and_dense_give_the_same() -> None:
    for p, q in ((6, 11), (11, 6), (7, 7)):
        W = torch.randn(p, q, generator=torch.Generator().manual_seed(1))
        update, b = random_update(p, q, 2, 3), torch.eye(p)
        form = reduced_form(W)
        one, two = (bound(form, E, b) for E in (update, update.to(dtype=torch.float64).to_dense()))
        torch.testing.assert_close(one.total, two.total)
        torch.testing.assert_close(one.error, two.error)


# --- sequences --------------------------------------------------------------------------------------------------------


def history(p: int, q: int, n: int, scale: float) -> tuple[Tensor, list[LowRank], Tensor]:
    W = torch.randn(p, q, generator=torch.Generator().manual_seed(0))
    W /= float(torch.linalg.matrix_norm(W, 2))
    keys = torch.randn(7, q, generator=torch.Generator().manual_seed(1))
    return W, [random_update(p, q, 1 + i % 2, seed=i, scale=scale) for i in range(n)], keys


def sequence(
    W: Tensor, updates: Sequence[LowRank], keys: Tensor, *, of: Of = "sum", at: Sequence[int] | None = None,
    restrain: Callable[[LowRank, float], LowRank] | None = None,
) -> Iterator[Step]:  # fmt: skip
    """The steps of a list of updates. Of "sum": A = W₀, E = the first n updates. Of "edit": A = W_{n−1}, E = ΔW_n."""
    m = norm(W.double())

    def state(n: int) -> LowRank:
        held = LowRank.sum([LowRank.zeros(*W.shape), *updates[:n]]).to(dtype=torch.float64)
        return held if restrain is None else restrain(held, m)

    numbers = range(1, len(updates) + 1) if at is None else at
    return walk(W, (Span(n, state(0 if of == "sum" else n - 1), state(n)) for n in numbers), keys)


def key_of(W: Tensor, value: Tensor) -> Tensor:
    return torch.linalg.pinv(W.double()) @ value


@pytest.mark.parametrize(("p", "q"), [(6, 10), (10, 6), (8, 8)])
def test_sequences_are_the_bound_of_each_state(p: int, q: int) -> None:
    W, updates, keys = history(p, q, 6, 0.3)
    values = W.double() @ keys.double().mT
    states = [W.double()]
    for update in updates:
        states.append(states[-1] + update.to(dtype=torch.float64).to_dense())
    for of in ("sum", "edit"):
        steps = list(sequence(W, updates, keys, of=of))
        assert [step.edits for step in steps] == [1, 2, 3, 4, 5, 6]
        for n, step in enumerate(steps, 1):
            A = states[0] if of == "sum" else states[n - 1]
            E = states[n] - A
            plain = bound(reduced_form(A), E, values)
            torch.testing.assert_close(step.bound.total, plain.total)
            torch.testing.assert_close(step.bound.error, plain.error, rtol=1e-7, atol=1e-11)
            assert step.update_norm == pytest.approx(norm(E))
            x, moved = key_of(A, values), key_of(states[n], values)
            error = (moved - x).norm(dim=0) / x.norm(dim=0)
            torch.testing.assert_close(step.bound.error, error, rtol=1e-7, atol=1e-10)
            assert bool((step.bound.error <= step.bound.total).all())
        picked = list(sequence(W, updates, keys, of=of, at=[2, 5]))
        assert [step.edits for step in picked] == [2, 5]
        torch.testing.assert_close(picked[1].bound.total, steps[4].bound.total)


def test_a_wide_weight_has_no_third_term_and_the_value_stays() -> None:
    W, updates, keys = history(6, 10, 2, 0.3)
    (step,) = sequence(W, updates, keys, at=[2])
    assert step.bound.constants.e21 == 0 and bool((step.bound.residual == 0).all())
    form = reduced_form(W)
    x = form.solve(W.double() @ keys.double().mT)
    assert not torch.allclose(x, keys.double().mT), "x is the key that lies in the row space, not k"
    torch.testing.assert_close(W.double() @ x, W.double() @ keys.double().mT)


def test_a_restrained_sequence_is_of_the_restrained_sums() -> None:
    W, updates, keys = history(6, 10, 5, 1.5)
    f = restraint.linear(2)

    def restrained(held: LowRank, m: float) -> LowRank:
        return restraint.restrain(held, m, f)

    m = norm(W.double())
    sums = [torch.zeros(6, 10, dtype=torch.float64)]
    for n in range(1, 6):
        held = LowRank.sum(updates[:n]).to(dtype=torch.float64)
        sums.append(restraint.restrain(held, m, f).to_dense())
    values = W.double() @ keys.double().mT
    for n, step in enumerate(sequence(W, updates, keys, restrain=restrained), 1):
        torch.testing.assert_close(step.bound.total, bound(reduced_form(W), sums[n], values).total)
    for n, step in enumerate(sequence(W, updates, keys, of="edit", restrain=restrained), 1):
        plain = bound(reduced_form(W.double() + sums[n - 1]), sums[n] - sums[n - 1], values)
        torch.testing.assert_close(step.bound.total, plain.total)
        torch.testing.assert_close(step.bound.error, plain.error, rtol=1e-7, atol=1e-10)


def test_a_sequence_names_where_it_is_refused() -> None:
    W, updates, keys = history(6, 10, 3, 0.3)
    flat = W.clone()
    flat[5] = 0
    text = message(lambda: list(sequence(flat, updates, keys)))
    assert text.startswith("after 1 edits: the perturbation is not acute") and "rank 5 of 6" in text
    (nothing,) = sequence(W, updates, keys, at=[0])
    assert nothing.update_norm == 0 and bool((nothing.bound.total == 0).all())


# --- a ledger ---------------------------------------------------------------------------------------------------------


def fill(ledger: Ledger, plan: str) -> None:
    """Write events: a digit is an edit with its key, `f` a failed fact, `r` the restraint linear:1.5."""
    with ledger.writing():
        for step in plan:
            if step == "r":
                ledger.append_restraint(restraint.linear(1.5), {})
            elif step == "f":
                ledger.append([Attempt("failed", FACTS[0], {}, "no")], {}, {})
            else:
                number = int(step)
                made = {
                    name: random_update(*weight.shape, 1, seed=10 * number + i, scale=0.6 * weight.sigma_max)
                    for i, (name, weight) in enumerate(ledger.header.weights.items())
                }
                keys = {f"{name}/K": torch.randn(weight.shape[1]) for name, weight in ledger.header.weights.items()}
                ledger.append([Attempt("edit", FACTS[number % len(FACTS)], {})], made, keys)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_of_a_ledger(tmp_path: Path, family: str) -> None:
    model = editable(family)
    ledger = new_ledger(tmp_path / "ledger", model)
    fill(ledger, "12f34")
    ledger.undo(2)
    rows = bound_rows(ledger, model, at=[1, 5])
    names = list(ledger.header.weights)
    assert [(row.weight, row.of, row.edits) for row in rows] == [
        (name, of, n) for name in names for of in ("sum", "edit") for n in (1, 5)
    ]
    live = [ledger.factors(event) for event in ledger.live()]
    keys = torch.stack([ledger.vectors(event, "K")[names[0]][0] for event in ledger.live()])
    for of in ("sum", "edit"):
        (last,) = sequence(model.original(names[0]), [u[names[0]] for u in live], keys, of=of, at=[3])
        (row,) = [row for row in rows if (row.weight, row.of, row.edits) == (names[0], of, 5)]
        assert row.bound == pytest.approx(float(last.bound.total.max()))
        assert row.kappa_hat == pytest.approx(last.bound.constants.kappa_hat)
        assert row.edited is not None and row.edited.keys == 3 and row.others is None
        assert row.edited.max == pytest.approx(float(last.bound.error.max()))
        assert row.holds and (row.bound_from_kappa is None) == (row.gamma <= 0)
    (first,) = [row for row in rows if (row.weight, row.of, row.edits) == (names[0], "sum", 1)]
    assert first.edited is not None and first.others is not None and (first.edited.keys, first.others.keys) == (1, 2)
    assert bound_rows(ledger, model, at=[5], keys=2)[0].edited.keys == 2  # type: ignore[union-attr]


def test_rows_under_the_ledgers_restraints_and_another(tmp_path: Path) -> None:
    model = editable("llama")
    ledger = new_ledger(tmp_path / "ledger", model)
    fill(ledger, "12r34r")
    name = next(iter(ledger.header.weights))
    W = model.original(name)
    for restrain in (None, "none", "log:e"):
        rows = bound_rows(ledger, model, at=[0, 4], restrain=restrain)
        assert {row.restraint for row in rows} == {restrain or "as recorded"}
        zero, four, edit = (row for row in rows if row.weight == name)
        assert (zero.bound, zero.of, edit.of, edit.edits) == (0, "sum", "edit", 4), "no edit stands behind 0"
        states = [ledger.sums(n, restrain).of[name].factors.to(dtype=torch.float64).to_dense() for n in (3, 4)]
        assert four.update_norm == pytest.approx(norm(states[1]))
        assert edit.update_norm == pytest.approx(norm(states[1] - states[0]), rel=1e-5)
        assert edit.kappa == pytest.approx(reduced_form(W + states[0]).kappa, rel=1e-5)


def test_a_ledger_without_keys_is_refused(tmp_path: Path) -> None:
    model = editable("llama")
    ledger = new_ledger(tmp_path / "ledger", model)
    assert "no live edit" in message(lambda: bound_rows(ledger, model))
    name = next(iter(ledger.header.weights))
    with ledger.writing():
        update = random_update(*ledger.header.weights[name].shape, 1, 0)
        ledger.append([Attempt("edit", FACTS[0], {})], {name: update}, {})
    assert "no keys" in message(lambda: bound_rows(ledger, model))


def test_keys_are_rows_however_they_are_kept(tmp_path: Path) -> None:
    model = editable("llama")
    ledger = new_ledger(tmp_path / "ledger", model)
    name, weight = next(iter(ledger.header.weights.items()))
    p, q = weight.shape
    K = torch.randn(3, q)
    with ledger.writing():
        for kept in (K, K[0]):
            ledger.append([Attempt("edit", FACTS[0], {})], {name: random_update(p, q, 1, 0)}, {f"{name}/K": kept})
        ledger.append([Attempt("edit", f, {}) for f in FACTS[:3]], {name: random_update(p, q, 3, 0)}, {f"{name}/K": K})
    many, one, *batch = (ledger.vectors(event, "K")[name] for event in ledger.live())
    assert torch.equal(many, K) and torch.equal(one, K[:1]) and torch.equal(torch.cat(batch), K)


def test_the_command(place: Path) -> None:
    rows = answer(place, "bound", "ledger", "--restrain", "none,log:e", "--at", "1,4")
    assert {row["restraint"] for row in rows} == {"none", "log:e"} and {row["of"] for row in rows} == {"sum", "edit"}
    for row in rows:
        assert row["holds"] and set(row["terms"]) == {"e11", "e12", "e21"}
        assert row["bound"] == pytest.approx(sum(row["terms"].values()))
        assert (row["gamma"] > 0) == (row["bound_from_kappa"] is not None)
    text = run(place, "bound", "ledger")
    assert text.returncode == 0, text.stderr
    assert "κ̂" in text.stdout and text.stdout.count("down_proj") >= 2
    done = run(place, "bound", "ledger", "--keys", "0")
    assert done.returncode == 2 and done.stdout == ""
    assert json.loads(run(place, "bound", "ledger", "--at", "9", "--json").stdout)["error"]


class _Apple(torch.Tensor):
    """A tensor of a device without float64, which says so as Apple's does."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        if torch.float64 in (*args, *kwargs.values()):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return super().to(*args, **kwargs)

    def cpu(self, *_: Any) -> Tensor:
        return self.as_subclass(torch.Tensor)


def test_a_device_without_float64_leaves_the_arithmetic_to_the_cpu() -> None:
    W, updates, keys = history(6, 10, 2, 0.3)
    zero, both = LowRank.zeros(6, 10), LowRank.sum(updates)
    (expected,) = walk(W, [Span(2, zero, both)], keys)
    (found,) = walk(W.as_subclass(_Apple), [Span(2, zero, both)], keys)
    assert type(double(W.as_subclass(_Apple))) is torch.Tensor
    torch.testing.assert_close(found.bound.total, expected.bound.total)


def test_reduced_form_of_single_precision_is_that_of_double() -> None:
    W = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    form = reduced_form(W)
    assert isinstance(form, ReducedForm) and form.U.dtype == torch.float64 and form.shape == (5, 8)
    torch.testing.assert_close((form.U * form.s) @ form.Vh, W.double())
