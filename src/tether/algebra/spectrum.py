"""σ_max, σ_min and κ of W + A·B (figure 2 of the paper), exactly, from one Gram matrix of W."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.lowrank import LowRank

_DENSE = 1024  # up to this side length all eigenvalues of the Gram matrix are taken: milliseconds
_SAFE = 1e-9  # below this ratio of σ_min² to σ_max² a Gram matrix in float64 has lost σ_min: a dense SVD decides


@dataclass(frozen=True)
class Extremes:
    """Largest and smallest singular value of a weight, and of the update it carries the largest."""

    sigma_max: float
    sigma_min: float
    update_sigma_max: float

    @property
    def kappa(self) -> float:
        """κ = σ_max/σ_min; infinite for a singular weight."""
        return self.sigma_max / self.sigma_min if self.sigma_min > 0 else math.inf


class Spectrum:
    """Singular values of one weight under any update. Keeps W (p×q) and its float64 Gram matrix on the smaller side."""

    def __init__(self, original: Float[Tensor, "p q"]) -> None:
        wide = original.shape[0] <= original.shape[1]
        self._wide = wide
        self._weight = original.detach().cpu() if wide else original.detach().cpu().mT
        weight = self._weight.double()
        self._gram = weight @ weight.mT
        self.sigma_max = self.of(None).sigma_max  # m of equation 4

    def of(self, update: LowRank | None) -> Extremes:
        """Extremes of W + A·B. WWᵀ + A(BWᵀ) + (WBᵀ)Aᵀ + A(BBᵀ)Aᵀ needs O(pqr) instead of a dense product and SVD;
        σ_min comes from a Cholesky factorisation of it (all eigenvalues where it is small)."""
        if update is None or update.rank == 0:
            gram, top = self._gram, 0.0
        else:
            A, B = (update.A, update.B) if self._wide else (update.B.mT, update.A.mT)
            A, B = A.to(self._gram), B.to(self._gram)
            cross = (self._weight.double() @ B.mT) @ A.mT
            gram = self._gram + cross + cross.mT + A @ (B @ B.mT) @ A.mT
            top = float(update.singular_values()[0])
        low, high = _eigen_extremes(gram)
        if low <= _SAFE * high:
            dense = self._weight.double() if update is None else self._dense(update)
            values = torch.linalg.svdvals(dense)
            return Extremes(float(values[0]), float(values[-1]), top)
        return Extremes(math.sqrt(high), math.sqrt(low), top)

    def _dense(self, update: LowRank) -> Tensor:
        dense = update.to(dtype=torch.float64).to_dense().to(self._gram)
        return self._weight.double() + (dense if self._wide else dense.mT)


def _eigen_extremes(gram: Tensor) -> tuple[float, float]:
    """Smallest and largest eigenvalue of a symmetric positive semi-definite float64 matrix."""
    n = len(gram)
    if n <= _DENSE:
        values = torch.linalg.eigvalsh(gram)
        return max(float(values[0]), 0.0), float(values[-1])
    array = gram.cpu().numpy()
    start = np.full(n, n**-0.5)
    high = float(scipy.sparse.linalg.eigsh(array, k=1, which="LA", v0=start, return_eigenvectors=False)[0])
    try:
        factor = scipy.linalg.cho_factor(array, lower=True)
    except scipy.linalg.LinAlgError:
        return 0.0, high
    inverse = scipy.sparse.linalg.LinearOperator(
        array.shape, matvec=lambda x: scipy.linalg.cho_solve(factor, x), dtype=array.dtype
    )
    top = scipy.sparse.linalg.eigsh(inverse, k=1, which="LA", v0=start, return_eigenvectors=False)[0]
    return 1 / float(top), high
