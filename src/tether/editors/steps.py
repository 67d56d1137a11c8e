"""How δ takes its next step from a loss and its gradient: Adam, as the papers have it, or Polyak's step.

Polyak's step (Introduction to Optimization, 1987) asks for no learning rate where the least loss is known, and here it
is near zero: along the negative gradient, the length at which the tangent reaches it,

    s = −r · loss / ‖g‖² · g,      no longer than `v_longest_step` · ‖start‖;      δ ← δ + s + μ · (the step before)

with the relaxation r = 1.3 and the momentum μ = 0.2. Long where the loss is large, short where it is steep or nearly
gone, so that few steps do: `bench/steps.py` shows both rules on the same facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.editors.settings import LatentHparams

_RELAXATION, _MOMENTUM = 1.3, 0.2


class StepRule(Protocol):
    """The step of f facts side by side, with what it remembers of each."""

    def step(
        self, delta: Float[Tensor, "f p"], gradient: Float[Tensor, "f p"], loss: Float[Tensor, " f"],
        norms: Float[Tensor, " f"],
    ) -> Float[Tensor, "f p"]:  # fmt: skip
        """The next δ of every fact; `norms` are ‖start‖. Changes none of its arguments."""

    def keep(self, index: Int[Tensor, " k"]) -> None:
        """Forget all facts but these."""


class Adam:
    """Adam with the papers' β = (0.9, 0.999) and the learning rate `v_lr`."""

    def __init__(self, hparams: LatentHparams, delta: Float[Tensor, "f p"]) -> None:
        self._rate, self._steps = hparams.v_lr, 0
        self._first, self._second = torch.zeros_like(delta), torch.zeros_like(delta)

    def step(
        self, delta: Float[Tensor, "f p"], gradient: Float[Tensor, "f p"], loss: Float[Tensor, " f"],
        norms: Float[Tensor, " f"],
    ) -> Float[Tensor, "f p"]:  # fmt: skip
        self._steps += 1
        self._first = 0.9 * self._first + 0.1 * gradient
        self._second = 0.999 * self._second + 0.001 * gradient.square()
        mean, square = self._first / (1 - 0.9**self._steps), self._second / (1 - 0.999**self._steps)
        return delta - self._rate * mean / (square.sqrt() + 1e-8)

    def keep(self, index: Int[Tensor, " k"]) -> None:
        self._first, self._second = self._first[index], self._second[index]


class Polyak:
    """Polyak's step towards a loss of zero, and a share of the step before."""

    def __init__(self, hparams: LatentHparams, delta: Float[Tensor, "f p"]) -> None:
        self._longest = hparams.v_longest_step
        self._before = torch.zeros_like(delta)

    def step(
        self, delta: Float[Tensor, "f p"], gradient: Float[Tensor, "f p"], loss: Float[Tensor, " f"],
        norms: Float[Tensor, " f"],
    ) -> Float[Tensor, "f p"]:  # fmt: skip
        steepness = gradient.norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        length = torch.minimum(_RELAXATION * loss.to(delta) / steepness, self._longest * norms)
        self._before = _MOMENTUM * self._before - (length / steepness)[:, None] * gradient
        return delta + self._before

    def keep(self, index: Int[Tensor, " k"]) -> None:
        self._before = self._before[index]


RULES: Mapping[str, Callable[[LatentHparams, Tensor], StepRule]] = {"adam": Adam, "polyak": Polyak}
