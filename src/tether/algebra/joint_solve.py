"""Many keys solved for together: the factors of MEMIT's and EMMET's updates, and the exact undo of some of their facts.

Both write residuals R (p×n) for keys K (q×n) with the least change in the metric of the keys' second moment C:

    ΔW = R Kᵀ (λC + KKᵀ)⁻¹ = R Gᵀ,     Gᵀ = H Kᵀ C⁻¹,     H = (λI + KᵀC⁻¹K)⁻¹

(the second form by Woodbury's identity, so only an n×n system is solved for a batch). λ > 0 weighs what the model knew
against the new facts (MEMIT); λ → 0 makes ΔW K = R an equality (EMMET).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tether.errors import BadFactError, TetherError, first_line


@dataclass(frozen=True)
class Solution:
    """Gᵀ (n×q) and H (n×n), float64: ΔW = R Gᵀ for any residuals R (p×n)."""

    G: Float[Tensor, "n q"]
    H: Float[Tensor, "n n"]

    def without(self, removed: Sequence[int]) -> Solution:
        """The solution for the same keys less the `removed` ones, exactly, C not needed. Raises TetherError where
        H_XX is singular.

        With X the removed and S the kept: G_S − H_SX H_XX⁻¹ G_X, the inverse of a submatrix by blocks. For one key i
        of MEMIT, H_ij/H_ii = −k_iᵀg_j/(1 − k_iᵀg_i): the Sherman-Morrison formula.
        """
        if not removed:
            return self
        out = sorted(set(removed))
        keep = sorted(set(range(len(self.G))) - set(removed))
        try:
            share = torch.linalg.solve(self.H[out][:, out], self.H[out][:, keep]).mT
        except RuntimeError as error:  # torch's LinAlgError
            what = f"{len(out)} of {len(self.G)} facts of one solve cannot be taken out ({first_line(error)})"
            raise TetherError(f"{what}: take out all of them") from error
        return Solution(self.G[keep] - share @ self.G[out], self.H[keep][:, keep] - share @ self.H[out][:, keep])


def ridge_of(gram: Float[Tensor, "n n"], *, weight: float, equality_ridge: float | None = None) -> float:
    """The λ of `solve` for KᵀC⁻¹K."""
    return weight if equality_ridge is None else equality_ridge * float(gram.diagonal().mean())


def solve(
    K: Float[Tensor, "n q"], X: Float[Tensor, "n q"], *, weight: float, equality_ridge: float | None = None
) -> Solution:
    """G and H for keys K and X = K C⁻¹ (rows), in float64.

    `weight` is λ. With `equality_ridge` λ is that share of the mean of diag(KᵀC⁻¹K) instead: just enough for keys that
    nearly repeat. Raises TetherError where the keys leave no solution (equal keys without a ridge).
    """
    K, X = K.double(), X.double()
    if not (torch.isfinite(K).all() and torch.isfinite(X).all()):
        raise TetherError(f"{len(K)} keys are not all finite: the model is damaged, or the moments are")
    gram = K @ X.mT
    gram = (gram + gram.mT) / 2
    ridge = ridge_of(gram, weight=weight, equality_ridge=equality_ridge)
    factor, info = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(K), dtype=torch.float64))
    if int(info):
        raise BadFactError(f"{len(K)} keys with λ {ridge:.3g} have no solution (equal keys?): give a larger λ")
    H = torch.cholesky_inverse(factor)
    return Solution(H @ X, H)
