"""σ_max, σ_min and κ of W₀ + Σ (figure 2 of the paper), from Gram matrices on the smaller side, in float64 on the CPU.

`Spectrum` answers for any update of one weight. `RunningSpectrum` follows a weight to which updates are added one after
another: what a look costs does not depend on how many there are.

With W n×m, n ≤ m, and a new update A·B the Gram matrix changes by YAᵀ + AYᵀ, where Y = WBᵀ + ½A(BBᵀ).
"""

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.large_singular_values import DENSE, gram, leading, noise
from tether.algebra.lowrank import LowRank
from tether.errors import TetherError, first_line

_SAFE = 1e-9  # below this ratio of σ_min² to σ_max² a Gram matrix in float64 has lost σ_min: a dense SVD decides
_WHOLE = 1024  # up to this side length `Spectrum` takes all eigenvalues
_STRIP = 1 << 20  # elements of a weight that are in float64 at a time
_GROWN = 1.1  # σ_min is measured again once σ_max has grown by this factor


@dataclass(frozen=True)
class Largest:
    """σ_max of a weight, and σ̂_max of the update that it carries."""

    sigma_max: float
    update_sigma_max: float

    def to_dict(self) -> dict[str, float]:
        """What was measured, by name."""
        return asdict(self)


@dataclass(frozen=True)
class Extremes(Largest):
    """The same with σ_min, the smallest singular value of the weight."""

    sigma_min: float

    @property
    def kappa(self) -> float:
        """κ = σ_max/σ_min; infinite for a singular weight."""
        return self.sigma_max / self.sigma_min if self.sigma_min > 0 else math.inf

    def to_dict(self) -> dict[str, float]:
        return {**super().to_dict(), "kappa": self.kappa}


class Spectrum:
    """Singular values of one weight under any update. Keeps W₀ (p×q, not copied on the CPU) and its Gram matrix."""

    def __init__(self, original: Float[Tensor, "p q"]) -> None:
        self._weight, self._wide = _on_its_side(original)
        self._gram = gram(self._weight)

    @cached_property
    def unedited(self) -> Extremes:
        """Of W₀: its σ_max is m of equation 4, its κ is κ₀."""
        return self.of(None)

    @property
    def sigma_max(self) -> float:
        """m of equation 4."""
        return self.unedited.sigma_max

    def of(self, update: LowRank | None) -> Extremes:
        """Extremes of W₀ + A·B, in O(p·q·r) for rank r. Raises TetherError where a value is not finite."""
        square, change = self._gram, None
        if update is not None and update.rank:
            A, B = change = _factors(update, self._wide)
            Y = _times(self._weight, B.mT) + A @ (B @ B.mT) / 2
            square = self._gram + Y @ A.mT + A @ Y.mT
        if len(square) <= _WHOLE and torch.isfinite(square).all():
            values = torch.linalg.eigvalsh(square)
            low, high = float(values[0]), float(values[-1])
        else:
            high = float(leading(square.numpy(), tolerance=0.0)[0][0])
            low = _smallest(square)
        if low <= _SAFE * high:
            dense = self._weight.double() if change is None else self._weight.double() + change[0] @ change[1]
            high, low = (float(value) ** 2 for value in _dense(dense)[[0, -1]])
        top = 0.0 if update is None or not update.rank else float(update.singular_values()[0])
        return Extremes(math.sqrt(high), top, math.sqrt(low))


@dataclass
class _Proposal:
    """An update under consideration, and what is known of W + A·B so far. The Gram matrices of W and of Σ change by
    YAᵀ + AYᵀ and ZAᵀ + AZᵀ."""

    update: LowRank | None
    A: Float[Tensor, "n k"]
    B: Float[Tensor, "k m"]
    Y: Float[Tensor, "n k"]
    Z: Float[Tensor, "n k"]
    largest: Largest | None = None
    extremes: Extremes | None = None
    vectors: list[np.ndarray[Any, Any]] = field(default_factory=list)


class RunningSpectrum:
    """Follows W₀ + Σ while updates are added to Σ one after another. A look costs O(p·q·k) for an update of rank k.

    σ_max and σ̂_max come from a few Lanczos steps that start at the last singular vectors. σ_min needs a Cholesky
    factorisation, O(n³): it is measured in the first look, then every `sigma_min_every` commits, and where σ_max has
    grown by a tenth since. The Gram matrices are computed anew from Σ every `anchor_every` commits.

    Keeps W₀ (not copied on the CPU), Σ in float64, and two n×n Gram matrices, n = min(p, q).
    """

    def __init__(self, original: Float[Tensor, "p q"], *, sigma_min_every: int = 10, anchor_every: int = 256) -> None:
        self._weight, self._wide = _on_its_side(original)
        self._every, self._anchor_every = sigma_min_every, anchor_every
        self.reset(None)

    def reset(self, total: LowRank | None) -> None:
        """Follow W₀ + `total` from now on, as after a restraint or an undo."""
        self._sum = torch.zeros(self._weight.shape, dtype=torch.float64)
        if total is not None:
            self._sum.addmm_(*_factors(total, self._wide))
        self._vectors = [noise(len(self._weight))] * 2
        self._since, self._then = self._every, 0.0  # commits since σ_min was measured, and σ_max then
        self._forget()

    def _forget(self) -> None:
        self._grams: list[Tensor] = []  # of W₀ + Σ and of Σ, computed when they are needed
        self._proposal: _Proposal | None = None
        self._commits = 0

    def look(self, update: LowRank | None, *, sigma_min: bool | None = None) -> Largest:
        """Of W₀ + Σ + `update`, which is not added; None: of W₀ + Σ. The answer is `Extremes`, with σ_min, where that
        is due or `sigma_min` asks for it. Raises TetherError where a value is not finite."""
        proposal = self._proposed(update)
        if proposal.largest is None:
            squares = []
            for square, change, last in zip(self._grams, (proposal.Y, proposal.Z), self._vectors, strict=True):
                start = _start(last, proposal)
                values, vectors = leading(_changed(square, change, proposal.A), start=start, tolerance=1e-7)
                squares.append(float(values[0]))
                proposal.vectors.append(vectors[:, 0])
            proposal.largest = Largest(*(math.sqrt(max(square, 0.0)) for square in squares))
        found = proposal.largest
        if sigma_min is None:
            sigma_min = self._since >= self._every or found.sigma_max > _GROWN * self._then
        if not sigma_min:
            return found
        if proposal.extremes is None:
            low = _smallest(self._grams[0] + proposal.Y @ proposal.A.mT + proposal.A @ proposal.Y.mT)
            sure = low > _SAFE * found.sigma_max**2
            dense = None if sure else self._weight.double() + self._sum + proposal.A @ proposal.B
            least = math.sqrt(low) if dense is None else float(_dense(dense)[-1])
            proposal.extremes = Extremes(found.sigma_max, found.update_sigma_max, least)
        return proposal.extremes

    def commit(self, update: LowRank | None) -> None:
        """Add `update` to Σ; needs no look before."""
        proposal = self._proposed(update)
        self._sum.addmm_(proposal.A, proposal.B)
        for square, change in zip(self._grams, (proposal.Y, proposal.Z), strict=True):
            square.addmm_(change, proposal.A.mT).addmm_(proposal.A, change.mT)
        self._vectors = proposal.vectors or self._vectors
        if proposal.extremes is not None:
            self._since, self._then = 0, proposal.extremes.sigma_max
        self._since += 1
        self._commits += 1
        self._proposal = None
        if self._commits >= self._anchor_every:
            self._forget()

    def _proposed(self, update: LowRank | None) -> _Proposal:
        if not self._grams:
            n = len(self._weight)
            of_sum = gram(self._sum) if self._sum.any() else torch.zeros(n, n, dtype=torch.float64)
            self._grams = [gram(self._weight, self._sum), of_sum]
        if self._proposal is None or self._proposal.update is not update:
            n, m = self._weight.shape
            A, B = _factors(LowRank.zeros(n, m) if update is None else update, self._wide or update is None)
            Z = self._sum @ B.mT + A @ (B @ B.mT) / 2
            self._proposal = _Proposal(update, A, B, _times(self._weight, B.mT) + Z, Z)
        return self._proposal


def _on_its_side(original: Tensor) -> tuple[Tensor, bool]:
    """The weight n×m with n ≤ m, and whether that is how it came."""
    weight = original.detach().cpu()
    wide = weight.shape[0] <= weight.shape[1]
    return (weight if wide else weight.mT), wide


def _factors(update: LowRank, wide: bool) -> tuple[Tensor, Tensor]:
    """A (n×k) and B (k×m) in float64 on the CPU."""
    A, B = (update.A, update.B) if wide else (update.B.mT, update.A.mT)
    return A.detach().cpu().double(), B.detach().cpu().double()


def _times(weight: Tensor, right: Tensor) -> Tensor:
    """W·right in float64, a strip of rows at a time."""
    return torch.cat([part.double() @ right for part in weight.split(max(1, _STRIP // weight.shape[1]))])


def _start(last: np.ndarray[Any, Any], proposal: _Proposal) -> np.ndarray[Any, Any]:
    """The last vector; with a part of the update and of noise, so that no new direction is missed."""
    direction = (proposal.A * proposal.B.norm(dim=1)).sum(dim=1).numpy()
    length = float(np.linalg.norm(direction))
    return last + 0.1 * noise(len(last)) + (0.1 * direction / length if 0 < length < math.inf else 0.0)


def _changed(square: Tensor, change: Tensor, A: Tensor) -> Any:
    """square + change·Aᵀ + A·changeᵀ, as what it does to a vector; multiplied out where that is cheap."""
    if len(square) <= DENSE:
        return (square + change @ A.mT + A @ change.mT).numpy()
    G, Y, X = square.numpy(), change.numpy(), A.numpy()
    return scipy.sparse.linalg.LinearOperator(
        G.shape, matvec=lambda x: G @ x + Y @ (X.T @ x) + X @ (Y.T @ x), dtype=G.dtype
    )


def _smallest(square: Tensor) -> float:
    """The smallest eigenvalue of a Gram matrix, by inverse iteration; 0 for one that is singular to rounding."""
    array = square.numpy()
    if len(array) <= DENSE:
        return float(np.linalg.eigvalsh(array)[0])
    try:
        factor = scipy.linalg.cho_factor(array, lower=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return 0.0
    inverse = scipy.sparse.linalg.LinearOperator(
        array.shape, matvec=lambda x: scipy.linalg.cho_solve(factor, x, check_finite=False), dtype=array.dtype
    )
    return 1 / float(leading(inverse, tolerance=1e-8)[0][0])


def _dense(matrix: Tensor) -> Tensor:
    """All singular values, where a Gram matrix has lost the smallest."""
    try:
        return torch.linalg.svdvals(matrix)
    except RuntimeError as error:  # torch's LinAlgError
        what = f"the singular values of a weight do not converge ({first_line(error)})"
        raise TetherError(f"{what}: undo the last edit") from error
