"""The perturbation bound of `theory` along a ledger: how far its edits move the keys of the weights they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.algebra.perturbation_bound import Of, Span, Step, walk
from tether.constraints.base import Constraint, label_of, parse
from tether.errors import TetherError
from tether.ledger import Ledger
from tether.models import EditableModel

_POINTS = 8  # numbers of edits looked at where none are named


@dataclass(frozen=True)
class Errors:
    """The actual relative errors ‖x̃ − x‖/‖x‖ of some keys."""

    keys: int
    median: float
    max: float

    @classmethod
    def of(cls, error: Tensor) -> Errors:
        return cls(len(error), float(error.median()), float(error.max()))


@dataclass(frozen=True)
class BoundRow:
    """The bound for one weight after some edits under some restraint, the largest over the keys. `of` is "sum" for what
    all edits did to W₀, "edit" for what the last one did to the weight it found."""

    edits: int
    restraint: str
    weight: str
    of: Of
    norm: float  # ‖A‖
    update_norm: float  # ‖E‖
    kappa: float
    kappa_hat: float
    gamma: float
    terms: dict[str, float]  # of the bound: e11, e12, and e21 (of the key for which it is largest)
    bound: float
    bound_from_kappa: float | None  # with κ/γ in place of κ̂; None where γ ≤ 0 and theorem 3.2 says nothing
    errors: Errors  # of all keys
    edited: Errors | None  # of keys of facts edited by then; None where there are none
    others: Errors | None  # of keys of facts edited later, likewise
    holds: bool  # no error above its bound


def bound_rows(
    ledger: Ledger,
    model: EditableModel | None = None,
    *,
    at: Sequence[int] | None = None,
    restrain: str | Constraint | None = None,
    keys: int | None = None,
    weights: Sequence[str] | None = None,
) -> list[BoundRow]:
    """Rows for every edited weight (or those of `weights`), both ways (`of`), after each number of edits in `at`
    (default: eight numbers up to all). `restrain` as for `Ledger.sums`: None replays the journal with its restraints.

    The keys are those of the ledger's live edits, at most `keys` of them, spread evenly. The model gives W₀ and is not
    changed. Raises TetherError where a perturbation is not acute, and for a ledger without keys.
    """
    live = [event.edit for event in ledger.live() if event.edit is not None]
    if not live:
        raise TetherError(f"{ledger.path} has no live edit, so no keys to look at: edit first")
    if at is None:
        at = sorted({live[-1 - (len(live) * i) // _POINTS] for i in range(_POINTS)})
    label = label_of(restrain)
    model = model if model is not None else ledger.model_or_load(None)
    names = list(ledger.header.weights if weights is None else weights)
    lasts = {n: max((edit for edit in live if edit <= n), default=None) for n in at}
    needed = {*at, *(n for last in lasts.values() if last is not None for n in (last - 1, last))}
    restraint = None if restrain is None else parse(restrain)
    sums = {
        state.edits: {name: state.sums.of[name].factors for name in names}
        for state in ledger.replay(model).without().states(sorted(needed), [restraint], exact=False)
    }
    rows = []
    for name in names:
        numbers, chosen = _keys(ledger, name, keys)
        nothing = LowRank.zeros(*ledger.header.weights[name].shape)
        ways: dict[Of, list[Span]] = {
            "sum": [Span(n, nothing, sums[n][name]) for n in at],
            "edit": [Span(last, sums[last - 1][name], sums[last][name]) for last in lasts.values() if last is not None],
        }
        for of, spans in ways.items():
            steps = walk(model.original(name), spans, chosen.to(model.device))
            rows += [_row(step, label, name, of, numbers) for step in steps]
    return rows


def _keys(ledger: Ledger, name: str, limit: int | None) -> tuple[list[int], Tensor]:
    """Edit numbers and keys (n×q), one a row, of the live edits that change this weight."""
    events = ledger.live()
    if limit is not None and limit < len(events):
        events = [events[(i * len(events)) // limit] for i in range(limit)]
    read = {event.edit: ledger.vectors(event, "K").get(name) for event in events}
    found = {edit: keys for edit, keys in read.items() if edit is not None and keys is not None}
    if not found:
        raise TetherError(
            f"{ledger.path} keeps no keys of {name}: the bound is of the keys of edits; make the ledger with an editor "
            "that keeps them, such as rome"
        )
    return [edit for edit, keys in found.items() for _ in keys], torch.cat(list(found.values()))


def _row(step: Step, label: str, name: str, of: Of, numbers: Sequence[int]) -> BoundRow:
    found, constants = step.bound, step.bound.constants
    e11, e12, e21 = found.terms
    done = torch.tensor(numbers) <= step.edits
    error, total = found.error.cpu(), found.total.cpu()
    edited, others = (Errors.of(some) if len(some) else None for some in (error[done], error[~done]))
    return BoundRow(
        step.edits, label, name, of, constants.norm, step.update_norm, constants.kappa, constants.kappa_hat,
        constants.gamma, {"e11": e11, "e12": e12, "e21": float(e21.max())}, float(total.max()),
        None if found.from_kappa is None else float(found.from_kappa.max()),
        Errors.of(error), edited, others, bool((error <= total + 1e-9).all()),
    )  # fmt: skip
