"""The few large singular values of a large dense matrix, and a proof that none was missed.

From the Gram matrix on the smaller side of D, in float64. D stays in the dtype and on the device it comes in.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.gram import double, gram, leading

FIRST = 8  # eigenvalues looked for at first; four times as many where all of them are wanted


def largest(D: Float[Tensor, "p q"]) -> float:
    """σ_max; 0 for a zero matrix. Raises TetherError for one that is not finite."""
    square = leading(gram(D if D.shape[0] <= D.shape[1] else D.mT).cpu().numpy())[0][0]
    return math.sqrt(max(float(square), 0.0))


def above(
    D: Float[Tensor, "p q"], floor: float
) -> tuple[Float[Tensor, "p k"], Float[Tensor, " k"], Float[Tensor, "k q"], float]:
    """û, σ̂ (descending) and v̂ᵀ of every singular value above `floor`, float64, and σ̂_max of D. D must not be zero and
    `floor` must be positive. Raises TetherError for a matrix that is not finite.

    Ends only on a proof that nothing above `floor` is left in the remainder R: floor²·I − RRᵀ is positive definite (a
    Cholesky factorisation, which decides to 1e-6 relative). What the proof finds missing, such as a value of high
    multiplicity, a whole decomposition finds.
    """
    if D.shape[0] > D.shape[1]:
        u, s, vh, top = above(D.mT, floor)
        return vh.mT, s, u.mT, top
    square, count = gram(D), FIRST
    while True:
        squares, u = (square.new_tensor(found.copy()) for found in leading(square.cpu().numpy(), count))
        above_floor = squares > floor**2
        whole = len(squares) == len(square)
        if whole or (not above_floor.all() and _none_left(square, squares[above_floor], u[:, above_floor], floor)):
            break
        count = 4 * count if above_floor.all() else len(square)
    s, u = squares[above_floor].sqrt(), u[:, above_floor]
    vh = torch.cat([u.mT @ double(part) for part in D.split(max(1, (1 << 20) // len(D)), dim=1)], dim=1) / s[:, None]
    return u, s, vh, math.sqrt(float(squares[0]))


def _none_left(square: Tensor, squares: Tensor, u: Tensor, floor: float) -> bool:
    """Whether DDᵀ = `square` has no eigenvalue above floor²·(1 + 1e-6)² but those given."""
    shifted = (u * squares) @ u.mT - square
    shifted.diagonal().add_((floor * (1 + 1e-6)) ** 2)
    return int(torch.linalg.cholesky_ex(shifted)[1]) == 0
