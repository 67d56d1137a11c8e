"""The few large singular values of a large dense matrix, and a proof that none was missed.

Lanczos (ARPACK) on DᵀD, on the smaller side of D. D stays in the dtype it comes in; every product with it is taken in
float64, a strip of rows at a time, on the device of D, or on the CPU where that device has no float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.precision import double
from tether.errors import TetherError, first_line

FIRST = 8  # values looked for in the first round; twice as many in each round that follows
DENSE = 96  # a smaller side up to here is decomposed whole
STRIP = 1 << 17  # elements of D in float64 at a time


def largest(D: Float[Tensor, "p q"]) -> float:
    """σ_max, to 1e-5 relative at worst and by far better where it stands apart; 0 for an empty or zero matrix. Raises
    TetherError where the decomposition fails, as for a matrix that is not finite."""
    D = D.mT if D.shape[0] < D.shape[1] else D
    if not bool(D.any()):
        return 0.0
    s, _ = _leading(D, _none(D), 1, tolerance=1e-5)
    return float(s[0])


def above(
    D: Float[Tensor, "p q"], floor: float
) -> tuple[Float[Tensor, "p k"], Float[Tensor, " k"], Float[Tensor, "k q"], float]:
    """û, σ̂ (descending) and v̂ᵀ of every singular value above `floor`, float64, and σ̂_max of D. D must not be zero and
    `floor` must be positive. Raises TetherError where the decomposition fails.

    Ends only on a proof that nothing above `floor` is left in the remainder R: ‖R‖_F ≤ floor, or else floor²·I − RᵀR
    is positive definite (a Cholesky factorisation, which decides to 1e-6 relative). What the proof finds missing, such
    as a value of high multiplicity, is found by a whole decomposition of RᵀR.
    """
    if D.shape[0] < D.shape[1]:
        u, s, vh, top = above(D.mT, floor)
        return vh.mT, s, u.mT, top
    square = sum(float(part.square().sum()) for part in _strips(D))
    v = _none(D)
    s, top, wanted = v.new_zeros(0), 0.0, FIRST
    while True:
        new_s, new_v = _leading(D, v, wanted, tolerance=1e-9)
        top = max(top, float(new_s[0]))
        more = new_s > floor
        s, v = torch.cat([s, new_s[more]]), torch.cat([v, new_v[:, more]], dim=1)
        left = square * (1 + 1e-9) - float(s.square().sum())
        if left <= floor**2 or len(new_s) == D.shape[1] or _none_left(D, v, floor):
            break
        wanted = 2 * wanted if bool(more.all()) else D.shape[1]
    s, order = s.sort(descending=True)
    v = v[:, order]
    u = torch.cat([part @ v for part in _strips(D)]) / s
    return u, s, v.mT, top


def _strips(D: Tensor) -> Iterator[Tensor]:
    for part in D.split(max(1, STRIP // D.shape[1])):
        yield double(part)


def _none(D: Tensor) -> Tensor:
    """No right vectors yet: q×0, float64, where the arithmetic is done."""
    return double(D[:0]).mT


def _gram(D: Tensor, known: Tensor) -> Tensor:
    """(I − vvᵀ)DᵀD(I − vvᵀ), v = `known`, q×q."""
    gram = known.new_zeros(D.shape[1], D.shape[1])
    for part in _strips(D):
        gram.addmm_(part.mT, part)
    gram -= known @ (known.mT @ gram)
    gram -= (gram @ known) @ known.mT
    return gram


def _none_left(D: Tensor, known: Tensor, floor: float) -> bool:
    """Whether ‖D(I − vvᵀ)‖₂ < floor·(1 + 1e-6)."""
    shifted = _gram(D, known).neg_()
    shifted.diagonal().add_((floor * (1 + 1e-6)) ** 2)
    return int(torch.linalg.cholesky_ex(shifted)[1]) == 0


def _leading(D: Tensor, known: Tensor, wanted: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Singular values (descending) and right vectors (columns) of D without the right vectors `known`: the `wanted`
    largest by Lanczos, or all q where they are many or Lanczos fails."""
    q = D.shape[1]

    def product(x: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        y = known.new_tensor(x).reshape(-1)
        y = y - known @ (known.mT @ y)
        image = torch.zeros_like(y)
        for part in _strips(D):
            image += part.mT @ (part @ y)
        return (image - known @ (known.mT @ image)).cpu().numpy()

    if q > DENSE and known.shape[1] + wanted <= q // 4:
        start = np.random.default_rng(known.shape[1]).standard_normal(q)
        gram = scipy.sparse.linalg.LinearOperator((q, q), matvec=product, dtype=np.float64)
        try:
            values, vectors = scipy.sparse.linalg.eigsh(gram, k=wanted, which="LA", v0=start, tol=tolerance)
        except scipy.sparse.linalg.ArpackError:
            return _whole(D, known)
        return known.new_tensor(values).flip(0).clamp_min(0).sqrt(), known.new_tensor(vectors).flip(1)
    return _whole(D, known)


def _whole(D: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(_gram(D, known))
    except RuntimeError as error:
        raise TetherError(
            f"the singular values of a {D.shape[0]}×{D.shape[1]} matrix do not converge ({first_line(error)}): look at "
            "the edit that made it"
        ) from error
    return values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
