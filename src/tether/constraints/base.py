"""What a constraint is: it maps the sum of the updates of one weight to a restrained sum. It never sees a model.

    constraint = parse("log:1.2+rank:64")
    state = constraint.init(Weight((p, q), sigma_max), Data())
    restrained, state = constraint.apply(update, state)

A constraint is immutable and hashable; what it carries from one application to the next is its state, which the caller
keeps. `str()` gives the written form, from which `parse` gives the same constraint.

Another package adds one as a subclass of Constraint, under an entry point of the name that the class has:

    [project.entry-points."tether.constraints"]
    halve = "my_package:Halve"

`tether.constraints.checks.check_constraint(parse("halve"))` says whether it keeps the rules.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.errors import BadSettingsError, TetherError, first_line
from tether.plugins import Registry

_PLUS = re.compile(r"(?<![0-9.]e)\+")  # not that of 1e+20
Need = Literal["weight", "moments"]
AS_RECORDED = "as recorded"  # the label of a ledger replayed with the restraints of its own journal


def _not_at_hand() -> Tensor:
    raise TetherError("a restraint asks for W₀ or for the moments, and no model is at hand: give the model as well")


@dataclass(frozen=True)
class Weight:
    """The edited weight: its shape (p, q), m = σ_max of the unedited W₀, and `original()`, W₀ itself (p×q, float32 on
    the CPU, not to be changed). It is read when it is asked for; raises TetherError where no model is at hand."""

    shape: tuple[int, int]
    sigma_max: float
    original: Callable[[], Tensor] = _not_at_hand


@dataclass(frozen=True)
class Data:
    """The inputs of the weight: `moments()` is C = E[kkᵀ] (q×q, float64 on the CPU, not to be changed), read when it is
    asked for; raises TetherError where none are at hand."""

    moments: Callable[[], Tensor] = _not_at_hand


class Constraint(ABC):
    """A pair of pure functions. `name` is that of the registry; the written form is `name` or `name:parameter`, and
    `example` is one that can be parsed; `paper` says where it is from. `acts` is False for `none` alone, which leaves
    every sum as it is."""

    name: ClassVar[str]
    example: ClassVar[str]
    paper: ClassVar[str] = ""
    acts: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def read(cls, parameter: str) -> Constraint:
        """The constraint whose written form has `parameter` after the colon ("" for none). Raises BadSettingsError."""

    def init(self, weight: Weight, data: Data) -> Any:
        """The state before the first application. Raises TetherError where something it needs is not at hand."""
        return None

    @abstractmethod
    def apply(self, update: LowRank, state: Any) -> tuple[LowRank, Any]:
        """The restrained sum, in the factors' dtype, and the next state. Neither argument is changed; the same update
        object comes back where there is nothing to restrain, always for one of rank 0."""

    @property
    def needs(self) -> frozenset[Need]:
        """What `init` asks for beside the shape and m: `weight.original()`, `data.moments()`."""
        return frozenset()

    @property
    def shrinks(self) -> bool:
        """Whether it promises that no singular value of a sum grows."""
        return True

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True)
class Chain(Constraint):
    """Two or more constraints, the first one applied first; written with `+`. The state is that of each. A chain within
    a chain is taken apart. Raises BadSettingsError for fewer than two that act."""

    name: ClassVar[str] = "chain"
    example: ClassVar[str] = "log:1.2+rank:64"
    parts: tuple[Constraint, ...]

    def __post_init__(self) -> None:
        parts = [one for part in self.parts for one in (part.parts if isinstance(part, Chain) else (part,))]
        object.__setattr__(self, "parts", tuple(part for part in parts if part.acts))
        if len(self.parts) < 2:
            raise BadSettingsError(f"{' + '.join(map(str, parts)) or 'nothing'} is no chain: join two that act")

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

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*(part.needs for part in self.parts))

    @property
    def shrinks(self) -> bool:
        return all(part.shrinks for part in self.parts)

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


_BUILT_IN = {
    "none": "prune:Nothing", "log": "prune:Log", "linear": "prune:Linear", "rank": "rank:Rank", "rect": "rect:Rect",
    "norm": "norm:Norm", "null_space": "null_space:NullSpace", "sphere": "sphere:Sphere",
    "data_log": "data_metric:DataLog", "data_linear": "data_metric:DataLinear",
}  # fmt: skip
CONSTRAINTS: Registry[type[Constraint]] = Registry(
    "tether.constraints", "constraint", type, {name: f"tether.constraints.{at}" for name, at in _BUILT_IN.items()}
)


def parse(text: str | Constraint) -> Constraint:
    """`none`, `log:1.2`, `log:e`, `linear:2`, `rank:64`, or several joined by `+`. Raises BadSettingsError for another
    text, and TetherError for a plug-in that is no Constraint."""
    if isinstance(text, Constraint):
        return text
    parts = [_part(part, text) for part in _PLUS.split(text)]
    active = tuple(part for part in parts if part.acts)
    if len(active) > 1:
        return Chain(active)
    return active[0] if active else parts[0]


def _part(text: str, whole: str) -> Constraint:
    name, _, parameter = text.strip().partition(":")
    if name not in CONSTRAINTS:
        forms = f"log:ALPHA (log:1.2, log:e), linear:BETA (linear:2), or another of {', '.join(CONSTRAINTS)}"
        raise BadSettingsError(f"{whole!r} is no restraint: write none, {forms}; join several with +")
    found = CONSTRAINTS[name]
    if not issubclass(found, Constraint) or found.name != name:
        source = f"{name!r} of {CONSTRAINTS.source(name)}"
        raise TetherError(f"restraint {source} is no Constraint of that name: update or remove that package")
    return found.read(parameter)


def read_number(name: str, parameter: str, example: str) -> float:
    """The number after the colon, `e` for Euler's. Raises BadSettingsError where there is none."""
    if parameter == "auto":
        what = (
            "auto is found from edits and their facts, by edit, evaluate, export and restrain, for log and linear alone"
        )
        raise BadSettingsError(f"{f'{name}:auto'!r}: {what}; write a number here, as in {example}")
    try:
        return math.e if parameter == "e" else float(parameter)
    except ValueError:
        raise BadSettingsError(f"{f'{name}:{parameter}'!r} is no restraint: write a number, as in {example}") from None


def written(number: float) -> str:
    """The shortest text that `read_number` reads as the same number, without a plus sign, which joins a chain."""
    if number == math.e:
        return "e"
    short = f"{number:g}"
    return (short if float(short) == number else repr(number)).replace("e+", "e")


def label_of(constraint: str | Constraint | None) -> str:
    """The written form, or AS_RECORDED for None, by which results name what their rows carry."""
    return AS_RECORDED if constraint is None else str(parse(constraint))


def constrained(update: LowRank, constraint: Constraint, first: Any) -> LowRank:
    """F(Σ) for one application from the constraint's `first` state: the restrained weight is W₀ + F(Σ)."""
    try:
        return constraint.apply(update, first)[0]
    except (ArithmeticError, RuntimeError) as error:
        why = f"the sum of the updates has no singular values ({first_line(error)})"
        raise TetherError(f"restraint {constraint}: {why}: undo the last edit") from error
