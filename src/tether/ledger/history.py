"""What an editor may look at of the ledger's live edits: their keys, targets, residuals and updates, by weight."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.constraints.base import parse
from tether.facts.fact import Fact
from tether.ledger.journal import Event
from tether.ledger.ledger import Ledger
from tether.ledger.replay import by_file, solved


@dataclass(frozen=True)
class _Part:
    """What the live edits of one solve give for one weight; `rows` has the edit of every key."""

    rows: tuple[int, ...]
    keys: Tensor
    values: Tensor
    update: LowRank

    @property
    def residuals(self) -> Tensor:
        return self.keys @ self.update.B.mT @ self.update.A.mT


class LedgerHistory:
    """The `History` of a ledger, as it is whenever something is asked.

    A factors file is read when it is first needed, and again where an undo changed which of its edits are live. What is
    kept in memory are keys, targets and updates, float32: for every edit and weight 2q + p numbers (p more where there
    are targets), so 15 kB at 1536 and 576, and 0.7 GB for 10,000 edits of five such weights.

    The live edits of `without` are left out, and may be changed; those of `last` stand at the end. `read` gives the
    tensors of an edit's factors file (None: from the disk).
    """

    def __init__(self, ledger: Ledger, read: Callable[[Event], Mapping[str, Tensor]] | None = None) -> None:
        self._ledger, self._read = ledger, read or ledger.tensors
        self.without: Set[int] = frozenset()
        self.last: Set[int] = frozenset()
        self._parts: dict[str, tuple[tuple[int, ...], dict[str, _Part]]] = {}
        self._subjects: dict[str, list[Event]] = {}
        self._indexed: list[Event] = []  # the events that `_subjects` holds

    @property
    def edits(self) -> tuple[int, ...]:
        return tuple(edit for edit in self._ledger.live_numbers() if edit not in self.without)

    def of_subject(self, fact: Fact) -> tuple[Fact, ...]:
        events = self._ledger.events
        if self._indexed and self._indexed[-1] is not events[len(self._indexed) - 1]:  # read again from the disk
            self._subjects, self._indexed = {}, []
        for event in events[len(self._indexed) :]:
            self._indexed.append(event)
            if event.kind == "edit" and event.fact is not None:
                self._subjects.setdefault(event.fact.subject_key, []).append(event)
        edited = self._subjects.get(fact.subject_key)
        if edited is None:
            return ()
        undone = self._ledger.undone | self.without
        return tuple(event.fact for event in edited if event.fact is not None and event.edit not in undone)

    def rows(self, weight: str) -> tuple[int, ...]:
        return tuple(edit for part in self._all(weight) for edit in part.rows)

    def keys(self, weight: str) -> Tensor:
        return self._stacked(weight, 1, [part.keys for part in self._all(weight)])

    def values(self, weight: str) -> Tensor:
        return self._stacked(weight, 0, [part.values for part in self._all(weight)])

    def residuals(self, weight: str) -> Tensor:
        return self._stacked(weight, 0, [part.residuals for part in self._all(weight)])

    def updates(self, weight: str) -> LowRank:
        replay = self._ledger.replay(read=self._read).without(self.without)
        if replay.anew:  # the sum is not that of the updates as they were made
            return replay.sums(restraint=parse("none"), exact=False).of[weight].factors
        zero = LowRank.zeros(*self._ledger.header.weights[weight].shape)
        return LowRank.sum([zero, *(part.update for part in self._all(weight))])

    def _stacked(self, weight: str, side: int, rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.zeros(0, self._ledger.header.weights[weight].shape[side]), *rows])

    def _all(self, weight: str) -> list[_Part]:
        """A part for every file with live edits that changed the weight, oldest first."""
        parts = []
        counting = [event for event in self._ledger.live() if event.edit not in self.without]
        for file, events in by_file(sorted(counting, key=lambda event: event.edit in self.last)).items():
            live = tuple(event.edit or 0 for event in events)
            kept = self._parts.get(file)
            if kept is None or kept[0] != live:
                tensors, names = self._read(events[0]), self._ledger.header.weights
                found = {name: _part(name, tensors, events) for name in names if f"{name}/A" in tensors}
                kept = self._parts[file] = live, found
            if weight in kept[1]:
                parts.append(kept[1][weight])
        return parts


def _part(weight: str, tensors: Mapping[str, Tensor], events: Sequence[Event]) -> _Part:
    """Of the live edits of one file. Where a batch lost some to an undo, the update is the solve without them."""
    update = solved(tensors, weight, events)
    keys, values = (
        torch.atleast_2d(tensors.get(f"{weight}/{kind}", torch.zeros(0, size)))
        for kind, size in (("K", update.shape[1]), ("V", update.shape[0]))
    )
    if events[0].column is None:
        rows = (events[-1].edit or 0,) * len(keys)
    else:
        keys, values = (torch.cat([one[event.part] for event in events]) for one in (keys, values))
        rows = tuple(event.edit or 0 for event in events for _ in range(event.columns or 1))
    return _Part(rows if len(keys) else (), keys, values, update)
