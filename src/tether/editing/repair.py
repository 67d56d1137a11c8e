"""Repair: the edits that no longer hold are made anew, with all others held."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tether.constraints.base import parse
from tether.editing.loop import attempts_of, propose
from tether.editing.prepare import recorded_moments, recorded_settings
from tether.editing.said import Lost, Said, said_now
from tether.editors import BatchEditor, Context, EditFailedError, Editor, EditSkippedError
from tether.editors import editor as editor_of
from tether.errors import BadSettingsError
from tether.ledger import Ledger, Sums
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
    the new ones that stand for them. `taken_back`: whether the last sweep helped no more, and its edits were undone;
    `restraint`: the one that acts on the new sum."""

    sweeps: tuple[Said, ...]
    replaced: dict[int, int]
    taken_back: bool
    restraint: str | None
    left: tuple[Unrepaired, ...]

    @property
    def said(self) -> Said:
        return self.sweeps[-2 if self.taken_back else -1]

    def to_dict(self) -> dict[str, Any]:
        return {
            "sweeps": [one.to_dict() for one in self.sweeps],
            "replaced": {str(old): new for old, new in self.replaced.items()},
            "taken_back": self.taken_back,
            "restraint": self.restraint,
            "left": [asdict(one) for one in self.left],
        }


def repair(model: EditableModel, ledger: Ledger, *, sweeps: int = 3) -> Repaired:
    """Make the live edits that the model no longer says anew: taken out of the sum, optimised on the model without
    them, and solved for with the keys of all others held (`history`, so no bystanders); until all hold, no sweep helps,
    or `sweeps` are done. Each new edit stands for its old one. What cannot be solved for stays as it was and is held
    with the others. What a newer edit of the same prompt overrides is left. A sweep after which no more facts are said
    is undone. The restraint that acted last acts on the new sum as well, while any of the new edits counts.

    The model afterwards carries the ledger. Raises BadSettingsError for a method whose solve takes no history.
    """
    if sweeps < 1:
        raise BadSettingsError(f"sweeps {sweeps}: give at least 1")
    ledger.check_model(model)
    hparams = recorded_settings(ledger.header)
    editor = editor_of(ledger.header.method)
    why = f"{ledger.header.method} holds no other edits in its solve: repair a ledger of r-rome, memit or emmet"
    if "history" not in type(hparams).model_fields:
        raise BadSettingsError(why)
    if bystanders := getattr(hparams, "bystanders", 0):
        logger.warning("bystanders %d: a repair holds the other edits, and no bystanders", bystanders)
    hparams = hparams.model_copy(update={"history": True, "bystanders": 0})
    try:
        editor.weights(model, hparams)
    except BadSettingsError:
        raise BadSettingsError(why) from None
    with ledger.writing():
        try:
            return _Repair(model, ledger, editor, hparams).go(sweeps)
        finally:
            ledger.apply(model)


class _Repair:
    """One repair, with the ledger's lock held. Of a method that edits fact by fact every factors file is read once."""

    def __init__(self, model: EditableModel, ledger: Ledger, editor: Editor | BatchEditor, hparams: Any) -> None:
        self.model, self.ledger, self.editor = model, ledger, editor
        self.read = ledger.tensors if isinstance(editor, BatchEditor) else ledger.reader()
        self.history = LedgerHistory(ledger, self.read)
        moments = recorded_moments(model, ledger.header)
        self.context = Context(hparams, ledger.header.prefixes, moments, None, self.history)
        last = ledger.last_restraint()
        self.restraint = None if last is None else parse(last)
        self.reasons: dict[int, str] = {}

    def go(self, sweeps: int) -> Repaired:
        ledger, first = self.ledger, self.ledger.attempts + 1
        replaced: dict[int, int] = {}
        taken_back = False
        ledger.apply(self.model)
        found = [said_now(self.model, ledger)]
        while len(found) <= sweeps and not taken_back:
            live = set(ledger.live_numbers())
            lost = [one.edit for one in found[-1].lost if one.same_prompt is None and one.edit in live]
            new = self._sweep(lost)
            if not new:
                break
            self._sums().show(self.model)
            found.append(said_now(self.model, ledger))
            logger.info("sweep %d: %s", len(found) - 1, found[-1].line())
            taken_back = len(found[-1].lost) >= len(found[-2].lost)
            if taken_back:
                ledger.append_undo(sorted(new.values()), "no more facts were said after this sweep")
            else:
                replaced |= new
        if self.restraint is not None and replaced:
            record = ledger.sums(model=self.model).restrain_recorded(self.restraint)
            ledger.append_restraint(
                self.restraint, record, "acts on the repaired sum", only_with=(first, ledger.attempts)
            )
        ledger.apply(self.model)
        left = _unrepaired(self.model, ledger, found[-2 if taken_back else -1].lost, self.reasons)
        restraint = None if self.restraint is None or not replaced else str(self.restraint)
        return Repaired(tuple(found), replaced, taken_back, restraint, tuple(left))

    def _sums(self) -> Sums:
        """What the ledger says, its restraint acting on the new edits."""
        sums = self.ledger.sums(model=self.model)
        if self.restraint is not None:
            sums.restrain(self.restraint)
        return sums

    def _sweep(self, lost: Sequence[int]) -> dict[int, int]:
        """Make these edits anew, all at once where the method can; the new ones by the old."""
        self.history.last = frozenset(lost)  # the keys of the others stay one block of the metric
        if isinstance(self.editor, BatchEditor):
            return self._anew(lost)
        return {old: new for edit in lost for old, new in self._anew([edit]).items()}

    def _anew(self, edits: Sequence[int]) -> dict[int, int]:
        """Those of the edits that can be: they are solved for once more without the others, which are held then."""
        facts = {event.edit: event.fact for event in self.ledger.live()}
        while edits:
            self.history.without = frozenset(edits)
            replay = self.ledger.replay(self.model, read=self.read)
            replay.without(self.history.without).sums().show(self.model)
            chosen = [fact for fact in map(facts.get, edits) if fact is not None]
            started = time.monotonic()
            batch = propose(self.editor, self.model, chosen, self.context)
            outcomes = list(zip(edits, batch.outcomes, strict=True))
            for edit, outcome in outcomes:
                if isinstance(outcome, EditSkippedError):
                    self.reasons[edit] = f"{outcome}, without edit {edit}: undo it"
                elif isinstance(outcome, EditFailedError):
                    self.reasons[edit] = str(outcome)
            good = [edit for edit, outcome in outcomes if not isinstance(outcome, EditFailedError)]
            if batch.proposal is not None and len(good) == len(edits):
                shared: dict[str, Any] = dict(batch.proposal.record)
                shared["seconds"] = (time.monotonic() - started) / len(chosen)
                attempts = [
                    replace(one, record={**one.record, "stands_for": edit})
                    for edit, one in zip(edits, attempts_of(chosen, batch, shared), strict=True)
                ]
                updates = {name: update.to("cpu") for name, update in batch.proposal.updates.items()}
                events = self.ledger.append(attempts, updates, dict(batch.proposal.vectors), replacing=edits)
                return dict(zip(edits, (event.edit or 0 for event in events), strict=True))
            edits = good if len(good) < len(edits) else []
        return {}


def _unrepaired(
    model: EditableModel, ledger: Ledger, lost: Sequence[Lost], reasons: dict[int, str]
) -> list[Unrepaired]:
    nearness = Nearness(ledger, model) if lost else None
    facts = {event.edit: event.fact for event in ledger.events}
    found = []
    for one in lost:
        fact = facts.get(one.edit)
        near = nearness.of(fact.asked[0], 4) if nearness and fact else ()
        why = one.reason or reasons.get(one.edit, "") or "the nearest edits are in its way"
        found.append(Unrepaired(one, why, tuple(each for each in near if each.edit != one.edit)[:3]))
    return found
