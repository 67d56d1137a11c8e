"""The headroom of a run, for its health line: how much of a weight the edits so far use, read as seldom as it costs.

With the keys K (n×q) of the live edits and M = K C⁻¹ Kᵀ: a solve of all of them uses tr M (λI + M)⁻¹ =
Σ_i (1 − λ [(λI + M)⁻¹]_ii) of the q degrees of freedom, and leaves the share λ [(λI + M)⁻¹]_ii of target i unwritten.
λ is that of the method's solve. `tether headroom` says the same with more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tether.algebra.joint_solve import ridge_of
from tether.editors import editor as editor_of
from tether.editors.base import Context
from tether.editors.memit import equality_ridge
from tether.editors.metric import of_model
from tether.ledger import Ledger
from tether.models import EditableModel

_STEP = 10  # edits between looks at least; later a quarter of the edits so far, since a look costs their third power


@dataclass(frozen=True)
class Used:
    """Of the weight with the least room: its keys, percent of its `size` degrees of freedom that a solve of all of them
    uses, and the mean percent of a target that it leaves unwritten."""

    weight: str
    keys: int
    size: int
    used: float
    left: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Keys:
    """Of one weight: K, C⁻¹K as rows and M, float64."""

    K: Tensor
    X: Tensor
    M: Tensor

    def added(self, K: Tensor, context: Context, layer: int) -> _Keys:
        X = of_model(context, layer).solve(K)
        side, corner = self.K @ X.mT, K @ X.mT
        M = torch.cat([torch.cat([self.M, side], 1), torch.cat([side.mT, (corner + corner.mT) / 2], 1)])
        return _Keys(torch.cat([self.K, K]), torch.cat([self.X, X]), M)


@dataclass
class RunningHeadroom:
    """Looks at a ledger while it grows. The keys of an edit are read, and solved with C, once."""

    model: EditableModel
    ledger: Ledger
    context: Context
    _edits: list[int] = field(default_factory=list)  # whose keys are in `_held`
    _held: dict[str, _Keys] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether the method keeps the keys that this is measured on."""
        return bool(self.context.moments) and getattr(self.context.hparams, "mom2_update_weight", None) is not None

    def look(self, vectors: Mapping[str, Tensor]) -> Used | None:
        """With the live edits and a proposal, whose editor keeps `vectors` of it; None where no keys are kept, or where
        they are too many and too alike for the formula."""
        live = [(event.edit or 0, event) for event in self.ledger.live() if event.fact is not None]
        numbers = [edit for edit, _ in live]
        if numbers[: len(self._edits)] != self._edits:  # some were undone
            self._edits, self._held = [], {}
        new: dict[str, list[Tensor]] = {}
        for edit, event in live[len(self._edits) :]:
            self._edits.append(edit)
            for name, keys in self.ledger.vectors(event, "K").items():
                new.setdefault(name, []).append(keys)
        found = []
        weight = float(self.context.hparams.mom2_update_weight)
        share = equality_ridge(editor_of(self.ledger.header.method), self.context.hparams)
        for layer in self.context.moments:
            name = self.model.weight_name(layer)
            if name in new:
                self._held[name] = self._with(name, layer, torch.cat(new[name]))
            proposed = vectors.get(f"{name}/K")
            if proposed is not None:
                found.append(_used(name, self._with(name, layer, torch.atleast_2d(proposed)), weight, share))
        return max((one for one in found if one is not None), key=lambda one: one.used, default=None)

    def _with(self, name: str, layer: int, keys: Tensor) -> _Keys:
        q = keys.shape[1]
        empty = torch.zeros(0, q, dtype=torch.float64)
        held = self._held.get(name) or _Keys(empty, empty, torch.zeros(0, 0, dtype=torch.float64))
        return held.added(keys.cpu().double(), self.context, layer)


def _used(name: str, keys: _Keys, weight: float, share: float | None) -> Used | None:
    n, q = keys.K.shape
    ridge = ridge_of(keys.M, weight=weight, equality_ridge=share)
    factor, info = torch.linalg.cholesky_ex(keys.M + ridge * torch.eye(n, dtype=torch.float64))
    if int(info):
        return None
    left = ridge * torch.cholesky_inverse(factor).diagonal()
    return Used(name, n, q, 100 * float((1 - left).sum()) / q, 100 * float(left.mean()))


def due(first: int, count: int) -> bool:
    """Whether a look is due at one of the `count` edits numbered from `first` on: at 10, 20, …, and later after a
    quarter more; by the numbers alone, so that a resumed run looks where one never stopped does."""
    at = _STEP
    while at < first:
        at += max(_STEP, at // 4 // _STEP * _STEP)
    return at < first + count
