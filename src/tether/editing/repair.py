"""Repair: the edits that no longer hold are made anew, with all others held."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.editing.loop import attempts_of, propose
from tether.editing.prepare import recorded_moments, recorded_settings
from tether.editing.said import Lost, Said, said_now
from tether.editors import BatchEditor, Context
from tether.editors import editor as editor_of
from tether.errors import BadSettingsError
from tether.facts.chat import render
from tether.facts.fact import Fact
from tether.ledger import Ledger
from tether.ledger.history import LedgerHistory
from tether.ledger.nearness import Near, Nearness
from tether.models import EditableModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unrepaired:
    """An edit that still is not said, why as far as is known, and the live edits nearest to its prompt."""

    lost: Lost
    why: str
    near: tuple[Near, ...]


@dataclass(frozen=True)
class Repaired:
    """What is said before, after each sweep, and what could not be repaired. `replaced`: numbers of the old edits, by
    the new ones that stand for them."""

    sweeps: tuple[Said, ...]
    replaced: dict[int, int]
    left: tuple[Unrepaired, ...]

    @property
    def said(self) -> Said:
        return self.sweeps[-1]

    def to_dict(self) -> dict[str, Any]:
        return {
            "sweeps": [one.to_dict() for one in self.sweeps],
            "replaced": {str(old): new for old, new in self.replaced.items()},
            "left": [asdict(one) for one in self.left],
        }


def repair(model: EditableModel, ledger: Ledger, *, sweeps: int = 3) -> Repaired:
    """Make the live edits that the model no longer says anew: taken out of the sum, optimised on the model without
    them, and solved for with the keys of all others held (`history`); until all hold, no sweep helps, or `sweeps` are
    done. Each new edit stands for its old one. What a newer edit of the same prompt overrides is left.

    The model afterwards carries the ledger. Raises BadSettingsError for a method whose solve takes no history.
    """
    if sweeps < 1:
        raise BadSettingsError(f"sweeps {sweeps}: give at least 1")
    ledger.check_model(model)
    header, editor = ledger.header, editor_of(ledger.header.method)
    hparams = recorded_settings(header)
    why = f"{header.method} holds no other edits in its solve: repair a ledger of r-rome, memit or emmet"
    if "history" not in type(hparams).model_fields:
        raise BadSettingsError(why)
    hparams = hparams.model_copy(update={"history": True, "bystanders": 0})
    try:
        editor.weights(model, hparams)
    except BadSettingsError:
        raise BadSettingsError(why) from None
    replaced: dict[int, int] = {}
    reasons: dict[int, str] = {}
    with ledger.writing():
        ledger.apply(model)
        found = [said_now(model, ledger)]
        moments = recorded_moments(model, header)
        for sweep in range(1, sweeps + 1):
            live = set(ledger.live_numbers())
            lost = [one for one in found[-1].lost if one.same_prompt is None and one.edit in live]
            if not lost:
                break
            facts = {event.edit: event.fact for event in ledger.live()}
            together = [lost] if isinstance(editor, BatchEditor) else [[one] for one in lost]
            for some in together:
                old = [one.edit for one in some]
                held = _Without(ledger, set(old))
                ledger.replay(model).without(set(old)).sums().show(model)
                context = Context(hparams, header.prefixes, moments, None, held)
                chosen = [fact for fact in map(facts.get, old) if fact is not None]
                started = time.monotonic()
                batch = propose(editor, model, chosen, context)
                shared: dict[str, Any] = dict(batch.proposal.record) if batch.proposal else {}
                shared["seconds"] = (time.monotonic() - started) / len(chosen)
                attempts = [
                    replace(one, record={**one.record, "stands_for": edit})
                    for edit, one in zip(old, attempts_of(chosen, batch, shared), strict=True)
                ]
                done = [edit for edit, one in zip(old, attempts, strict=True) if one.kind == "edit"]
                reasons |= {e: one.reason for e, one in zip(old, attempts, strict=True) if one.reason is not None}
                if batch.proposal is not None and done:
                    updates = {name: update.to("cpu") for name, update in batch.proposal.updates.items()}
                    events = ledger.append(attempts, updates, dict(batch.proposal.vectors), replacing=done)
                    new = [event.edit or 0 for event in events if event.kind == "edit"]
                    replaced |= dict(zip(done, new, strict=True))
                ledger.apply(model)
            found.append(said_now(model, ledger))
            logger.info("sweep %d: %s", sweep, found[-1].line())
            if not len(found[-1].lost) < len(found[-2].lost):
                break
        left = tuple(_unrepaired(model, ledger, found[-1].lost, reasons))
    return Repaired(tuple(found), replaced, left)


def _unrepaired(
    model: EditableModel, ledger: Ledger, lost: Sequence[Lost], reasons: dict[int, str]
) -> list[Unrepaired]:
    nearness = Nearness(ledger, model) if lost else None
    facts = {event.edit: event.fact for event in ledger.events}
    found = []
    for one in lost:
        fact = facts.get(one.edit)
        near = nearness.of(render(model.tokenizer, fact.asked[0]), 4) if nearness and fact else ()
        why = one.reason or reasons.get(one.edit, "") or "the nearest edits are in its way"
        found.append(Unrepaired(one, why, tuple(each for each in near if each.edit != one.edit)[:3]))
    return found


class _Without(LedgerHistory):
    """The history of a ledger's live edits but some."""

    def __init__(self, ledger: Ledger, out: Set[int]) -> None:
        super().__init__(ledger)
        self._out = out
        self._gone = [e.fact for e in ledger.live() if e.edit in out and e.fact is not None]

    @property
    def edits(self) -> tuple[int, ...]:
        return tuple(edit for edit in super().edits if edit not in self._out)

    def of_subject(self, fact: Fact) -> tuple[Fact, ...]:
        return tuple(one for one in super().of_subject(fact) if one not in self._gone)

    def rows(self, weight: str) -> tuple[int, ...]:
        return tuple(edit for edit in super().rows(weight) if edit not in self._out)

    def keys(self, weight: str) -> Tensor:
        return self._kept(weight, super().keys(weight))

    def residuals(self, weight: str) -> Tensor:
        return self._kept(weight, super().residuals(weight))

    def updates(self, weight: str) -> LowRank:
        return self._ledger.replay().without(self._out).sums(exact=False).of[weight].factors

    def _kept(self, weight: str, rows: Tensor) -> Tensor:
        return rows[[place for place, edit in enumerate(super().rows(weight)) if edit not in self._out]]
