"""What an editor may look at of the ledger's live edits: their keys, targets, residuals and updates, by weight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
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
    residuals: Tensor
    update: LowRank


class LedgerHistory:
    """The `History` of a ledger, as it is whenever something is asked.

    A factors file is read when it is first needed, and once: its tensors are kept. What follows from them is kept until
    an undo changes which edits of the file are live.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._read = ledger, ledger.reader()
        self._parts: dict[tuple[str, str], tuple[tuple[int, ...], _Part]] = {}
        self._subjects: dict[str, list[Event]] = {}
        self._indexed: list[Event] = []  # the events that `_subjects` holds

    @property
    def edits(self) -> tuple[int, ...]:
        return tuple(self._ledger.live_numbers())

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
        undone = self._ledger.undone
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
        zero = LowRank.zeros(*self._ledger.header.weights[weight].shape)
        return LowRank.sum([zero, *(part.update for part in self._all(weight))])

    def _stacked(self, weight: str, side: int, rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.zeros(0, self._ledger.header.weights[weight].shape[side]), *rows])

    def _all(self, weight: str) -> list[_Part]:
        """A part for every file with live edits that changed the weight, oldest first."""
        parts = []
        for file, events in by_file(self._ledger.live()).items():
            live = tuple(event.edit or 0 for event in events)
            kept = self._parts.get((file, weight))
            if kept is None or kept[0] != live:
                tensors = self._read(events[0])
                if f"{weight}/A" not in tensors:
                    continue
                kept = self._parts[file, weight] = live, _part(weight, tensors, events)
            parts.append(kept[1])
        return parts


def _part(weight: str, tensors: Mapping[str, Tensor], events: Sequence[Event]) -> _Part:
    """Of the live edits of one file. Where a batch lost some to an undo, the update is the solve without them."""
    update = solved(tensors, weight, events)
    keys = torch.atleast_2d(tensors.get(f"{weight}/K", torch.zeros(0, update.shape[1])))
    values = torch.atleast_2d(tensors.get(f"{weight}/V", torch.zeros(0, update.shape[0])))
    if events[0].column is None:
        rows = (events[-1].edit or 0,) * len(keys)
    else:
        keys, values = (torch.cat([one[event.part] for event in events]) for one in (keys, values))
        rows = tuple(event.edit or 0 for event in events for _ in range(event.columns or 1))
    return _Part(rows if len(keys) else (), keys, values, keys @ update.B.mT @ update.A.mT, update)
