"""The closest sum of at most some rank: the truncated singular value decomposition (Eckart and Young)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint
from tether.errors import BadSettingsError

_RULE = "write a whole number above 0, as in rank:64"


@dataclass(frozen=True)
class Rank(Constraint):
    """Keeps the `rank` largest singular values of the sum and drops the others. Written `rank:64`."""

    name: ClassVar[str] = "rank"
    example: ClassVar[str] = "rank:64"
    paper: ClassVar[str] = "the truncated SVD (Eckart and Young, 1936)"
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadSettingsError(f"'rank:{self.rank}' is no restraint: {_RULE}")

    @classmethod
    def read(cls, parameter: str) -> Rank:
        if not parameter.strip().isdecimal():
            raise BadSettingsError(f"{f'rank:{parameter}'!r} is no restraint: {_RULE}")
        return cls(int(parameter))

    def apply(self, update: LowRank, state: None) -> tuple[LowRank, None]:
        return (update if update.rank <= self.rank else update.truncate(self.rank)), None

    def __str__(self) -> str:
        return f"rank:{self.rank}"
