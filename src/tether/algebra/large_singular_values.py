"""The few large singular triplets of a large dense matrix, and a proof that none was missed.

Block Lanczos on DᵀD with full reorthogonalisation, on the smaller side of D. D stays in the dtype it comes in; every
product with it is taken in float64, a strip of rows at a time, one pass over D a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 8
DENSE = 96  # a smaller side up to here is decomposed whole
STRIP = 1 << 17  # elements of D in float64 at a time


def largest(D: Float[Tensor, "p q"]) -> float:
    """σ_max, to 1e-5 relative at worst and by far better where it stands apart; 0 for an empty or zero matrix."""
    D = D.mT if D.shape[0] < D.shape[1] else D
    if not bool(D.any()):
        return 0.0
    s, _ = _leading(D, None, D.new_zeros(D.shape[1], 0, dtype=torch.float64), tolerance=1e-5)
    return float(s[0])


def above(
    D: Float[Tensor, "p q"], floor: float
) -> tuple[Float[Tensor, "p k"], Float[Tensor, " k"], Float[Tensor, "k q"], float]:
    """û, σ̂ (descending) and v̂ᵀ of every singular value above `floor`, float64, and σ̂_max of D. D must not be zero.

    Ends only on a proof that nothing above `floor` is left in the remainder R: ‖R‖_F ≤ floor, or else floor²·I − RᵀR
    is positive definite (a Cholesky factorisation, which decides to 1e-6 relative). What the proof finds missing, such
    as a value of higher multiplicity than the block, another round from a new random start brings in, or else a whole
    decomposition of RᵀR. `floor` must be positive.
    """
    if D.shape[0] < D.shape[1]:
        u, s, vh, top = above(D.mT, floor)
        return vh.mT, s, u.mT, top
    square = float(D.norm(dtype=torch.float64)) ** 2
    s, v = torch.zeros(0, dtype=torch.float64, device=D.device), D.new_zeros(D.shape[1], 0, dtype=torch.float64)
    top, dense = 0.0, False
    while True:
        new_s, new_v = _leading(D, floor, v, tolerance=3e-7, dense=dense)
        top = max(top, float(new_s[0]))
        more = new_s > floor
        s, v = torch.cat([s, new_s[more]]), torch.cat([v, new_v[:, more]], dim=1)
        left = square * (1 + 1e-9) - float(s.square().sum())
        if left <= floor**2 or dense or len(s) == D.shape[1] or _none_left(D, v, floor):
            break
        dense = not bool(more.any())
    s, order = s.sort(descending=True)
    v = v[:, order]
    u = torch.cat([part @ v for part in _strips(D)]) / s
    return u, s, v.mT, top


def _strips(D: Tensor) -> Iterator[Tensor]:
    for part in D.split(max(1, STRIP // D.shape[1])):
        yield part.double()


def _gram(D: Tensor, known: Tensor) -> Tensor:
    """(I − vvᵀ)DᵀD(I − vvᵀ), v = `known`, q×q."""
    gram = torch.zeros(D.shape[1], D.shape[1], dtype=torch.float64, device=D.device)
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


def _leading(
    D: Tensor, floor: float | None, known: Tensor, tolerance: float, dense: bool = False
) -> tuple[Tensor, Tensor]:
    """Singular values (descending) and right vectors (columns), of D without the right vectors `known`: those above
    `floor` and at least the largest; only the largest for None. ‖Dᵀû − σ̂v̂‖ ≤ tolerance·σ̂_max for each."""
    q, start = D.shape[1], torch.Generator().manual_seed(known.shape[1])
    basis, h = known, torch.zeros(0, 0, dtype=torch.float64, device=D.device)
    block, coupling = _orthogonal(_noise(q, start, D), basis, start)
    while not dense and q > DENSE and basis.shape[1] + BLOCK <= q // 2:
        basis = torch.cat([basis, block], dim=1)
        product, diagonal = torch.zeros_like(block), torch.zeros_like(coupling)
        for part in _strips(D):
            image = part @ block
            product.addmm_(part.mT, image)
            diagonal.addmm_(image.mT, image)
        h = torch.block_diag(h, diagonal)
        if len(h) > BLOCK:
            h[-BLOCK:, -2 * BLOCK : -BLOCK], h[-2 * BLOCK : -BLOCK, -BLOCK:] = coupling, coupling.mT
        block, coupling = _orthogonal(product, basis, start)
        values, ritz = _descending(h)
        wanted = _wanted(values, floor)
        residuals = (coupling @ ritz[-BLOCK:, :wanted]).norm(dim=0) / values[:wanted]
        if bool((residuals <= tolerance * values[0]).all()):
            return values[:wanted], basis[:, known.shape[1] :] @ ritz[:, :wanted]
    values, vectors = _descending(_gram(D, known))
    wanted = _wanted(values, floor)
    return values[:wanted], vectors[:, :wanted]


def _wanted(values: Tensor, floor: float | None) -> int:
    return 1 if floor is None else max(1, int((values > floor).sum()))


def _descending(square: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of the eigenvalues, and the eigenvectors, of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(square)
    return values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)


def _noise(q: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(q, BLOCK, dtype=torch.float64, generator=generator).to(like.device)


def _orthogonal(block: Tensor, basis: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An orthonormal block X orthogonal to `basis`, and C with block = X·C + (a part in the basis). Where the search
    has exhausted a direction, a random one comes in, scaled far below rounding, so that it goes on."""
    block = block + 1e-16 * block.norm() * _noise(len(block), generator, block)
    total = torch.eye(BLOCK, dtype=torch.float64, device=block.device)
    for _ in range(3):
        block = block - basis @ (basis.mT @ block)
        block, c = torch.linalg.qr(block)
        total = c @ total
    return block.contiguous(), total  # qr gives columns, which make a slow product
