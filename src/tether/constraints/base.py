"""What a constraint is: it maps the sum of the updates of one weight to a restrained sum. It never sees a model.

    constraint = parse("log:1.2+rank:64")
    state = constraint.init(Weight((p, q), sigma_max), Data())
    restrained, state = constraint.apply(update, state)

A constraint is immutable and hashable; what it carries from one application to the next is its state, which the caller
keeps. `str()` gives the written form, from which `parse` gives the same constraint.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.errors import BadSettingsError, TetherError
from tether.plugins import Registry

AS_RECORDED = "as recorded"  # the label of a ledger replayed with the restraints of its own journal


@dataclass(frozen=True)
class Weight:
    """What is known of the edited weight: its shape (p, q), m = σ_max of the unedited W₀, and where a model is at hand
    a function that gives W₀ (p×q, float32)."""

    shape: tuple[int, int]
    sigma_max: float
    original: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Data:
    """What is known of the inputs of the weight: where moments are at hand, a function that gives C = E[kkᵀ] (q×q,
    float64)."""

    moments: Callable[[], Tensor] | None = None


class Constraint(ABC):
    """A pair of pure functions. `name` is that of the registry; the written form is `name` or `name:parameter`."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def read(cls, parameter: str) -> Constraint:
        """The constraint whose written form has `parameter` after the colon ("" for none). Raises BadSettingsError."""

    def init(self, weight: Weight, data: Data) -> Any:
        """The state before the first application. Raises TetherError where something it needs is not at hand."""
        return None

    @abstractmethod
    def apply(self, update: LowRank, state: Any) -> tuple[LowRank, Any]:
        """The restrained sum, in the factors' dtype, and the next state. `update` is not changed; the same object comes
        back where there is nothing to restrain."""

    @property
    def acts(self) -> bool:
        """False for `none` alone, which leaves every sum as it is."""
        return True

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True)
class Chain(Constraint):
    """Constraints one after another, written with `+`; the state holds a state for each."""

    name: ClassVar[str] = "chain"
    parts: tuple[Constraint, ...]

    @classmethod
    def read(cls, parameter: str) -> Constraint:
        return parse(parameter)

    def init(self, weight: Weight, data: Data) -> tuple[Any, ...]:
        return tuple(part.init(weight, data) for part in self.parts)

    def apply(self, update: LowRank, state: tuple[Any, ...]) -> tuple[LowRank, tuple[Any, ...]]:
        states = []
        for part, before in zip(self.parts, state, strict=True):
            update, after = part.apply(update, before)
            states.append(after)
        return update, tuple(states)

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


CONSTRAINTS: Registry[type[Constraint]] = Registry(
    "tether.constraints", "constraint", type, {
        "none": "tether.constraints.prune:Nothing",
        "log": "tether.constraints.prune:Log",
        "linear": "tether.constraints.prune:Linear",
        "rank": "tether.constraints.rank:Rank",
    },
)  # fmt: skip


def parse(text: str | Constraint) -> Constraint:
    """`none`, `log:1.2`, `log:e`, `linear:2`, `rank:64`, or several joined by `+`. Raises TetherError for another."""
    if isinstance(text, Constraint):
        return text
    parts = [_part(part, text) for part in text.split("+")]
    active = tuple(part for part in parts if part.acts)
    if len(active) > 1:
        return Chain(active)
    return active[0] if active else parts[0]


def _part(text: str, whole: str) -> Constraint:
    name, _, parameter = text.strip().partition(":")
    if name not in CONSTRAINTS:
        raise BadSettingsError(
            f"{whole!r} is no restraint: write none, log:ALPHA (log:1.2, log:e), linear:BETA (linear:2), or another of "
            f"{', '.join(CONSTRAINTS)}; join several with +"
        )
    return CONSTRAINTS[name].read(parameter)


def read_number(name: str, parameter: str, example: str) -> float:
    """The number after the colon. Raises BadSettingsError where there is none."""
    try:
        return float(parameter)
    except ValueError:
        raise BadSettingsError(f"'{name}:{parameter}' is no restraint: write a number, as in {example}") from None


def label_of(constraint: str | Constraint | None) -> str:
    """The written form, or AS_RECORDED for None, by which results name what their rows carry."""
    return AS_RECORDED if constraint is None else str(parse(constraint))


def constrained(update: LowRank, weight: Weight, constraint: Constraint, data: Data | None = None) -> LowRank:
    """F(Σ) for one application from the constraint's first state: the restrained weight is W₀ + F(Σ)."""
    try:
        return constraint.apply(update, constraint.init(weight, data or Data()))[0]
    except (ArithmeticError, RuntimeError) as error:
        raise TetherError(f"restraint {constraint}: the sum of the updates cannot be restrained ({error})") from error
