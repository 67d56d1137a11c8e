"""The loop: propose, look, append, apply, restrain by schedule."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, parse
from tether.constraints.prune import log
from tether.editing.guard import Guard
from tether.editing.health import ALONE, Health, Reading
from tether.editing.plan import Schedule
from tether.editing.prepare import recorded_moments, recorded_settings
from tether.editing.running_headroom import RunningHeadroom
from tether.editing.running_headroom import due as look_due
from tether.editing.said import Said, said_now
from tether.editors import Batch, BatchEditor, Context, EditFailedError, Editor, EditSkippedError, Proposal, Trained
from tether.editors import editor as editor_of
from tether.engine import LOCAL, Engine
from tether.errors import BadFactError, TetherError
from tether.facts.check import repeats
from tether.facts.fact import Fact
from tether.ledger import Attempt, Event, Ledger
from tether.ledger.history import LedgerHistory
from tether.models import EditableModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a run is: facts done of this call's list, the event just written, the last health reading, seconds left,
    and what `verify_every` found after it."""

    done: int
    total: int
    event: Event
    reading: Reading | None
    eta: float
    said: Said | None = None


class Loop:
    """One call of `edit`, with the ledger's lock held. What it adds to an edit does not grow with the edits before it:
    `tried` and `unrestrained` (live edits since the last restraint) are counted, not looked up."""

    def __init__(
        self, model: EditableModel, ledger: Ledger, schedule: Schedule, trained: Trained | None, guard: Guard | None,
        strict: bool, progress: Callable[[Progress], None] | None, engine: Engine = LOCAL,
    ) -> None:  # fmt: skip
        self.model, self.ledger, self.schedule = model, ledger, schedule
        self.guard, self.strict, self.progress = guard, strict, progress
        self.restraint = schedule.restraint or parse("none")
        header = ledger.header
        if header.threads != torch.get_num_threads():
            threads = f"{header.threads} threads, now there are {torch.get_num_threads()}"
            logger.warning("this ledger was made with %s: new factors may differ in their last bits", threads)
        self.editor = editor_of(header.method)
        moments, network = recorded_moments(model, header), trained and trained.network
        self.context = Context(
            recorded_settings(header), header.prefixes, moments, network, LedgerHistory(ledger), engine
        )
        self.sums = ledger.checked_sums(model)
        self.sums.prepare(self.restraint)
        self.room = RunningHeadroom(model, ledger, self.context)
        self.health = Health(model, header.weights, self._factors()) if schedule.health else None
        self.tried = ledger.attempts
        self.unrestrained = ledger.since_restraint

    def go(self, facts: Sequence[Fact], *, skip: int) -> None:
        """Edit the facts after the first `skip`. Afterwards the model carries what the ledger says, also on an error
        or Ctrl-C."""
        started, total = time.monotonic(), len(facts)
        starts = range(skip, total, self.schedule.batch_size)
        self._name_repeats(facts, starts)
        with self._carrying():
            if self.guard is not None:
                self.guard.begin(self.ledger)
            self._restrain_if_due()
            self._guard()
            for start in starts:
                events, reading = self._edit(facts[start : start + starts.step])
                self._restrain_if_due()
                self._guard()
                said = self._verified(events)
                if self.progress:
                    each = (time.monotonic() - started) / (start + len(events) - skip)
                    for done, event in enumerate(events, start=start + 1):
                        last = said if event is events[-1] else None
                        self.progress(Progress(done, total, event, reading, each * (total - done), last))
            if self.restraint.acts and self.unrestrained:
                self._restrain(self.restraint)
            self._guard(at_the_end=True)

    def _name_repeats(self, facts: Sequence[Fact], starts: range) -> None:
        """Facts that one solve cannot tell apart: named before the work starts, an error under `strict`."""
        for start in starts:
            for index, problem in repeats(facts[start : start + starts.step]):
                where = f"fact {start + index + 1}, in one batch: {problem}"
                if self.strict:
                    raise BadFactError(where)
                logger.warning("%s", where)

    @contextmanager
    def _carrying(self) -> Iterator[None]:
        """Inside the block the model carries the ledger's edits. After it too, even after an error or Ctrl-C."""
        try:
            self.sums.show(self.model)
            yield
        except BaseException:  # an event may be on disk whose update the sums do not hold yet
            self.ledger.reload()
            self.sums = self.ledger.sums(model=self.model)
            raise
        finally:
            self.sums.show(self.model)

    # --- one edit -----------------------------------------------------------------------------------------------

    def _edit(self, facts: Sequence[Fact]) -> tuple[list[Event], Reading | None]:
        """Propose, look, append, apply, for one fact or one batch."""
        started = time.monotonic()
        first = self.tried + 1
        batch = propose(self.editor, self.model, facts, self.context)
        proposal = batch.proposal or Proposal({})
        if not all(bool(one.isfinite().all()) for u in proposal.updates.values() for one in (u.A, u.B)):
            batch = Batch(None, [EditFailedError("the update is not finite", proposal.record)] * len(facts))
            proposal = Proposal({})
        updates = {name: update.to("cpu", torch.float32) for name, update in proposal.updates.items()}
        reading, shared = None, dict[str, Any](proposal.record)
        if updates:
            reading = self._look(first, facts, updates)
            if reading is not None and self.room.measured and look_due(first, len(facts)):
                reading = replace(reading, room=self.room.look(proposal.vectors))
            shared["norm"] = max(update.norm() for update in updates.values())
        shared |= {} if reading is None else reading.record()
        shared["seconds"] = (time.monotonic() - started) / len(facts)
        attempts = list(attempts_of(facts, batch, shared))
        refused = reading is not None and reading.level == "alarm" and self.schedule.on_alarm != "warn"
        if reading is not None and refused:
            left_out: dict[str, Any] = {"kind": "failed", "reason": f"health alarm, {'; '.join(reading.reasons)}"}
            attempts = [replace(one, **left_out) if one.kind == "edit" else one for one in attempts]
        for number, attempt in enumerate(attempts, start=first):
            if attempt.reason is not None:
                logger.warning("edit %d %s: %s", number, attempt.kind, attempt.reason)
        failed = next(((n, one.reason) for n, one in enumerate(attempts, start=first) if one.kind == "failed"), None)
        if failed and self.strict and len(facts) > 1:  # nothing is recorded, so that the good ones are tried again
            raise TetherError(f"edit {failed[0]} failed, and --strict stops there with its batch: {failed[1]}")
        events = self.ledger.append(attempts, updates, proposal.vectors)
        self.tried += len(attempts)
        edited = sum(attempt.kind == "edit" for attempt in attempts)
        if edited:
            self.unrestrained += edited
            self.sums.add(updates)
            self.sums.show(self.model)
            if self.health is not None:
                self.health.commit(updates)
        if failed and (self.strict or (refused and self.schedule.on_alarm == "stop")):
            option = "--strict" if self.strict else "--on-alarm stop"
            raise TetherError(f"edit {failed[0]} failed, and {option} stops there: {failed[1]}")
        return events, reading

    def _look(self, first: int, facts: Sequence[Fact], updates: Mapping[str, LowRank]) -> Reading | None:
        """The health of a proposal that is due or disabling; logged where it is bad and the last one was not so."""
        if self.health is None:
            return None
        if not _due(first, len(facts), self.schedule.health) and self.health.alone(updates) <= ALONE:
            return None
        reading = self.health.look(updates, read_text=_due(first, len(facts), self.schedule.health_every))
        if reading.level != "ok" and not reading.before:
            which = f"edit {first}" if len(facts) == 1 else f"edits {first}-{first + len(facts) - 1}"
            said = f"{facts[0].subject} -> {facts[0].target_new}{' …' if len(facts) > 1 else ''}"
            logger.warning("%s (%s): %s", which, said, reading.line())
        return reading

    # --- between edits ------------------------------------------------------------------------------------------

    def _restrain_if_due(self) -> None:
        every = self.schedule.every
        if every is not None and self.restraint.acts and self.unrestrained >= every:
            self._restrain(self.restraint)

    def _guard(self, *, at_the_end: bool = False) -> None:
        """Where it must act it restrains with the run's restraint, or log:1.2 where there is none."""
        if self.guard is not None and self.guard.due(self.ledger, at_the_end=at_the_end):
            fallback = self.restraint if self.restraint.acts else log(1.2)
            self.guard.look(self.ledger, fallback, self._restrain, self.model)

    def _verified(self, events: Sequence[Event]) -> Said | None:
        """What all facts so far say, where it is due; logged where facts were lost."""
        every = self.schedule.verify_every
        if every is None or not _due(self.tried - len(events) + 1, len(events), every):
            return None
        said = said_now(self.model, self.ledger, bystanders=self.schedule.bystanders)
        if said.lost or (said.others is not None and said.others.unchanged < said.others.asked):
            logger.warning("after edit %d: %s", self.tried, said.line())
        return said

    def _restrain(self, restraint: Constraint, reason: str | None = None) -> None:
        self.ledger.append_restraint(restraint, self.sums.restrain_recorded(restraint), reason)
        self.unrestrained = 0
        self.sums.show(self.model)
        if self.health is not None:
            self.health.reset(self._factors())

    def _factors(self) -> dict[str, LowRank]:
        return {name: held.factors for name, held in self.sums.of.items()}


def propose(editor: Editor | BatchEditor, model: EditableModel, facts: Sequence[Fact], context: Context) -> Batch:
    """The batch of a method that edits batches; of one fact, for a method that edits facts. An error that is not of
    these facts is raised: it would be the same for every other."""
    try:
        if isinstance(editor, BatchEditor):
            return editor.propose_batch(model, facts, context)
        (fact,) = facts
        return Batch(editor.propose(model, fact, context), [{}])
    except EditFailedError as error:
        return Batch(None, [error] * len(facts))
    except BadFactError as error:
        return Batch(None, [EditFailedError(str(error))] * len(facts))


def attempts_of(facts: Sequence[Fact], batch: Batch, shared: Mapping[str, Any]) -> Iterator[Attempt]:
    """What became of every fact, from what the editor says of it and what is the same for its batch."""
    counts = iter(batch.columns or ())
    for fact, outcome in zip(facts, batch.outcomes, strict=True):
        if isinstance(outcome, EditFailedError):
            kind: Literal["skipped", "failed"] = "skipped" if isinstance(outcome, EditSkippedError) else "failed"
            yield Attempt(kind, fact, {**outcome.record, "seconds": shared["seconds"]}, str(outcome))
        else:
            yield Attempt("edit", fact, {**outcome, **shared}, columns=0 if batch.whole else next(counts, 1))


def _due(first: int, count: int, every: int) -> bool:
    """Whether a multiple of `every` is among the `count` numbers from `first` on."""
    return (first + count - 1) // every > (first - 1) // every
