"""float64 on whatever device, Gram matrices in it, and their largest eigenvalues by Lanczos (ARPACK)."""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from tether.errors import TetherError, first_line

DENSE = 128  # up to this side length all eigenvalues are taken: milliseconds
_STRIP = 1 << 23  # elements of a matrix that are in float64 at a time


def double(matrix: Tensor) -> Tensor:
    """In float64, on its device; on the CPU where the device has no float64, as Apple's."""
    matrix = matrix.detach()
    try:
        return matrix.to(torch.float64)
    except TypeError:
        return matrix.cpu().to(torch.float64)


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
