"""The bound on what an update does to the keys of a weight: theorems 3.1 and 3.2 of the paper, in code.

form = reduced_form(W)                        # the basis of A = W
found = bound(form, update, W @ keys.mT)      # A x = b before, Ã x̃ = b after: x = A†b, x̃ = Ã†b
found.error, found.total                      # ‖x̃ − x‖/‖x‖ of every key, and what the theorem allows

The weight A becomes Ã = A + E and the value b of a key stays what it was: how far must the key move? In the reduced
form (appendix A.1) A = U₁A₁₁V₁ᵀ with A₁₁ nonsingular r×r, and U = (U₁ U₂), V = (V₁ V₂) are orthogonal. E is split as

    UᵀEV = [E₁₁ E₁₂; E₂₁ E₂₂],    Ã₁₁ = A₁₁ + E₁₁,    F₂₁ = E₂₁Ã₁₁⁻¹,    F₁₂ = Ã₁₁⁻¹E₁₂.

E is *acute* if Ã₁₁ is nonsingular and E₂₂ = E₂₁Ã₁₁⁻¹E₁₂ (eq. 20): A and Ã have one rank, and no direction of one's
space is orthogonal to the other's. Then Ã = [I; F₂₁] Ã₁₁ (I F₁₂). With κ̂ = ‖A‖‖Ã₁₁⁻¹‖ (eq. 24),
Ψ₂(F) = ‖F‖/√(1+‖F‖²) (eq. 16) and η = ‖A‖‖x‖/‖b₁‖ (eq. 15), all norms spectral,

    ‖x̃ − x‖/‖x‖ ≤ κ̂‖E₁₁‖/‖A‖ + Ψ₂(κ̂E₁₂/‖A‖) + κ̂²(‖E₂₁‖/‖A‖)(η⁻¹‖b₂‖/‖b₁‖ + ‖E₂₁‖/‖A‖)        (eq. 41)

With κ = ‖A‖‖A†‖ and γ = 1 − κ‖E₁₁‖/‖A‖ > 0 (eq. 36), κ̂ ≤ κ/γ (theorem 3.2). Where γ ≤ 0 that theorem says nothing;
the bound itself holds for every acute E. A weight with p < q of full row rank has no E₂₁, E₂₂ and b₂, and any update
that leaves Ã₁₁ nonsingular is acute.

**The proof.** One step of the paper's derivation does not hold: eq. 46 bounds Ã₁₁⁻¹M⁻¹F₂₁ᵀF₂₁b₁ as if F₂₁b₁ were E₂₁x₁.
The theorem is still true. Group the difference another way (the tests compute it), with M = I + F₂₁ᵀF₂₁, J₁₂ = (I F₁₂)
and I₁₂ = (I 0):

    x̃ − x = − J₁₂†Ã₁₁⁻¹M⁻¹ E₁₁x₁  +  (J₁₂† − I₁₂†) x₁  +  J₁₂†Ã₁₁⁻¹M⁻¹F₂₁ᵀ (b₂ − E₂₁x₁)

since b₁ = A₁₁x₁ = MÃ₁₁x₁ − F₂₁ᵀE₂₁x₁ − E₁₁x₁. Each group is at most ‖x‖ times its term of the bound, because
‖J₁₂†‖ ≤ 1, ‖M⁻¹‖ ≤ 1, ‖J₁₂† − I₁₂†‖ = Ψ₂(F₁₂) (eq. 23) and ‖F₂₁‖ ≤ ‖E₂₁‖‖Ã₁₁⁻¹‖.

All arithmetic is in float64, on the device of A, or on the CPU where that device has no float64. Nothing given is
changed. U₂ and V₂ are never formed: what lies outside A's spaces is kept in the coordinates of E, where every norm is
the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.algebra.precision import double
from tether.errors import TetherError, first_line

_EPS = torch.finfo(torch.float64).eps

Of = Literal["sum", "edit"]


@dataclass(frozen=True, eq=False)
class ReducedForm:
    """A = U₁A₁₁V₁ᵀ of rank r by its singular value decomposition, so that A₁₁ = diag(s). From `reduced_form`."""

    U: Float[Tensor, "p r"]
    s: Float[Tensor, " r"]
    Vh: Float[Tensor, "r q"]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.U), self.Vh.shape[1]

    @property
    def rank(self) -> int:
        return len(self.s)

    @cached_property
    def norm(self) -> float:
        """‖A‖ = σ_max."""
        return float(self.s[0])

    @cached_property
    def kappa(self) -> float:
        """κ = ‖A‖‖A†‖ = σ_max/σ_r (eq. 34), over the r singular values that are not zero."""
        return self.norm / float(self.s[-1])

    def solve(self, b: Float[Tensor, "p n"]) -> Float[Tensor, "q n"]:
        """A†b: of all x that bring Ax closest to b, the shortest."""
        return self.Vh.mT @ ((self.U.mT @ b) / self.s[:, None])

    def split(self, E: Float[Tensor, "p q"] | LowRank) -> Split:
        """E in the bases of A. A LowRank is never multiplied out."""
        left, right = _factors(E, self.U)
        p, q = self.shape
        if (len(left), right.shape[1]) != (p, q):
            raise ValueError(f"E is {len(left)}×{right.shape[1]}, A is {p}×{q}")
        left_in, right_in = self.U.mT @ left, right @ self.Vh.mT
        # Where A has full rank on a side nothing lies outside; a difference would leave rounding there.
        left_out = left - self.U @ left_in if self.rank < p else torch.zeros_like(left)
        right_out = right - right_in @ self.Vh if self.rank < q else torch.zeros_like(right)
        return Split(self, left_in, left_out, right_in, right_out)


def reduced_form(A: Float[Tensor, "p q"], rank: int | None = None) -> ReducedForm:
    """The reduced form of A, any floating dtype, by one thin SVD in float64.

    The rank is the number of singular values above max(p, q)·ε·σ_max, or `rank` where it is known. Raises TetherError
    for a matrix that is not finite or is zero, and where fewer than `rank` singular values are above that limit.
    """
    A = double(A)
    if A.ndim != 2:
        raise ValueError(f"A has {A.ndim} dimensions: it must be a matrix")
    if not bool(torch.isfinite(A).all()):
        raise TetherError("A holds values that are not finite: the bound needs a sound matrix; see `tether spectrum`")
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    found = int((s > max(A.shape) * _EPS * s[:1]).sum())
    if found == 0:
        raise TetherError("A is zero: it has no pseudoinverse to perturb; give a matrix that is not")
    if rank is not None and found < rank:
        what = f"A has rank {found} to rounding where {rank} is needed"
        raise TetherError(f"{what}; the bound compares matrices of one rank: take a smaller update")
    rank = found if rank is None else rank
    return ReducedForm(U[:, :rank], s[:rank], Vh[:rank])


@dataclass(frozen=True, eq=False)
class Split:
    """E split by the bases of A, as factors: E = (U₁·left_in + left_out)(right_in·V₁ᵀ + right_out), where left_out is
    orthogonal to U₁ and right_out to V₁. Blocks with an index 2 stand in the coordinates of E (p rows, q columns)
    rather than of U₂ and V₂: the same up to an isometry, so of the same norm."""

    form: ReducedForm
    left_in: Float[Tensor, "r k"]
    left_out: Float[Tensor, "p k"]
    right_in: Float[Tensor, "k r"]
    right_out: Float[Tensor, "k q"]

    @cached_property
    def edited11(self) -> Float[Tensor, "r r"]:
        """Ã₁₁ = A₁₁ + E₁₁."""
        return torch.diag(self.form.s) + self.left_in @ self.right_in

    @cached_property
    def constants(self) -> Constants:
        """What the bound is made of. Raises TetherError where E is not acute."""
        form, lefts, rights = self.form, (self.left_in, self.left_out), (self.right_in, self.right_out)
        e11, e12, e21, e22 = (_norm(left, right) for left in lefts for right in rights)
        # What rounding alone puts into Ã, in its norm.
        rounding = 10 * max(form.shape) * _EPS * (form.norm + math.hypot(e11, e12, e21, e22))
        low = float(torch.linalg.svdvals(self.edited11)[-1])
        if low <= rounding:
            what = f"Ã₁₁ is singular, with a singular value of {low:.3g} where rounding alone leaves {rounding:.1g}"
            raise _not_acute(what, "take a smaller update")
        # E₂₂ − E₂₁Ã₁₁⁻¹E₁₂ = (−F₂₁ I) Ã (−F₁₂; I): the outer factors are what rounding in Ã is multiplied by.
        inner = torch.linalg.solve(self.edited11, self.left_in)
        f21 = _norm(self.left_out, torch.linalg.solve(self.edited11, self.right_in, left=False))
        f12 = _norm(inner, self.right_out)
        gap = _norm(self.left_out, self.right_out - self.right_in @ (inner @ self.right_out))
        limit = rounding * math.hypot(1, f21) * math.hypot(1, f12)
        if gap > limit:
            what = f"‖E₂₂ − E₂₁Ã₁₁⁻¹E₁₂‖ is {gap:.3g} where rounding alone leaves {limit:.1g}"
            what += f", so A (rank {form.rank} of {min(form.shape)}) and A + E differ in rank"
            raise _not_acute(what, "take a weight of full rank")
        return Constants(form.norm, form.kappa, 1 / low, e11, e12, e21)


def _not_acute(what: str, remedy: str) -> TetherError:
    return TetherError(f"the perturbation is not acute: {what}; the bound is of acute perturbations: {remedy}")


def psi2(norm: float) -> float:
    """Ψ₂(F) = ‖F‖/√(1 + ‖F‖²) (eq. 16), of ‖F‖: increasing, below 1."""
    return norm / math.hypot(1, norm) if math.isfinite(norm) else 1.0


@dataclass(frozen=True)
class Constants:
    """The numbers of an acute perturbation that do not depend on b."""

    norm: float  # ‖A‖
    kappa: float  # κ = ‖A‖‖A†‖ (eq. 34)
    inverse: float  # ‖Ã₁₁⁻¹‖
    e11: float  # ‖E₁₁‖
    e12: float  # ‖E₁₂‖
    e21: float  # ‖E₂₁‖

    @property
    def kappa_hat(self) -> float:
        """κ̂ = ‖A‖‖Ã₁₁⁻¹‖ (eq. 24)."""
        return self.norm * self.inverse

    @property
    def gamma(self) -> float:
        """γ = 1 − κ‖E₁₁‖/‖A‖ (eq. 36). Theorem 3.2 speaks only where it is positive."""
        return 1 - self.kappa * self.e11 / self.norm

    @property
    def kappa_bound(self) -> float | None:
        """κ/γ, which κ̂ never exceeds (theorem 3.2); None where γ ≤ 0 and the theorem says nothing."""
        return self.kappa / self.gamma if self.gamma > 0 else None

    def terms(self, kappa_hat: float, residual: Float[Tensor, " n"]) -> tuple[float, float, Float[Tensor, " n"]]:
        """The three terms of eq. 41 for a value of κ̂ (its own, or κ/γ) and residual = η⁻¹‖b₂‖/‖b₁‖ = ‖b₂‖/(‖A‖‖x‖)."""
        e11, e12, e21 = (e / self.norm for e in (self.e11, self.e12, self.e21))
        return kappa_hat * e11, psi2(kappa_hat * e12), kappa_hat**2 * e21 * (residual + e21)


@dataclass(frozen=True, eq=False)
class Bound:
    """Theorem 3.1 for n right-hand sides: the three terms, and the error they bound."""

    constants: Constants
    eta: Float[Tensor, " n"]  # η = ‖A‖‖x‖/‖b₁‖ ≥ 1 (eq. 15)
    residual: Float[Tensor, " n"]  # η⁻¹‖b₂‖/‖b₁‖
    error: Float[Tensor, " n"]  # ‖x̃ − x‖/‖x‖, from two pseudoinverses

    @cached_property
    def terms(self) -> tuple[float, float, Float[Tensor, " n"]]:
        """The terms of E₁₁, E₁₂ and E₂₁; only the last depends on b."""
        return self.constants.terms(self.constants.kappa_hat, self.residual)

    @property
    def total(self) -> Float[Tensor, " n"]:
        """The right side of eq. 41."""
        first, second, third = self.terms
        return first + second + third

    @property
    def from_kappa(self) -> Float[Tensor, " n"] | None:
        """The same with κ/γ in place of κ̂: what the condition number alone allows. None where γ ≤ 0."""
        if self.constants.kappa_bound is None:
            return None
        first, second, third = self.constants.terms(self.constants.kappa_bound, self.residual)
        return first + second + third


def bound(
    form: ReducedForm, E: Float[Tensor, "p q"] | LowRank, b: Float[Tensor, "p n"], edited: ReducedForm | None = None
) -> Bound:
    """The bound of theorem 3.1 and the actual error, for every column of b.

    `edited` is the reduced form of A + E where it is known already; otherwise it is computed. Raises TetherError if
    E is not acute or a column has A†b = 0, which leaves no error to be relative to.
    """
    constants = form.split(E).constants
    b = _as(b, form.U)
    x = form.solve(b)
    length, inside = x.norm(dim=0), (form.U.mT @ b).norm(dim=0)
    if not bool((inside > max(form.shape) * _EPS * b.norm(dim=0)).all()):
        worst = int(torch.argmin(inside))
        why = "so x = A†b is 0 and no error is relative to it"
        raise TetherError(f"right-hand side {worst} lies outside the range of A, {why}; take it out")
    outside = (b - form.U @ (form.U.mT @ b)).norm(dim=0) if form.rank < form.shape[0] else torch.zeros_like(length)
    if edited is None:
        left, right = _factors(E, form.U)
        edited = reduced_form((form.U * form.s) @ form.Vh + left @ right, rank=form.rank)
    error = (edited.solve(b) - x).norm(dim=0) / length
    return Bound(constants, form.norm * length / inside, outside / (form.norm * length), error)


class Span(NamedTuple):
    """Two states of a weight: W₀ + before and W₀ + after, the later one carrying `edits` edits."""

    edits: int
    before: LowRank
    after: LowRank


@dataclass(frozen=True, eq=False)
class Step:
    """The bound for one span: A = W₀ + before, E = after − before."""

    edits: int
    update_norm: float  # ‖E‖
    bound: Bound


def walk(weight: Float[Tensor, "p q"], spans: Iterable[Span], keys: Float[Tensor, "n q"]) -> Iterator[Step]:
    """The bound for each span of a weight's history, lazily; `weight` is W₀, and b = W₀k for every row k of `keys`.

    Costs one SVD of the p×q matrix W₀ and one a span (of W₀ + after, kept for a next span that starts there: pass the
    same LowRank), and the singular values of Ã₁₁. Raises TetherError, naming the edit, where a span is not acute.
    """
    weight = double(weight)
    b = weight @ _as(keys, weight).mT
    original = reduced_form(weight)
    held: tuple[LowRank | None, ReducedForm] = (None, original)

    def form_of(update: LowRank, rank: int | None = None) -> ReducedForm:
        if update.rank == 0:
            return original
        return held[1] if update is held[0] else reduced_form(weight + torch.mm(*_factors(update, weight)), rank)

    for edits, before, after in spans:
        try:
            form = form_of(before)
            E = _change(before, after)
            edited = form_of(after, form.rank)
            found = bound(form, E, b, edited)
        except (TetherError, RuntimeError) as error:  # torch's LinAlgError is a RuntimeError
            raise TetherError(f"after {edits} edits: {first_line(error)}") from error
        held = (after, edited)
        yield Step(edits, _norm(*_factors(E, weight)), found)


def _change(before: LowRank, after: LowRank) -> LowRank:
    """after − before, without `before` where `after` only adds to it."""
    r = before.rank
    if after.rank >= r and torch.equal(after.A[:, :r], before.A) and torch.equal(after.B[:r], before.B):
        return LowRank(after.A[:, r:], after.B[r:])
    return after + -before


def _as(matrix: Tensor, like: Tensor) -> Tensor:
    """In the dtype and on the device of `like`. Moved before it is cast, since its own device may have no float64."""
    return matrix.detach().to(like.device).to(like.dtype)


def _factors(E: Tensor | LowRank, like: Tensor) -> tuple[Tensor, Tensor]:
    """E = left·right, in the dtype of `like`."""
    if isinstance(E, LowRank):
        return _as(E.A, like), _as(E.B, like)
    if E.shape[0] <= E.shape[1]:
        return torch.eye(E.shape[0]).to(like), _as(E, like)
    return _as(E, like), torch.eye(E.shape[1]).to(like)


def _norm(left: Tensor, right: Tensor) -> float:
    """‖left·right‖, from QR of both where the product has a smaller rank than its sides."""
    k = left.shape[1]
    if k == 0 or left.numel() == 0 or right.numel() == 0:
        return 0.0
    if k < min(left.shape[0], right.shape[1]):
        left, right = torch.linalg.qr(left).R, torch.linalg.qr(right.mT).R.mT
    return float(torch.linalg.matrix_norm(left @ right, 2))
