"""Replay: what a journal's events add up to. The live run adds with the same functions, so both give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from tether.algebra.joint_solve import Solution
from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, Weight, constrained, parse
from tether.errors import BadLedgerError, BadSettingsError, first_line
from tether.ledger.journal import ATTEMPTS, Event, Header
from tether.models.editable import EditableModel

_SINGLY = 8  # updates that are added to the dense sum one by one, before blocks begin
_BLOCK = 64  # columns from which a block of updates is added to the dense sum


@dataclass(frozen=True)
class Dense:
    """Σ as a p×q float32 matrix whose bits depend on the updates and their order alone, not on when it is read.

    The first updates are added one by one; later ones wait until they have enough columns, and are added by one
    product. So a replay of N updates costs far fewer than N passes over the matrix.
    """

    added: Tensor
    count: int = 0
    waiting: tuple[LowRank, ...] = ()

    def add(self, update: LowRank) -> Dense:
        """Σ + AB."""
        waiting = (*self.waiting, update)
        if self.count < _SINGLY or sum(one.rank for one in waiting) >= _BLOCK:
            return Dense(self.added + LowRank.sum(waiting).to_dense(), self.count + 1)
        return Dense(self.added, self.count, waiting)

    @property
    def total(self) -> Tensor:
        return self.added + LowRank.sum(self.waiting).to_dense() if self.waiting else self.added


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum for one weight, immutable: factors in float32 on the CPU, and the dense matrix of a live run (None where
    nobody needs those very bits: `dense` is then made of the factors).

    The factors are `start` and, stacked to it when they are asked for, the updates added `later`. All is compacted
    where there are more than min(p, q) columns and more than half of that are new: never are there more than 1.5 times
    min(p, q), and the cost of it, a product of that many columns, is shared by many edits.
    """

    start: LowRank
    exact: Dense | None = None
    later: tuple[LowRank, ...] = ()
    columns: int = 0

    @cached_property
    def factors(self) -> LowRank:
        return LowRank.sum((self.start, *self.later)) if self.later else self.start

    @property
    def rank(self) -> int:
        """The number of columns of the factors."""
        return self.start.rank + self.columns

    @property
    def dense(self) -> Tensor:
        """Σ as a p×q matrix, float32."""
        return self.factors.to_dense() if self.exact is None else self.exact.total

    def add(self, update: LowRank) -> Sum:
        """Σ + AB."""
        exact = None if self.exact is None else self.exact.add(update)
        found = Sum(self.start, exact, (*self.later, update), self.columns + update.rank)
        limit = min(self.start.shape)
        if found.rank > limit and found.columns > limit // 2:
            return Sum(found.factors.compacted(), exact)
        return found

    def restrained(self, sigma_max: float, restraint: Constraint) -> Sum:
        """F(Σ); this very sum where the restraint changes nothing."""
        factors = constrained(self.factors, Weight(self.start.shape, sigma_max), restraint)
        if factors is self.factors:
            return self
        return Sum(factors, None if self.exact is None else Dense(factors.to_dense()))


class Sums:
    """The sums of every edited weight. `m` is σ_max of W₀ by weight name. `exact` false keeps factors alone, for a
    sum that no live run had."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], m: Mapping[str, float], *, exact: bool = True) -> None:
        self.m = dict(m)
        self.of = {
            name: Sum(LowRank.zeros(*shape), Dense(torch.zeros(*shape)) if exact else None)
            for name, shape in shapes.items()
        }

    def copy(self) -> Sums:
        """Sums that change by themselves; the matrices are shared, since no sum ever changes."""
        other = Sums({}, self.m)
        other.of = dict(self.of)
        return other

    def with_updates(self, updates: Mapping[str, LowRank]) -> dict[str, Sum]:
        """What the sums would be with these updates, as factors; nothing is changed."""
        return {
            name: replace(held, exact=None).add(updates[name]) if name in updates else held
            for name, held in self.of.items()
        }

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
            model.set_update(name, held.dense if held.rank else None)


@dataclass(frozen=True)
class State:
    """The sums after some edits under a restraint; None: as recorded, with the restraints of the journal."""

    edits: int
    restraint: Constraint | None
    sums: Sums


@dataclass(frozen=True)
class Replay:
    """The events of the ledger at `path`, whose edits `counting` are in the sums. `read` gives the tensors of an edit's
    factors file; a pass over the events reads every file once."""

    path: Path
    header: Header
    events: Sequence[Event]
    counting: Set[int]
    read: Callable[[Event], Mapping[str, Tensor]]
    _batches: dict[str, list[Event]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for event in self.events:
            if event.kind == "edit":
                self._batches.setdefault(event.factors or "", []).append(event)

    def states(
        self, at: Sequence[int], restraints: Sequence[Constraint | None], *, exact: bool = True, check: bool = False
    ) -> Iterator[State]:
        """The sums after each number of edits in `at`, ascending, under each restraint in turn, in one pass.

        None replays the journal with its restraints; another restraint is applied once to the sum of the edits.
        `exact` false: no dense sum with the bits of a live run is kept. `check`: the files of edits that do not count
        are read as well. Raises BadSettingsError for a number beyond the ledger.
        """
        check_counts(self.path, at, sum(event.kind in ATTEMPTS for event in self.events))
        recorded = self._nothing(exact=exact) if None in restraints else None
        plain = self._nothing(exact=False) if any(one is not None for one in restraints) else None
        moving = [sums for sums in (recorded, plain) if sums is not None]

        def after(edits: int, partial: Mapping[str, LowRank]) -> Iterator[State]:
            for restraint in restraints:
                held = recorded if restraint is None else plain
                assert held is not None
                sums = held.copy()
                sums.add(partial)
                if restraint is not None:
                    sums.restrain(restraint)
                yield State(edits, restraint, sums)

        waiting = sorted(set(at), reverse=True)
        batch: list[Event] = []  # of the last edit looked at
        for event in self.events:
            if event.kind in ATTEMPTS and event.edit is not None:
                while waiting and waiting[-1] < event.edit:
                    edits = waiting.pop()
                    yield from after(edits, self._cut(batch, edits))
                if not waiting:
                    return
            if event.kind == "edit":
                batch = self._batches[event.factors or ""]
                if event is not batch[-1]:
                    continue
                if any(one.edit in self.counting for one in batch):
                    updates = self._updates(batch, self.counting)
                    for sums in moving:
                        sums.add(updates)
                elif check:
                    self.read(event)
            elif event.kind == "restrain" and event.restrain is not None and recorded is not None:
                recorded.restrain(parse(event.restrain))
        for edits in reversed(waiting):
            yield from after(edits, {})

    def solves(self) -> Iterator[tuple[list[Event], Sums]]:
        """The journal replayed, solve by solve: its edits that count (one, but for a batch), and the sums right after
        it, before a restraint that follows. The sums are factors alone, one object that the next step changes."""
        sums = self._nothing(exact=False)
        for event in self.events:
            batch = self._batches[event.factors or ""] if event.kind == "edit" else []
            counting = [one for one in batch if one.edit in self.counting]
            if counting and event is batch[-1]:
                sums.add(self._updates(batch, self.counting))
                yield counting, sums
            elif event.kind == "restrain" and event.restrain is not None:
                sums.restrain(parse(event.restrain))

    def _nothing(self, *, exact: bool) -> Sums:
        return Sums(
            {name: weight.shape for name, weight in self.header.weights.items()},
            {name: weight.sigma_max for name, weight in self.header.weights.items()},
            exact=exact,
        )

    def _cut(self, batch: Sequence[Event], edits: int) -> dict[str, LowRank]:
        """The part of a batch up to edit `edits`, where that lies inside of it and so the batch is not added yet."""
        counting = {one.edit for one in batch if one.edit is not None and one.edit <= edits} & self.counting
        if not counting or (batch[-1].edit or 0) <= edits:
            return {}
        return self._updates(batch, counting)

    def _updates(self, batch: Sequence[Event], counting: Set[int]) -> dict[str, LowRank]:
        """The updates of one factors file (its edit events are `batch`), for the edits `counting` alone: of facts
        edited in one solve, the solution of the same residuals without the others' keys."""
        tensors = self.read(batch[0])
        removed = [event.column for event in batch if event.column is not None and event.edit not in counting]
        kept = [event.column for event in batch if event.column is not None and event.edit in counting]
        updates = {}
        with sound_factors(self.path, batch[0]):
            for name, weight in self.header.weights.items():
                if f"{name}/A" not in tensors:
                    continue
                A, B = tensors[f"{name}/A"], tensors[f"{name}/B"]
                if removed:
                    solution = Solution(B.double(), tensors[f"{name}/H"].double()).without(removed)
                    A, B = A[:, kept], solution.G.float()
                updates[name] = LowRank(A, B)
                if updates[name].shape != weight.shape:
                    raise ValueError(f"{name} is {updates[name].shape}")
        return updates


def check_counts(path: Path, counts: Iterable[int], attempts: int) -> None:
    """Raises BadSettingsError for a number of edits that the ledger at `path` does not have."""
    for count in counts:
        if not 0 <= count <= attempts:
            raise BadSettingsError(f"{count} edits: {path} has edits 1 to {attempts}")


@contextmanager
def sound_factors(path: Path, event: Event) -> Iterator[None]:
    """Raises BadLedgerError that names the event, where its factors file does not hold what it must."""
    try:
        yield
    except (SafetensorError, KeyError, ValueError, IndexError, RuntimeError) as error:
        raise BadLedgerError(
            f"{path}: event {event.number} (edit {event.edit}): {event.factors} does not hold the factors of its edit "
            f"({first_line(error)}); restore it from a copy"
        ) from error
