"""Replay: what a journal's events add up to. The live run adds with the same functions, so both give the same bits."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tether.algebra.joint_solve import Solution
from tether.algebra.lowrank import LowRank
from tether.algebra.ridge import ridge_sum
from tether.constraints.base import Constraint, Data, Weight, constrained, parse
from tether.editors.moments import cached_moments
from tether.errors import BadLedgerError, BadSettingsError, TetherError, first_line
from tether.ledger.journal import ATTEMPTS, Event, Header
from tether.models.editable import EditableModel

logger = logging.getLogger(__name__)

_SINGLY = 8  # updates that are added to the dense sum one by one, before blocks begin
_BLOCK = 64  # columns from which a block of updates is added to the dense sum


@dataclass(frozen=True)
class Dense:
    """Σ as a p×q float32 matrix whose bits depend on the updates, their order and the device alone, not on when it is
    read. It stays on its device: there updates are moved as factors.

    The first updates are added one by one; later ones wait until they have enough columns, and are added by one
    product. So a replay of N updates costs far fewer than N passes over the matrix.
    """

    added: Tensor
    count: int = 0
    waiting: tuple[LowRank, ...] = ()

    def add(self, update: LowRank) -> Dense:
        """Σ + AB."""
        waiting = (*self.waiting, update.to(self.added.device))
        if self.count < _SINGLY or sum(one.rank for one in waiting) >= _BLOCK:
            return Dense(self.added + LowRank.sum(waiting).to_dense(), self.count + 1)
        return Dense(self.added, self.count, waiting)

    @property
    def total(self) -> Tensor:
        return self.added + LowRank.sum(self.waiting).to_dense() if self.waiting else self.added


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum for one weight, immutable: factors in float32 on the CPU, and the dense matrix of a live run, where the
    model has the weight (None where nobody needs those very bits: a dense sum is then made of the factors).

    The factors are `start` and, stacked to it when they are asked for, the updates added `later`. They are compacted
    where there are more than min(p, q) columns and more than half of that are new, so that many edits share the cost.
    Not from half of min(p, q) columns on: the compacted form has min(p, q). At 576×1536 and 289 columns it would take
    twice the memory (1.2 instead of 0.6 million numbers) and make an SVD five times slower (233 instead of 48 ms).
    """

    start: LowRank
    exact: Dense | None = None
    later: tuple[LowRank, ...] = ()
    columns: int = 0  # of `later`

    @cached_property
    def factors(self) -> LowRank:
        return LowRank.sum((self.start, *self.later)) if self.later else self.start

    @property
    def rank(self) -> int:
        """The number of columns of the factors."""
        return self.start.rank + self.columns

    @property
    def dense(self) -> Tensor:
        """Σ as a p×q matrix, float32 on the CPU."""
        return self.on(torch.device("cpu"))

    def on(self, device: torch.device) -> Tensor:
        """Σ as a p×q matrix, float32 on `device`."""
        return self.factors.to(device).to_dense() if self.exact is None else self.exact.total.to(device)

    def add(self, update: LowRank) -> Sum:
        """Σ + AB."""
        exact = None if self.exact is None else self.exact.add(update)
        found = Sum(self.start, exact, (*self.later, update), self.columns + update.rank)
        limit = min(self.start.shape)
        if found.rank > limit and found.columns > limit // 2:
            return Sum(found.factors.compacted(), exact)
        return found

    def restrained(self, restraint: Constraint, first: Callable[[], Any]) -> Sum:
        """F(Σ), from the restraint's `first` state, asked for only where there are updates; this very sum where the
        restraint changes nothing."""
        if not (restraint.acts and self.rank):
            return self
        factors = constrained(self.factors, restraint, first())
        if factors is self.factors:
            return self
        return Sum(factors, self.exact and Dense(factors.to(self.exact.added.device).to_dense()))


class Sums:
    """The sums of every edited weight; `m` is σ_max of W₀ by weight name, `inputs` what a restraint may read of each.
    `dense` says where each dense sum lies; None keeps factors alone, for a sum that no live run had. No sum and no dict
    of them is ever changed: `copy.copy` gives Sums that go their own way, with the same first states of restraints,
    each computed once."""

    def __init__(
        self, inputs: Mapping[str, tuple[Weight, Data]], dense: Mapping[str, torch.device] | None = None
    ) -> None:
        self._first = cache(lambda restraint, name: restraint.init(*inputs[name]))
        self.m = {name: weight.sigma_max for name, (weight, _) in inputs.items()}
        self.of = {
            name: Sum(
                LowRank.zeros(*weight.shape),
                None if dense is None else Dense(torch.zeros(*weight.shape, device=dense[name])),
            )
            for name, (weight, _) in inputs.items()
        }

    def add(self, updates: Mapping[str, LowRank]) -> None:
        self.of = {name: held.add(updates[name]) if name in updates else held for name, held in self.of.items()}

    def prepare(self, restraint: Constraint) -> None:
        """Compute the restraint's first states now, so that what it lacks is said before the work. Raises TetherError
        where W₀ or moments are not at hand, or the restraint does not fit them."""
        for name in self.of if restraint.acts else ():
            self._first(restraint, name)

    def restrain(self, restraint: Constraint) -> None:
        self.of = {name: self._restrained(name, held, restraint) for name, held in self.of.items()}

    def restrain_recorded(self, restraint: Constraint) -> dict[str, Any]:
        """`restrain`; returns what a journal says of it, by weight: the largest σ̂ before, how many were above m, the
        largest after."""
        before = {name: held.factors.singular_values() for name, held in self.of.items()}
        self.restrain(restraint)
        return {
            name: {
                "update_sigma_max": float(s[0]) if len(s) else 0.0,
                "above_m": int((s > self.m[name]).sum()),
                "restrained_sigma_max": max(self.of[name].factors.singular_values().tolist(), default=0.0),
            }
            for name, s in before.items()
        }

    def restrains(self, restraint: Constraint) -> bool:
        """Whether the restraint would change any of the sums."""
        return any(self._restrained(name, held, restraint) is not held for name, held in self.of.items())

    def _restrained(self, name: str, held: Sum, restraint: Constraint) -> Sum:
        return held.restrained(restraint, lambda: self._first(restraint, name))

    def show(self, model: EditableModel) -> None:
        """Make the model carry the sums: round(W₀ + Σ); a weight without updates gets its original bits."""
        for name, held in self.of.items():
            on = held.on(model.weight(name).device) if held.rank else None
            model.set_update(name, on, partial(getattr, held, "factors"))


@dataclass(frozen=True)
class State:
    """The sums after some edits under a restraint; None: as recorded, with the restraints of the journal."""

    edits: int
    restraint: Constraint | None
    sums: Sums


@dataclass(frozen=True)
class Replay:
    """The events of the ledger at `path`, whose edits `counting` are in the sums. `read` gives the tensors of an edit's
    factors file; a pass over the events reads every file once. Of `model` restraints may ask for W₀ and the moments.

    Updates are added as they were made. But of edits whose solves carried the earlier keys (the setting `history`), an
    undo or redo changes what the others add: those among the first `anew` events are solved anew from the keys and
    targets that were kept, after a restraint against the restrained sum, as they were (`tether.algebra.ridge`).

    `starts` are the first of the edits that replaced others. Below one of them a state is of the edits as they stood
    then: `standing` gives those, by the last number of edits."""

    path: Path
    header: Header
    events: Sequence[Event]
    counting: Set[int]
    read: Callable[[Event], Mapping[str, Tensor]]
    model: EditableModel | None = None
    starts: tuple[int, ...] = ()
    standing: Callable[[int], Set[int]] | None = None

    def without(self, edits: Set[int] = frozenset()) -> Replay:
        """As after the undo of these edits; of those that count now, at every number of edits."""
        return replace(self, counting=self.counting - edits, starts=())

    @cached_property
    def anew(self) -> int:
        """The number of the last event of an edit that counts and was solved with other edits before it than count
        now. 0 without `history`."""
        found, out = 0, frozenset[int]()
        if not self.header.settings.get("history"):
            return found
        edits = {event.edit for event in self.events if event.kind == "edit" and event.edit is not None}
        apart = min(edits - self.counting, default=None)  # the first edit that counted then and not now, or the reverse
        for event in self.events:
            if event.undone or event.redone:
                out = (out | set(event.undone or ())) - set(event.redone or ())
                apart = min(out ^ (edits - self.counting), default=None)
            if event.kind == "edit" and event.edit in self.counting and apart is not None and apart < (event.edit or 0):
                place, size = event.batch or (1, 1)
                found = event.number + size - place
        return found

    def sums(
        self, upto: int | None = None, restraint: Constraint | None = None, *, exact: bool = True, check: bool = False
    ) -> Sums:
        """The sums of `states` after one number of edits (None: all) under one restraint."""
        at = self._attempts if upto is None else upto
        return next(self.states([at], [restraint], exact=exact, check=check)).sums

    def states(
        self, at: Sequence[int], restraints: Sequence[Constraint | None], *, exact: bool = True, check: bool = False
    ) -> Iterator[State]:
        """The sums after each number of edits in `at`, ascending, under each restraint in turn, in one pass.

        Each is of the edits as they stood then. None replays the journal with its restraints; another restraint is
        applied once to the sum of the edits.
        `exact` false: no dense sum with the bits of a live run is kept. `check`: the files of edits that do not count
        are read as well. Raises BadSettingsError for a number beyond the ledger, and TetherError, before any state,
        where a restraint asks for what is not at hand.
        """
        check_counts(self.path, at, self._attempts)
        check_ends(self.path, at, self.events)
        counts: dict[int | None, list[int]] = {}
        for one in sorted(set(at)):
            counts.setdefault(min((start for start in self.starts if start > one), default=None), []).append(one)
        for restraint in restraints if len(counts) > 1 else ():
            if restraint is not None and max(at, default=0):
                Sums(self.inputs).prepare(restraint)
        for start, some in counts.items():
            earlier = None if start is None or self.standing is None else self.standing(start - 1)
            standing = self if earlier is None else replace(self, counting=earlier, starts=())
            yield from standing._states(some, restraints, exact=exact, check=check)

    def _states(
        self, at: Sequence[int], restraints: Sequence[Constraint | None], *, exact: bool, check: bool
    ) -> Iterator[State]:
        running = {
            recorded: Sums(self.inputs, self._places if exact and recorded else None)
            for recorded in {one is None for one in restraints}
        }
        batch: list[Event] = []  # of the last edit looked at
        added = seen = 0  # of the edits that are solved anew: the last in `running`, the last looked at

        def after(edits: int) -> Iterator[State]:
            inside = batch and (batch[-1].edit or 0) > edits  # of a batch that is not added yet
            partial = {recorded: self._updates(batch, edits) if inside else {} for recorded in running}
            if seen > added:
                partial = {one: self._between(added, min(seen, edits), sums) for one, sums in running.items()}
            for restraint in restraints:
                sums = copy.copy(running[restraint is None])
                sums.add(partial[restraint is None])
                if restraint is not None:
                    sums.restrain(restraint)
                yield State(edits, restraint, sums)

        for restraint in restraints:
            if restraint is not None and max(at, default=0):
                running[False].prepare(restraint)
        waiting = sorted(set(at), reverse=True)
        for event in self.events:
            if event.kind in ATTEMPTS and event.edit is not None:
                while waiting and waiting[-1] < event.edit:
                    yield from after(waiting.pop())
                if not waiting:
                    return
            if seen > added and (event.number > self.anew or event.restrain is not None):
                for sums in running.values():
                    sums.add(self._between(added, seen, sums))
                added = seen
            if event.kind == "edit" and event.number <= self.anew:
                seen = event.edit or 0
                if check:
                    self.read(event)
            elif event.kind == "edit":
                batch = self._batches[event.factors or ""]
                if event is batch[-1]:
                    updates = self._updates(batch)
                    for sums in running.values():
                        sums.add(updates)
                    if check and not updates:
                        self.read(event)
            elif event.restrain is not None and True in running and acts(event, self.counting):
                running[True].restrain(parse(event.restrain))
        for edits in reversed(waiting):
            yield from after(edits)

    def solves(self) -> Iterator[tuple[list[Event], Sums]]:
        """The journal replayed, solve by solve: its edits that count (one, but for a batch), and the sums right after
        it, before a restraint that follows. The sums are factors alone, one object that the next step changes."""
        sums = Sums(self.inputs)
        for event in self.events:
            batch = self._batches[event.factors or ""] if event.kind == "edit" else []
            counting = [one for one in batch if one.edit in self.counting]
            if counting and event is batch[-1]:
                anew, first = event.number <= self.anew, (batch[0].edit or 0) - 1
                sums.add(self._between(first, event.edit or 0, sums) if anew else self._updates(batch))
                yield counting, sums
            elif event.restrain is not None and acts(event, self.counting):
                sums.restrain(parse(event.restrain))

    @cached_property
    def inputs(self) -> dict[str, tuple[Weight, Data]]:
        """What a restraint may read of every edited weight; with a model W₀ and the moments, when it asks for them."""
        if self.model is None:
            return {name: (Weight(one.shape, one.sigma_max), Data()) for name, one in self.header.weights.items()}
        found = {}
        for name, one in self.header.weights.items():
            original, moments = partial(_original, self.model, name), cache(partial(self._moments, self.model, name))
            found[name] = Weight(one.shape, one.sigma_max, original), Data(moments)
        return found

    @property
    def _places(self) -> dict[str, torch.device]:
        """Where the model has each edited weight; the CPU without a model."""
        cpu = torch.device("cpu")
        return {name: cpu if self.model is None else self.model.weight(name).device for name in self.header.weights}

    def _moments(self, model: EditableModel, name: str) -> Tensor:
        """C of the weight's layer from the cache, by the key that the ledger recorded."""
        header = self.header
        layer = next((layer for layer in header.moments if model.weight_name(layer) == name), None)
        if layer is None:
            what = f"{self.path}: {header.method} was run without moments of {name}, which a restraint asks for"
            raise BadSettingsError(f"{what}: name another restraint")
        found = cached_moments({layer: header.moments[layer].key})
        if found is None:
            corpus = header.corpus.get("path") or f"self:{header.corpus.get('max_tokens')}"
            again = f"--model {header.model} --corpus {corpus} --layers {layer} --seed {header.seed}"
            raise TetherError(
                f"a restraint asks for the moments of layer {layer} of {self.path}, which are not in the cache: "
                f"collect them again by `tether moments {again} --dtype {header.dtype}`"
            )
        if found[layer].sha256() != header.moments[layer].sha256:
            logger.warning("moments of layer %d differ in the last bits from those of %s", layer, self.path)
        return found[layer].C

    @cached_property
    def _batches(self) -> dict[str, list[Event]]:
        return by_file(event for event in self.events if event.kind == "edit")

    @property
    def _attempts(self) -> int:
        return sum(event.kind in ATTEMPTS for event in self.events)

    def _between(self, first: int, last: int, sums: Sums) -> dict[str, LowRank]:
        """What the solves of the edits after `first`, up to `last`, add to `sums`, by the weights they have."""
        found = {}
        for name, (edits, K, X, D) in self._solves.items():
            before, upto = (int((edits <= at).sum()) for at in (first, last))
            if upto > before:
                found[name] = ridge_sum(K[:upto], X[:upto], D[:upto], before, sums.of[name].factors)
        return found

    @cached_property
    def _solves(self) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For every weight the edits that count and are solved anew, a row a key: their numbers, K, X, D."""
        rows: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in self.header.weights}
        for event in self.events[: self.anew]:
            if event.kind == "edit" and event.edit in self.counting:
                tensors = self.read(event)
                with sound_factors(self.path, event):
                    for name in rows:
                        of_edit = tuple(tensors[f"{name}/{kind}"][event.part] for kind in "KXD")
                        rows[name].append((torch.full((len(of_edit[0]),), event.edit or 0), *of_edit))
        stacked = {name: [torch.cat(one) for one in zip(*parts, strict=True)] for name, parts in rows.items() if parts}
        return {name: (edits, K, X, D) for name, (edits, K, X, D) in stacked.items()}

    def _updates(self, batch: Sequence[Event], upto: int | None = None) -> dict[str, LowRank]:
        """The updates of one factors file (its edits are `batch`) for those that count, numbered at most `upto`."""
        kept = [one for one in batch if one.edit in self.counting and (upto is None or (one.edit or 0) <= upto)]
        if not kept or (kept[0].shared and len(kept) < len(batch)):
            return {}
        tensors, updates = self.read(batch[0]), {}
        with sound_factors(self.path, batch[0]):
            for name, weight in self.header.weights.items():
                if f"{name}/A" in tensors:
                    updates[name] = solved(tensors, name, kept)
                    if updates[name].shape != weight.shape:
                        raise ValueError(f"{name} is {updates[name].shape}")
        return updates


def acts(event: Event, counting: Set[int]) -> bool:
    """Whether a restraint of the journal acts, where these edits count."""
    if event.only_with is None:
        return event.restrain is not None
    first, last = event.only_with
    return not counting.isdisjoint(range(first, last + 1))


def _original(model: EditableModel, name: str) -> Tensor:
    return model.original(name).cpu()


def by_file(edits: Iterable[Event]) -> dict[str, list[Event]]:
    """Edits by the factors file that they share with those of their batch, in their order."""
    batches: dict[str, list[Event]] = {}
    for event in edits:
        batches.setdefault(event.factors or "", []).append(event)
    return batches


def solved(tensors: Mapping[str, Tensor], name: str, kept: Sequence[Event]) -> LowRank:
    """The update of a weight by the edits `kept` of one factors file. Of facts edited in one solve, the solution of the
    same residuals without the others' keys."""
    A, B = tensors[f"{name}/A"], tensors[f"{name}/B"]
    columns, removed = _columns(A, kept)
    if removed:
        A, B = A[:, columns], _solution(tensors, name).without(removed).G.float()
    return LowRank(A, B)


def part_of(
    tensors: Mapping[str, Tensor], names: Iterable[str], kept: Sequence[Event]
) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """The updates by the edits `kept` of one factors file, and what their editor kept of them ("<weight>/K", …): all
    that a file of theirs alone holds. Of all edits of the file, its own tensors."""
    updates, vectors = {}, {}
    for name in names:
        if f"{name}/A" not in tensors:
            continue
        updates[name] = solved(tensors, name, kept)
        columns, removed = _columns(tensors[f"{name}/A"], kept)
        for kind in ("K", "V", "H", "X", "D"):
            if (held := tensors.get(f"{name}/{kind}")) is not None:
                if removed and kind == "H":
                    held = _solution(tensors, name).without(removed).H.float()
                vectors[f"{name}/{kind}"] = held[columns] if removed and kind != "H" else held
    return updates, vectors


def _columns(A: Tensor, kept: Sequence[Event]) -> tuple[list[int], list[int]]:
    """The columns of A of the edits `kept`, and those of the others."""
    columns = [column for event in kept for column in range(A.shape[1])[event.part]]
    return columns, sorted(set(range(A.shape[1])) - set(columns))


def _solution(tensors: Mapping[str, Tensor], name: str) -> Solution:
    return Solution(tensors[f"{name}/B"].double(), tensors[f"{name}/H"].double())


def check_ends(path: Path, counts: Iterable[int], events: Iterable[Event]) -> None:
    """Raises BadSettingsError for a number of edits that lies inside a batch whose facts share one update."""
    for event in events:
        if event.shared and event.batch is not None and event.edit is not None:
            before = event.edit - event.batch[0]
            last = before + event.batch[1]
            for count in counts:
                if before < count < last:
                    what = f"edits {before + 1} to {last} share one update"
                    raise BadSettingsError(f"{count} edits: {what} in {path}; name {before} or {last}")


def check_counts(path: Path, counts: Iterable[int], attempts: int) -> None:
    """Raises BadSettingsError for a number of edits that the ledger at `path` does not have."""
    for count in counts:
        if not 0 <= count <= attempts:
            raise BadSettingsError(f"{count} edits: {path} has edits 1 to {attempts}")


def damaged(path: Path, event: Event, what: str) -> BadLedgerError:
    """The error that names a damaged event."""
    return BadLedgerError(f"{path}: event {event.number} (edit {event.edit}): {what}; restore it from a copy")


@contextmanager
def sound_factors(path: Path, event: Event) -> Iterator[None]:
    """Raises BadLedgerError that names the event, where its factors file does not hold what it must."""
    try:
        yield
    except (SafetensorError, KeyError, ValueError, IndexError, RuntimeError) as error:
        what = f"{event.factors} does not hold the factors of its edit ({first_line(error)})"
        raise damaged(path, event, what) from error
