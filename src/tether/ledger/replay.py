"""The running sum of a ledger's updates: one function for live edits and for replay, so both give the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, Weight, constrained
from tether.models.editable import EditableModel


@dataclass(frozen=True)
class Sum:
    """The sum for one weight: its factors in float32 on the CPU, and the dense p×q matrix accumulated event by event;
    None where nobody needs those very bits: it is then made of the factors."""

    factors: LowRank
    accumulated: Tensor | None = None

    @property
    def dense(self) -> Tensor:
        """Σ as a p×q matrix, float32."""
        return self.factors.to_dense() if self.accumulated is None else self.accumulated

    def add(self, update: LowRank) -> Sum:
        """Σ + AB."""
        dense = None if self.accumulated is None else self.accumulated + update.to_dense()
        return Sum(self.factors + update, dense)

    def restrained(self, sigma_max: float, restraint: Constraint) -> Sum:
        """F(Σ); the same bits where nothing exceeds m."""
        factors = constrained(self.factors, Weight(self.factors.shape, sigma_max), restraint)
        if factors is self.factors:
            return self
        return Sum(factors, None if self.accumulated is None else factors.to_dense())


class Sums:
    """The sums of every edited weight. `m` is σ_max of W₀ by weight name. `by_event` false keeps factors alone, for a
    sum that no live run had."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], m: Mapping[str, float], *, by_event: bool = True) -> None:
        self.m = dict(m)
        self.of = {
            name: Sum(LowRank.zeros(*shape), torch.zeros(*shape, dtype=torch.float32) if by_event else None)
            for name, shape in shapes.items()
        }

    def with_updates(self, updates: Mapping[str, LowRank]) -> dict[str, Sum]:
        """What the sums would be with these updates, as factors; nothing is changed."""
        return {name: Sum(held.factors + updates[name]) if name in updates else held for name, held in self.of.items()}

    def add(self, updates: Mapping[str, LowRank]) -> None:
        self.of = {name: held.add(updates[name]) if name in updates else held for name, held in self.of.items()}

    def restrain(self, restraint: Constraint) -> None:
        self.of = {name: held.restrained(self.m[name], restraint) for name, held in self.of.items()}

    def restrains(self, restraint: Constraint) -> bool:
        """Whether the restraint would change any of the sums."""
        return any(held.restrained(self.m[name], restraint) is not held for name, held in self.of.items())

    def show(self, model: EditableModel) -> None:
        """Make the model carry the sums: round(W₀ + Σ); a weight without updates gets its original bits."""
        for name, held in self.of.items():
            model.set_update(name, held.dense if held.factors.rank else None)
