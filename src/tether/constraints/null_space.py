"""AlphaEdit's projection, on a whole sum of updates: what it does to the keys of ordinary text is taken out.

"AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models" (https://arxiv.org/abs/2410.02355), which
projects while it solves; the setting `null_space` of MEMIT does that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.algebra.null_space import null_space
from tether.constraints.base import Constraint, Data, Need, Weight, read_number, written
from tether.errors import BadSettingsError


@dataclass(frozen=True)
class NullSpace(Constraint):
    """Σ·P, P the projector on the eigenvectors of C = E[kkᵀ] with small eigenvalues.

    Written `null_space:0.5`: below 0.5 times the mean eigenvalue. The threshold is a share, so that it means the same
    for every model (AlphaEdit's is 0.02 itself): at most that share of the keys' energy passes P. The state is the
    basis U (q×r), P = UUᵀ. Raises BadSettingsError where no eigenvalue lies below."""

    name: ClassVar[str] = "null_space"
    example: ClassVar[str] = "null_space:0.5"
    paper: ClassVar[str] = "AlphaEdit (https://arxiv.org/abs/2410.02355)"
    threshold: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            what = f"null_space:{self.threshold:g}"
            raise BadSettingsError(f"{what}: write a share of the mean eigenvalue above 0, as in null_space:0.5")

    @classmethod
    def read(cls, parameter: str) -> NullSpace:
        return cls(read_number("null_space", parameter, "null_space:0.5"))

    def init(self, weight: Weight, data: Data) -> Tensor:
        return null_space(data.moments(), self.threshold)

    def apply(self, update: LowRank, state: Tensor) -> tuple[LowRank, Tensor]:
        if not update.rank or state.shape[0] == state.shape[1]:
            return update, state
        basis = state.to(update.B.device)
        B = (update.B.double() @ basis @ basis.mT).to(update.B.dtype)
        return (update if torch.equal(B, update.B) else LowRank(update.A, B)), state

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"moments"})

    def __str__(self) -> str:
        return f"null_space:{written(self.threshold)}"
