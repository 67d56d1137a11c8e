"""RECT: keep the entries of a sum of updates that change the weight most, relative to what it was.

"Model Editing Harms General Abilities of Large Language Models: Regularization to the Rescue"
(https://arxiv.org/abs/2401.04700), there for the update of every batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, Data, Need, Weight, read_number, written
from tether.errors import BadSettingsError


@dataclass(frozen=True)
class Rect(Constraint):
    """The entries of Σ with the largest |Σ/W₀| stay, the others become zero.

    Written `rect:40`: 40 % stay. Entries as large as the smallest that stays, stay too; where W₀ is zero, the relative
    change is infinite. The state is W₀. A masked sum has no small factors: the result has min(p, q) columns, exact in
    float32, and costs p·q numbers and dense decompositions from then on. A singular value can grow.
    """

    name: ClassVar[str] = "rect"
    example: ClassVar[str] = "rect:40"
    paper: ClassVar[str] = "RECT (https://arxiv.org/abs/2401.04700)"
    percent: float

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise BadSettingsError(f"rect:{self.percent:g}: write a percentage above 0 and at most 100, as in rect:40")

    @classmethod
    def read(cls, parameter: str) -> Rect:
        return cls(read_number("rect", parameter, "rect:40"))

    def init(self, weight: Weight, data: Data) -> Tensor:
        return weight.original()

    def apply(self, update: LowRank, state: Tensor) -> tuple[LowRank, Tensor]:
        if not update.rank:
            return update, state
        dense = update.A.double() @ update.B.double()
        relative = torch.where(dense == 0, 0.0, dense.abs() / state.to(dense).abs())  # 0/0 is no change
        kept = math.ceil(self.percent / 100 * dense.numel())
        least = relative.flatten().kthvalue(dense.numel() - kept + 1).values
        dropped = (relative < least) & (dense != 0)
        if not dropped.any():
            return update, state
        return LowRank.of_dense(dense.masked_fill_(dropped, 0).to(update.A.dtype)), state

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"weight"})

    @property
    def shrinks(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"rect:{written(self.percent)}"
