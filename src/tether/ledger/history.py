"""What an editor may look at of the ledger's live edits: their keys, targets, residuals and updates, by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tether.algebra.joint_solve import Solution
from tether.algebra.lowrank import LowRank
from tether.ledger.journal import Event
from tether.ledger.ledger import Ledger


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
        self._ledger = ledger
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._parts: dict[tuple[str, str], tuple[tuple[int, ...], _Part]] = {}

    @property
    def edits(self) -> tuple[int, ...]:
        return tuple(event.edit for event in self._ledger.live() if event.edit is not None)

    def rows(self, weight: str) -> tuple[int, ...]:
        return tuple(edit for part in self._all(weight) for edit in part.rows)

    def keys(self, weight: str) -> Tensor:
        return torch.cat([torch.zeros(0, self._shape(weight)[1]), *(part.keys for part in self._all(weight))])

    def values(self, weight: str) -> Tensor:
        return torch.cat([torch.zeros(0, self._shape(weight)[0]), *(part.values for part in self._all(weight))])

    def residuals(self, weight: str) -> Tensor:
        return torch.cat([torch.zeros(0, self._shape(weight)[0]), *(part.residuals for part in self._all(weight))])

    def updates(self, weight: str) -> LowRank:
        zero = LowRank.zeros(*self._shape(weight))
        return LowRank.sum([zero, *(part.update for part in self._all(weight))])

    def _shape(self, weight: str) -> tuple[int, int]:
        return self._ledger.header.weights[weight].shape

    def _all(self, weight: str) -> list[_Part]:
        """A part for every file with live edits that changed the weight, oldest first."""
        files: dict[str, list[Event]] = {}
        for event in self._ledger.live():
            files.setdefault(event.factors or "", []).append(event)
        parts = []
        for file, events in files.items():
            live = tuple(event.edit or 0 for event in events)
            kept = self._parts.get((file, weight))
            if kept is None or kept[0] != live:
                tensors = self._read(file, events[0])
                if f"{weight}/A" not in tensors:
                    continue
                kept = live, _part(weight, tensors, events)
                self._parts[file, weight] = kept
            parts.append(kept[1])
        return parts

    def _read(self, file: str, event: Event) -> dict[str, Tensor]:
        if file not in self._tensors:
            self._tensors[file] = self._ledger.tensors(event)
        return self._tensors[file]


def _part(weight: str, tensors: dict[str, Tensor], events: Sequence[Event]) -> _Part:
    """Of the live edits of one file. Where a batch lost some to an undo, the update is the solve without them."""
    A, B = tensors[f"{weight}/A"], tensors[f"{weight}/B"]
    none = torch.zeros(0, B.shape[1]), torch.zeros(0, A.shape[0])
    keys = torch.atleast_2d(tensors.get(f"{weight}/K", none[0]))
    values = torch.atleast_2d(tensors.get(f"{weight}/V", none[1]))
    if events[0].column is None:
        rows = (events[0].edit or 0,) * len(keys)
        update = LowRank(A, B)
    else:
        columns = [event.column for event in events if event.column is not None]
        if removed := sorted(set(range(A.shape[1])) - set(columns)):
            solution = Solution(B.double(), tensors[f"{weight}/H"].double()).without(removed)
            A, B = A[:, columns], solution.G.float()
        update = LowRank(A, B)
        rows = tuple(event.edit or 0 for event in events) if len(keys) else ()
        keys, values = keys[columns] if len(keys) else keys, values[columns] if len(values) else values
    return _Part(rows, keys, values, keys @ update.B.mT @ update.A.mT, update)
