"""PRUNE in the metric of the data: what a sum of updates does to the keys of ordinary text, against what W₀ does.

PRUNE (https://arxiv.org/abs/2405.16821) compares σ̂ of Σ with σ_max of W₀ as if keys took every direction equally. Here
ΣC^½ is compared with W₀C^½, C = E[kkᵀ] scaled to a mean diagonal of 1; for C = I that is PRUNE. This variant is this
project's own.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, Data, Need, Weight
from tether.constraints.prune import Linear, Log, Restraint, warn_of_cap

_PAPER = "PRUNE's formula (https://arxiv.org/abs/2405.16821), in a metric of this project"


@dataclass(frozen=True)
class DataMetric(Constraint, ABC):
    """F of equation 4 on the singular values of ΣC^½: with ΣC^½ = Σ_i σ_i u_i v_iᵀ and m = σ_max(W₀C^½), the restrained
    sum is (I − Σ_{σ_i>m} (1 − F(σ_i)/σ_i) u_i u_iᵀ) Σ, whose product with C^½ has the singular values F(σ_i).

    So C need not be inverted, no singular value of Σ grows, and the rank stays. Any root of C will do: the state is m
    and a q×q one, O(q³)."""

    restraint: Restraint
    kind: ClassVar[type[Log | Linear]]

    @classmethod
    def read(cls, parameter: str) -> Self:
        return cls(cls.kind.read(parameter))

    def init(self, weight: Weight, data: Data) -> tuple[float, Tensor]:
        root = _root(data.moments().double())
        return float(torch.linalg.matrix_norm(weight.original().double() @ root, 2)), root

    def apply(self, update: LowRank, state: tuple[float, Tensor]) -> tuple[LowRank, tuple[float, Tensor]]:
        m, root = state
        if not update.rank:
            return update, state
        B = update.B.double()
        u, s, _ = LowRank(update.A.double(), B @ root.to(B.device)).svd()
        above = s > m
        if not above.any():
            return update, state
        warn_of_cap(self.restraint, m)
        u, s = u[:, above], s[above]
        less = 1 - self.restraint(s, m) / s
        A = update.A.double()
        restrained = (A - (u * less) @ (u.mT @ A)).to(update.A.dtype)
        return (update if torch.equal(restrained, update.A) else LowRank(restrained, update.B)), state

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"weight", "moments"})

    def __str__(self) -> str:
        return f"data_{self.restraint}"


class DataLog(DataMetric):
    """Written `data_log:1.2`: F_log on the singular values of ΣC^½ above m = σ_max(W₀C^½)."""

    name: ClassVar[str] = "data_log"
    example: ClassVar[str] = "data_log:1.2"
    paper: ClassVar[str] = _PAPER
    kind = Log


class DataLinear(DataMetric):
    """Written `data_linear:2`: F_linear on the singular values of ΣC^½ above m = σ_max(W₀C^½)."""

    name: ClassVar[str] = "data_linear"
    example: ClassVar[str] = "data_linear:2"
    paper: ClassVar[str] = _PAPER
    kind = Linear


def _root(C: Float[Tensor, "q q"]) -> Float[Tensor, "q q"]:
    """L with LLᵀ = C over the mean of its diagonal; from eigenvectors where C is singular."""
    C = C / C.diagonal().mean()
    factor, info = torch.linalg.cholesky_ex(C)
    if not int(info):
        return factor
    values, vectors = torch.linalg.eigh(C)
    return vectors * values.clamp_min(0).sqrt()
