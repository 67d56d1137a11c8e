"""The few large singular values of a large dense matrix, from its Gram matrix on the smaller side, in float64.

The matrix stays in the dtype and on the device it comes in. Eigenvalues are found by Lanczos (ARPACK).
"""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.precision import double
from tether.errors import TetherError, first_line

DENSE = 128  # up to this side length all eigenvalues are taken: milliseconds
FIRST = 8  # eigenvalues looked for at first; four times as many where all of them are wanted
_STRIP = 1 << 23  # elements of a matrix that are in float64 at a time


def gram(matrix: Float[Tensor, "n m"], added: Float[Tensor, "n m"] | None = None) -> Float[Tensor, "n n"]:
    """(matrix + added)(matrix + added)ᵀ, a strip of columns at a time; on the device of `matrix`, if it has float64."""
    width = max(1, _STRIP // len(matrix))
    total = double(matrix[:, :0])
    total = total @ total.mT
    for i in range(0, matrix.shape[1], width):
        part = double(matrix[:, i : i + width])
        part = part if added is None else part + added[:, i : i + width]
        total.addmm_(part, part.mT)
    return total


def noise(n: int) -> np.ndarray[Any, Any]:
    """Always the same random vector of length 1 or so."""
    return np.random.default_rng(0).standard_normal(n) / math.sqrt(n)


def leading(
    matrix: Any, count: int = 1, *, start: np.ndarray[Any, Any] | None = None, tolerance: float = 1e-11
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The `count` largest eigenvalues (descending) and their vectors (columns) of a symmetric n×n array or operator: by
    Lanczos, or by a whole decomposition where that is cheap or Lanczos does not converge, which then gives all n.
    A value of high multiplicity may be found less often than it is there. Raises TetherError for what is not finite."""
    n = matrix.shape[0]
    start = noise(n) if start is None else start
    with np.errstate(invalid="ignore", over="ignore"):
        finite = bool(np.isfinite(matrix @ start).all())
    if not finite:
        what = "a weight or its update holds values that are not finite"
        raise TetherError(f"{what}, so it has no singular values: undo the last edit")
    if n > DENSE and count <= n // 4:
        with suppress(scipy.sparse.linalg.ArpackError):
            ncv = max(12, 2 * count + 1)
            found = scipy.sparse.linalg.eigsh(matrix, k=count, which="LA", v0=start, ncv=ncv, tol=tolerance)
            return found[0][::-1], found[1][:, ::-1]
    try:
        values, vectors = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(matrix @ np.eye(n))))
    except RuntimeError as error:  # torch's LinAlgError
        what = f"the singular values of a matrix of {n} rows do not converge ({first_line(error)})"
        raise TetherError(f"{what}: undo the last edit") from error
    return values.flip(0).numpy(), vectors.flip(1).numpy()


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
