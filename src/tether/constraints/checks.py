"""What every constraint must keep, as small checks that another package can run over its own:

from tether.constraints.checks import CHECKS, check_constraint

check_constraint(parse("halve"))                       # all of them; an AssertionError says which rule is broken

@pytest.mark.parametrize("check", CHECKS)              # or one test a rule
def test_halve(check):
    check(parse("halve"))
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, Data, Weight, parse

_SHAPES = ((6, 9), (9, 6), (7, 7))
_RANKS = (0, 1, 3, 12)  # none; one edit; a few; more than a matrix of these shapes can have
_SCALES = (0.1, 1.5, 40.0)  # σ̂_max as a multiple of m: nothing to restrain for PRUNE, a little, a lot


def check_constraint(constraint: Constraint) -> None:
    """Run every check. Raises AssertionError with the rule, the constraint and the case that breaks it."""
    for check in CHECKS:
        check(constraint)


def is_a_value(constraint: Constraint) -> None:
    """Immutable, hashable, equal to its copy."""
    same = copy.copy(constraint)
    _expect(same == constraint and hash(same) == hash(constraint), constraint, "is not equal to its copy")


def is_written_as_it_is_read(constraint: Constraint) -> None:
    """`parse(str(constraint))` is the same constraint: a journal keeps the written form alone."""
    text = str(constraint)
    _expect(parse(text) == constraint and str(parse(text)) == text, constraint, "is not read back as it is written")
    _expect(parse(constraint) is constraint, constraint, "is not taken as it is")


def changes_nothing_given(constraint: Constraint) -> None:
    """Neither the update nor the state is changed."""
    for case, update, state in _cases(constraint):
        before = LowRank(update.A.clone(), update.B.clone()), copy.deepcopy(state)
        constraint.apply(update, state)
        _expect(_equal((update, state), before), constraint, f"changes its update or its state ({case})")


def keeps_shape_and_dtype(constraint: Constraint) -> None:
    """The restrained sum is p×q as before, in the dtype of the factors, finite, and of no larger rank bound than that
    of Σ or min(p, q)."""
    for case, update, state in _cases(constraint):
        restrained, _ = constraint.apply(update, state)
        _expect(restrained.shape == update.shape, constraint, f"changes the shape ({case})")
        same = restrained.A.dtype == restrained.B.dtype == update.A.dtype
        _expect(same, constraint, f"changes the dtype ({case})")
        _expect(bool(torch.isfinite(restrained.to_dense()).all()), constraint, f"gives what is not finite ({case})")
        _expect(restrained.rank <= max(update.rank, *update.shape), constraint, f"raises the rank ({case})")


def is_deterministic(constraint: Constraint) -> None:
    """The same update and state give the same bits."""
    for case, update, state in _cases(constraint):
        one, two = (constraint.apply(update, copy.deepcopy(state)) for _ in range(2))
        _expect(_equal(one, two), constraint, f"gives other bits the second time ({case})")


def leaves_the_empty_sum(constraint: Constraint) -> None:
    """A sum of rank 0 comes back as the same object."""
    for case, update, state in _cases(constraint):
        if update.rank == 0:
            _expect(constraint.apply(update, state)[0] is update, constraint, f"does not give it back ({case})")


def gives_back_what_it_does_not_change(constraint: Constraint) -> None:
    """Where the restrained sum has the same bits it is the same object, so that nothing is done with it."""
    for case, update, state in _cases(constraint):
        restrained, _ = constraint.apply(update, state)
        same = restrained.rank == update.rank and torch.equal(restrained.to_dense(), update.to_dense())
        _expect(restrained is update or not same, constraint, f"copies a sum that it does not change ({case})")
        _expect(constraint.acts or restrained is update, constraint, f"acts, though `acts` is False ({case})")


def enlarges_no_singular_value(constraint: Constraint) -> None:
    """Where `shrinks` promises it: the i-th singular value is at most what it was, to rounding."""
    for case, update, state in _cases(constraint) if constraint.shrinks else ():
        before = torch.linalg.svdvals(update.to_dense().double())
        after = torch.linalg.svdvals(constraint.apply(update, state)[0].to_dense().double())
        slack = 1e-5 * float(before[0])
        _expect(bool((after <= before + slack).all()), constraint, f"enlarges a singular value ({case})")


def goes_on_from_its_state(constraint: Constraint) -> None:
    """The state that one application returns serves the next, of a sum that has grown."""
    for case, update, state in _cases(constraint):
        restrained, after = constraint.apply(update, state)
        again, _ = constraint.apply(restrained + update, after)
        _expect(again.shape == update.shape, constraint, f"does not go on from its state ({case})")


CHECKS: tuple[Callable[[Constraint], None], ...] = (
    is_a_value, is_written_as_it_is_read, changes_nothing_given, keeps_shape_and_dtype, is_deterministic,
    leaves_the_empty_sum, gives_back_what_it_does_not_change, enlarges_no_singular_value, goes_on_from_its_state,
)  # fmt: skip


def _cases(constraint: Constraint) -> Iterator[tuple[str, LowRank, Any]]:
    """Sums of every shape, rank, size and dtype, with a state for each. W₀ and C are at hand."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for p, q in _SHAPES:
        # As with real keys a few directions carry most: the eigenvalues of C span four orders of magnitude.
        original, keys = normal(p, q).float(), normal(3 * q, q) * torch.logspace(0, -2, q, dtype=torch.float64)
        moments = keys.mT @ keys / len(keys)
        m = float(torch.linalg.matrix_norm(original, 2))
        weight, data = Weight((p, q), m, lambda W=original: W), Data(lambda C=moments: C)  # type: ignore[misc]
        for rank in _RANKS:
            for scale in _SCALES:
                made = LowRank(normal(p, rank), normal(rank, q))
                top = max(made.singular_values().tolist(), default=1.0)
                for dtype in (torch.float32, torch.float64):
                    update = LowRank(made.A * (scale * m / top), made.B).to(dtype=dtype)
                    case = f"{p}×{q}, rank {rank}, σ̂_max {scale:g} m, {dtype}"
                    yield case, update, constraint.init(weight, data)


def _equal(one: Any, two: Any) -> bool:
    """Whether two states hold the same bits."""
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and torch.equal(one, two)
    if isinstance(one, LowRank):
        return isinstance(two, LowRank) and torch.equal(one.A, two.A) and torch.equal(one.B, two.B)
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(map(_equal, one, two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    return bool(one == two)


def _expect(holds: bool, constraint: Constraint, broken: str) -> None:
    if not holds:
        raise AssertionError(f"{constraint} {broken}")
