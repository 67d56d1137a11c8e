"""PRUNE: restrain the large singular values of a sum of updates (ICLR 2025, eqs. 4-6, appendix C.3).

A restraint is a pure function of singular values, `f(s, sigma_max) -> s_new`, where `sigma_max` is m, the largest
singular value of the *unedited* weight:

    tether.restraint.restrain(tether.LowRank(A, B), m, tether.restraint.log(1.2))
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.errors import TetherError

logger = logging.getLogger(__name__)

AS_RECORDED = "as recorded"  # the label of a ledger replayed with the restraints of its own journal


@dataclass(frozen=True)
class Restraint:
    """F of equation 4, callable on singular values. `str()` gives the written form (`none`, `log:1.2`, `linear:2`),
    from which `parse` gives the same restraint, bit for bit."""

    kind: Literal["none", "log", "linear"]
    parameter: float = 0.0

    def __call__(self, s: Float[Tensor, " k"], sigma_max: float) -> Float[Tensor, " k"]:
        """σ̄ of equation 4: F(σ̂) where σ̂ > m, σ̂ elsewhere. Never larger than σ̂, monotone; `s` is not changed."""
        if self.kind == "none":
            return s.clone()
        if self.kind == "log":
            excess = (s / sigma_max).clamp_min(1).log() / math.log(self.parameter)  # eq. 5
        else:
            excess = (s - sigma_max) / self.parameter  # appendix C.3
        return torch.where(s > sigma_max, torch.minimum(s, sigma_max + excess), s)

    def acts_below(self, sigma_max: float) -> float | None:
        """1/ln α where the cap min(σ̂, F_log(σ̂)) acts because m lies below it, None elsewhere: there the paper's formula
        alone would enlarge the singular values just above m."""
        if self.kind == "log" and sigma_max < 1 / math.log(self.parameter):
            return 1 / math.log(self.parameter)
        return None

    def __str__(self) -> str:
        if self.kind == "none":
            return "none"
        if self.parameter == math.e:
            return f"{self.kind}:e"
        short = f"{self.parameter:g}"
        return f"{self.kind}:{short if float(short) == self.parameter else repr(self.parameter)}"


def none() -> Restraint:
    """No restraint: W + Σ."""
    return Restraint("none")


def log(alpha: float) -> Restraint:
    """F_log(σ̂) = log_α(σ̂) − log_α(m) + m (eq. 5), α > 1, capped at σ̂ (which matters only where m < 1/ln α)."""
    if not (math.isfinite(alpha) and alpha > 1):
        raise TetherError(f"log:{alpha:g}: α must be a finite number above 1; the paper uses log:1.2")
    return Restraint("log", alpha)


def linear(beta: float) -> Restraint:
    """F_linear(σ̂) = σ̂/β + (β−1)/β·m (appendix C.3), β > 1."""
    if not (math.isfinite(beta) and beta > 1):
        raise TetherError(f"linear:{beta:g}: β must be a finite number above 1; the paper uses linear:2")
    return Restraint("linear", beta)


def parse(text: str | Restraint) -> Restraint:
    """`none`, `log:1.2`, `log:e`, `linear:2` -> Restraint. Raises TetherError for anything else."""
    if isinstance(text, Restraint):
        return text
    kind, _, parameter = text.strip().partition(":")
    if kind == "none" and not parameter:
        return none()
    try:
        value = math.e if parameter == "e" else float(parameter)
    except ValueError:
        value = math.nan
    if kind == "log" and not math.isnan(value):
        return log(value)
    if kind == "linear" and not math.isnan(value):
        return linear(value)
    raise TetherError(f"{text!r} is no restraint: write none, log:ALPHA (log:1.2, log:e) or linear:BETA (linear:2)")


def label_of(restraint: str | Restraint | None) -> str:
    """The written form, or AS_RECORDED for None, by which results name what their rows carry."""
    return AS_RECORDED if restraint is None else str(parse(restraint))


def restrain(update: LowRank, sigma_max: float, restraint: Restraint) -> LowRank:
    """F(Σ) of equation 6, so that the restrained weight is W + F(Σ) — never W + Σ + F(Σ).

    `update` is Σ, the sum of all updates (left unchanged), `sigma_max` the largest singular value of the unedited W.
    Written as Σ − Σ_{σ̂>m} (σ̂ − σ̄) û v̂ᵀ and refactored: where nothing exceeds m the same update comes back, untouched;
    elsewhere the result has the rank of Σ and the factors' dtype.
    """
    if restraint.kind == "none" or update.rank == 0:
        return update
    u, s, vh = update.svd()
    if not bool((s > sigma_max).any()):
        return update
    limit = restraint.acts_below(sigma_max)
    if limit is not None:
        logger.warning(
            "%s with m = %.3g below 1/ln α = %.3g: capped at σ̂, since the formula would enlarge values just above m",
            restraint, sigma_max, limit,
        )  # fmt: skip
    restrained = restraint(s, sigma_max)
    root = restrained.sqrt()
    return LowRank(u * root, root[:, None] * vh).to(dtype=update.A.dtype)
