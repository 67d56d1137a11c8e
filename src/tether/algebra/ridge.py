"""One ridge solution for many keys: what a sequence of solves with a memory adds up to.

A solve that carries the earlier keys K_p and measures its residuals on the weight as it is,

    ΔW = R Kᵀ (λC + βI + K_pK_pᵀ + KKᵀ)⁻¹,     R = V − W K,

is a step of recursive least squares. Its sum over all solves is the ridge solution for all keys at once, whatever the
order and the size of the batches (https://arxiv.org/abs/2605.26670):

    S = (V − W₀K) Kᵀ (λC + βI + KKᵀ)⁻¹ = D (I + XᵀK)⁻¹ Xᵀ,     D = V − W₀K,     X = (λC + βI)⁻¹K.

So an undo is this with fewer keys: exact, and C is not needed. Where the sum was changed on the way (restrained) to S',
the solves that follow, of the last m keys, measured their residuals on W₀ + S' and went on to the sum

    S' + (D − S'K)_m [(I + XᵀK)⁻¹ Xᵀ]_m,

of which without a change S' = S of the keys before, and the same S comes out.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.lowrank import LowRank


def ridge_sum(
    K: Float[Tensor, "n q"], X: Float[Tensor, "n q"], D: Float[Tensor, "n p"], before: int = 0,
    held: LowRank | None = None,
) -> LowRank:  # fmt: skip
    """S for keys K, X = (λC + βI)⁻¹K and D = V − W₀K, a row a key; float32 of a solution in float64. With `before`
    keys solved for already, what the others add to `held`, the sum S' as it is (None: zero). By the n×n system, or for
    more keys than they have numbers by the q×q one."""
    k, x, d = K.double(), X.double(), D[before:].double()
    n, q = k.shape
    if held is not None and held.rank:
        d = d - k[before:] @ held.B.double().mT @ held.A.double().mT
    if n <= q:
        gram = k @ x.mT
        gram = (gram + gram.mT) / 2
        gram.diagonal().add_(1)
        B = torch.linalg.solve(gram, x)[before:]
    else:
        inner = k.mT @ x
        inner.diagonal().add_(1)
        B = torch.linalg.solve(inner, x[before:], left=False)
    return LowRank(d.mT.float().contiguous(), B.float())
