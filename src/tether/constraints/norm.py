"""A cap on the Frobenius norm of a sum of updates, as a share of the norm of the weight.

That the norm of edited weights grows without end is why long sequences of edits fail, and holding it down is half of
ENCORE, which penalises it in the solve ("Lifelong Knowledge Editing requires Better Regularization",
https://arxiv.org/abs/2502.01636). This is the plain cap, on the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, Data, Need, Weight, read_number, written
from tether.errors import BadSettingsError

_SLACK = 1e-6  # a sum that was scaled to the limit in float32 is not scaled again


@dataclass(frozen=True)
class Norm(Constraint):
    """Σ · min(1, x·‖W₀‖/‖Σ‖), Frobenius norms.

    Written `norm:0.1` for x = 0.1. The state is the limit, x·‖W₀‖."""

    name: ClassVar[str] = "norm"
    example: ClassVar[str] = "norm:0.1"
    paper: ClassVar[str] = "after ENCORE (https://arxiv.org/abs/2502.01636)"
    share: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.share) and self.share > 0):
            raise BadSettingsError(f"norm:{self.share:g}: write a share of ‖W₀‖ above 0, as in norm:0.1")

    @classmethod
    def read(cls, parameter: str) -> Norm:
        return cls(read_number("norm", parameter, "norm:0.1"))

    def init(self, weight: Weight, data: Data) -> float:
        return self.share * float(weight.original().double().norm())

    def apply(self, update: LowRank, state: float) -> tuple[LowRank, float]:
        size = update.norm()
        if size <= state * (1 + _SLACK):
            return update, state
        return LowRank(update.A * (state / size), update.B), state

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"weight"})

    def __str__(self) -> str:
        return f"norm:{written(self.share)}"
