"""One ridge solution for many keys: what a sequence of solves with a memory adds up to.

A solve that carries the earlier keys K_p and measures its residuals on the weight as it is,

    ΔW = R Kᵀ (λC + βI + K_pK_pᵀ + KKᵀ)⁻¹,     R = V − W K,

is a step of recursive least squares. Its sum over all solves is the ridge solution for all keys at once, whatever the
order and the size of the batches (https://arxiv.org/abs/2605.26670):

    S = (V − W₀K) Kᵀ (λC + βI + KKᵀ)⁻¹ = D (I + XᵀK)⁻¹ Xᵀ,     D = V − W₀K,     X = (λC + βI)⁻¹K.

So an undo is this with fewer keys: exact, and C is not needed.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.lowrank import LowRank


def ridge_sum(K: Float[Tensor, "n q"], X: Float[Tensor, "n q"], D: Float[Tensor, "n p"]) -> LowRank:
    """S for keys K, X = (λC + βI)⁻¹K and D = V − W₀K, a row a key; float32 of a solution in float64. By the n×n system,
    or for more keys than they have numbers by the q×q one."""
    k, x = K.double(), X.double()
    n, q = k.shape
    if n <= q:
        gram = k @ x.mT
        gram = (gram + gram.mT) / 2
        gram.diagonal().add_(1)
        B = torch.linalg.solve(gram, x)
    else:
        inner = k.mT @ x
        inner.diagonal().add_(1)
        B = torch.linalg.solve(inner, x, left=False)
    return LowRank(D.mT.float().contiguous(), B.float())
