"""PRUNE: restrain the large singular values of a sum of updates ("Perturbation-Restrained Sequential Model Editing",
ICLR 2025, https://arxiv.org/abs/2405.16821, eqs. 4-6, appendix C.3).

A restraint is a pure function of singular values, `f(s, sigma_max) -> s_new`, where `sigma_max` is m, the largest
singular value of the *unedited* weight:

    tether.restraint.restrain(tether.LowRank(A, B), m, tether.restraint.log(1.2))
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, Data, Weight, read_number, written
from tether.constraints.base import parse as parse
from tether.errors import BadSettingsError

logger = logging.getLogger(__name__)

_PAPER = "PRUNE (https://arxiv.org/abs/2405.16821)"


class Restraint(Constraint):
    """F of equation 4, callable on singular values. As a constraint its state is m."""

    @abstractmethod
    def __call__(self, s: Float[Tensor, " k"], sigma_max: float) -> Float[Tensor, " k"]:
        """σ̄ of equation 4: F(σ̂) where σ̂ > m, σ̂ elsewhere. Never larger than σ̂, monotone; `s` is not changed."""

    def cap_limit(self, sigma_max: float) -> float | None:
        """The value that m lies below where the cap min(σ̂, F(σ̂)) acts, None where F alone never enlarges."""
        return None

    def init(self, weight: Weight, data: Data) -> float:
        return weight.sigma_max

    def apply(self, update: LowRank, state: float) -> tuple[LowRank, float]:
        return restrain(update, state, self), state


@dataclass(frozen=True)
class Nothing(Restraint):
    """No restraint: W + Σ."""

    name: ClassVar[str] = "none"
    example: ClassVar[str] = "none"
    acts: ClassVar[bool] = False

    @classmethod
    def read(cls, parameter: str) -> Nothing:
        if parameter:
            text = f"none:{parameter}"
            raise BadSettingsError(f"{text!r} is no restraint: none has no parameter; write none, or log:1.2")
        return cls()

    def __call__(self, s: Float[Tensor, " k"], sigma_max: float) -> Float[Tensor, " k"]:
        return s.clone()

    def __str__(self) -> str:
        return "none"


@dataclass(frozen=True)
class Log(Restraint):
    """Written `log:1.2` or `log:e`: F_log(σ̂) = log_α(σ̂) − log_α(m) + m (eq. 5), α > 1.

    Capped at σ̂, which matters only where m < 1/ln α."""

    name: ClassVar[str] = "log"
    example: ClassVar[str] = "log:1.2"
    paper: ClassVar[str] = _PAPER
    alpha: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 1):
            raise BadSettingsError(f"log:{self.alpha:g}: α must be a finite number above 1; the paper uses log:1.2")

    @classmethod
    def read(cls, parameter: str) -> Log:
        return cls(read_number("log", parameter, "log:1.2 or log:e"))

    def __call__(self, s: Float[Tensor, " k"], sigma_max: float) -> Float[Tensor, " k"]:
        excess = (s / sigma_max).clamp_min(1).log() / math.log(self.alpha)
        return torch.where(s > sigma_max, torch.minimum(s, sigma_max + excess), s)

    def cap_limit(self, sigma_max: float) -> float | None:
        limit = 1 / math.log(self.alpha)
        return limit if sigma_max < limit else None

    def __str__(self) -> str:
        return f"log:{written(self.alpha)}"


@dataclass(frozen=True)
class Linear(Restraint):
    """Written `linear:2`: F_linear(σ̂) = σ̂/β + (β−1)/β·m (appendix C.3), β > 1."""

    name: ClassVar[str] = "linear"
    example: ClassVar[str] = "linear:2"
    paper: ClassVar[str] = _PAPER
    beta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta > 1):
            raise BadSettingsError(f"linear:{self.beta:g}: β must be a finite number above 1; the paper uses linear:2")

    @classmethod
    def read(cls, parameter: str) -> Linear:
        return cls(read_number("linear", parameter, "linear:2"))

    def __call__(self, s: Float[Tensor, " k"], sigma_max: float) -> Float[Tensor, " k"]:
        return torch.where(s > sigma_max, torch.minimum(s, sigma_max + (s - sigma_max) / self.beta), s)

    def __str__(self) -> str:
        return f"linear:{written(self.beta)}"


none, log, linear = Nothing, Log, Linear  # the names of the public `tether.restraint`


def restrain(update: LowRank, sigma_max: float, restraint: Restraint) -> LowRank:
    """F(Σ) of equation 6, so that the restrained weight is W + F(Σ) — never W + Σ + F(Σ).

    `update` is Σ, the sum of all updates (left unchanged), `sigma_max` the largest singular value of the unedited W.
    Written as Σ − Σ_{σ̂>m} (σ̂ − σ̄) û v̂ᵀ and refactored: where nothing exceeds m the same update comes back, untouched;
    elsewhere the result has the rank of Σ and the factors' dtype.
    """
    if not restraint.acts or update.rank == 0:
        return update
    if float(update.singular_values()[0]) < sigma_max * (1 - 1e-9):  # so mostly no vectors are needed
        return update
    u, s, vh = update.svd()
    if not bool((s > sigma_max).any()):
        return update
    warn_of_cap(restraint, sigma_max)
    root = restraint(s, sigma_max).sqrt()
    return LowRank(u * root, root[:, None] * vh).to(dtype=update.A.dtype)


def warn_of_cap(restraint: Restraint, sigma_max: float) -> None:
    """Log that F is capped at σ̂, where it is."""
    limit = restraint.cap_limit(sigma_max)
    if limit is not None:
        why = "capped at σ̂, since the formula would enlarge values just above m"
        logger.warning("%s with m = %.3g below 1/ln α = %.3g: %s", restraint, sigma_max, limit, why)
