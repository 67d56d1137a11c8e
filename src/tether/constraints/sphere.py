"""SPHERE's projector: a sum of updates moves the weight less along the main directions of its rows.

"Energy-Regularized Sequential Model Editing on Hyperspheres" (https://arxiv.org/abs/2510.01172), there for the update
of every batch, and with the weight as edited so far; here for the sum, with W₀.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, Data, Need, Weight, read_number, written
from tether.errors import BadSettingsError


@dataclass(frozen=True)
class Sphere(Constraint):
    """Σ(I − s·UUᵀ), U the main directions of the rows of W₀.

    Written `sphere:0.5,0.5`, share η and strength s. U are the first eigenvectors of ŴᵀŴ whose eigenvalues make up more
    than the share η of all of them, Ŵ being W₀ with rows of norm 1. The state is U (q×r). Costs one singular value
    decomposition of W₀, O(p·q·min(p, q))."""

    name: ClassVar[str] = "sphere"
    example: ClassVar[str] = "sphere:0.5,0.5"
    paper: ClassVar[str] = "SPHERE (https://arxiv.org/abs/2510.01172)"
    share: float
    strength: float

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 < self.strength <= 1):
            what = f"sphere:{self.share:g},{self.strength:g}"
            rule = "write a share above 0 and below 1 and a strength above 0 and at most 1"
            raise BadSettingsError(f"{what}: {rule}, as in sphere:0.5,0.5")

    @classmethod
    def read(cls, parameter: str) -> Sphere:
        share, comma, strength = parameter.partition(",")
        if not comma:
            raise BadSettingsError(
                f"{f'sphere:{parameter}'!r} is no restraint: write two numbers, as in sphere:0.5,0.5"
            )
        return cls(read_number("sphere", share, "sphere:0.5,0.5"), read_number("sphere", strength, "sphere:0.5,0.5"))

    def init(self, weight: Weight, data: Data) -> Tensor:
        rows = weight.original().double()
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        _, s, vh = torch.linalg.svd(rows, full_matrices=False)
        energy = s.square()
        count = int((energy.cumsum(0) <= self.share * energy.sum()).sum()) + 1
        return vh[:count].mT.contiguous()

    def apply(self, update: LowRank, state: Tensor) -> tuple[LowRank, Tensor]:
        if not update.rank:
            return update, state
        whole, basis = update.B.double(), state.to(update.B.device)
        B = (whole - self.strength * (whole @ basis @ basis.mT)).to(update.B.dtype)
        return (update if torch.equal(B, update.B) else LowRank(update.A, B)), state

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"weight"})

    def __str__(self) -> str:
        return f"sphere:{written(self.share)},{written(self.strength)}"
