"""The loop: propose, watch, append, apply, restrain by schedule.

model = tether.load("smollm2")
ledger = tether.edit(model, tether.read_facts("facts.jsonl"), out="my-edits", restrain="log:1.2")
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, parse
from tether.constraints.prune import log
from tether.editing.guard import Guard
from tether.editing.health import Health, Reading
from tether.editing.plan import EditPlan, OnAlarm, Schedule, plan_and_schedule
from tether.editing.prepare import new_header, recorded_editor, recorded_moments, trained_editor
from tether.editors import Batch, BatchEditor, Context, EditFailedError, EditSkippedError
from tether.editors import editor as editor_of
from tether.editors.mend.file import Trained
from tether.editors.settings import HPARAMS
from tether.errors import TetherError
from tether.facts.check import repeats
from tether.facts.fact import Fact
from tether.ledger import ATTEMPTS, Attempt, Event, Header, Ledger, Sums
from tether.models import EditableModel

logger = logging.getLogger(__name__)

_LEFT_BY_A_KILL = ("factors", "ledger.lock", "ledger.json.tmp")  # while a ledger was being made


@dataclass(frozen=True)
class Progress:
    """Where a run is: facts done of this call's list, the event just written, the last health reading, seconds left."""

    done: int
    total: int
    event: Event
    reading: Reading | None
    eta: float


class EditOptions(TypedDict, total=False):
    """The fields of EditPlan and Schedule as keywords of `edit`; `restrain` is the schedule's restraint."""

    method: str | None
    settings: str | Path | dict[str, Any] | None
    layers: Sequence[int] | None
    corpus: str | Path | None
    seed: int | None
    editor: str | Path | None
    restrain: str | Constraint | None
    every: int | None
    batch_size: int
    guard: str | None
    guard_every: int
    guard_data: str | Path | None
    health: int
    health_every: int
    on_alarm: OnAlarm


def edit(
    model: EditableModel,
    facts: Sequence[Fact],
    *,
    out: str | Path,
    plan: EditPlan | None = None,
    schedule: Schedule | None = None,
    resume: bool = False,
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[EditOptions],
) -> Ledger:
    """Edit facts into a model one after another and return the ledger; the model then carries its edits.

    `out` is a new ledger, or an existing one to append to, after verifying it. `plan` says what the ledger depends on
    and `schedule` when what is done; their fields can be given as keywords instead. `resume` goes on with an
    interrupted list of facts. A fact that fails is recorded and leaves the model as it was; `strict` raises instead.
    An appended run keeps the ledger's dtype, method, settings and, unless given, restraint. On any error or Ctrl-C the
    model carries what the ledger says, and the ledger can be resumed. Raises GuardStopError where a guard had to stop.
    """
    plan, schedule = plan_and_schedule(plan, schedule, options)
    method, seed, layers, editor = plan.method, plan.seed, plan.layers, plan.editor
    corpus, settings = plan.corpus, plan.settings
    restrain, every, batch_size = schedule.restraint, schedule.every, schedule.batch_size
    health_every, guard, guard_every, guard_data = (
        schedule.health_every, schedule.guard, schedule.guard_every, schedule.guard_data
    )  # fmt: skip
    out = Path(out)
    if not facts:
        raise TetherError("no facts to edit: the list is empty")
    watch = None if guard is None else Guard(model, guard, every=guard_every, data=guard_data)
    exists = (out / "ledger.json").exists()
    if exists:
        ledger = Ledger.open(out, model)
    else:
        if out.is_file() or any(parent.is_file() for parent in out.parents):
            raise TetherError(f"{out}: there is a file where a folder must be; choose another place for the ledger")
        if out.exists() and any(p.name not in _LEFT_BY_A_KILL for p in out.iterdir()):
            raise TetherError(f"{out} holds something that is no ledger: choose an empty or new folder")
        _check_batch(method or "rome", batch_size)
        _check_every(every, parse(restrain or "none"))
        trained = trained_editor(model, method or "rome", editor, layers)
        ledger = Ledger.create(
            out,
            new_header(
                model, method or "rome", parse(restrain or "none"), every, seed or 0, corpus, settings, layers, trained
            ),
        )
    with ledger.writing():
        if exists:
            ledger.verify()
            _check_batch(ledger.header.method, batch_size)
            _check_same(ledger.header, model, method, seed, settings, layers)
            trained = recorded_editor(model, ledger.header, editor)
            _check_every(every, parse(ledger.header.restrain if restrain is None else restrain))
        if restrain is None:
            restrain, every = parse(ledger.header.restrain), every if every is not None else ledger.header.every
        run = _Run(model, ledger, trained, parse(restrain), every, batch_size, strict, health_every, watch, progress)
        run.go(facts, skip=_already_done(ledger, facts) if resume else 0)
    return ledger


def _check_batch(method: str, size: int) -> None:
    if size < 1:
        raise TetherError(f"batch size {size}: a batch holds at least 1 fact")
    if size > 1 and not isinstance(editor_of(method), BatchEditor):
        raise TetherError(f"batch size {size}: {method} edits one fact at a time; use 1")


def _check_every(every: int | None, restraint: Constraint) -> None:
    if every is not None and not restraint.acts:
        raise TetherError(f"every {every}: there is no restraint to act; name one, as in log:1.2, or leave it away")


def _check_same(
    header: Header, model: EditableModel, method: str | None, seed: int | None,
    settings: Path | dict[str, Any] | None, layers: Sequence[int] | None,
) -> None:  # fmt: skip
    """An appended run has the ledger's own dtype, method, seed and settings."""
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype != header.dtype:
        raise TetherError(
            f"dtype {dtype}: this ledger was made with {header.dtype}; load the model in that or make a new ledger"
        )
    given = {"method": method, "seed": seed, "layers": None if layers is None else tuple(layers)}
    kept = {"method": header.method, "seed": header.seed, "layers": tuple(header.settings["layers"])}
    for what, value in given.items():
        if value is not None and value != kept[what]:
            raise TetherError(
                f"{what} {value}: this ledger was made with {kept[what]}; leave it away or make a new ledger"
            )
    if settings is not None:
        raise TetherError(
            f"settings {settings}: an existing ledger keeps its own; leave them away or make a new ledger"
        )


def _already_done(ledger: Ledger, facts: Sequence[Fact]) -> int:
    """How many facts of the list, from its start, are the last ones the ledger tried and no guard took back."""
    back = {edit for e in ledger.events if e.kind == "guard" and e.undone for edit in e.undone}
    tried = [e.fact.sha256 for e in ledger.events if e.kind in ATTEMPTS and e.fact is not None and e.edit not in back]
    wanted = [fact.sha256 for fact in facts]
    return next((n for n in range(min(len(tried), len(wanted)), 0, -1) if tried[-n:] == wanted[:n]), 0)


class _Run:
    """One call of `edit`, with the ledger's lock held."""

    def __init__(
        self, model: EditableModel, ledger: Ledger, trained: Trained | None, restraint: Constraint, every: int | None,
        batch_size: int, strict: bool, health_every: int, guard: Guard | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:  # fmt: skip
        self.model, self.ledger, self.restraint, self.every = model, ledger, restraint, every
        self.batch_size, self.strict, self.health_every, self.progress = batch_size, strict, health_every, progress
        header = ledger.header
        if header.threads != torch.get_num_threads():
            logger.warning(
                "this ledger was made with %d threads, now there are %d: new factors may differ in their last bits",
                header.threads, torch.get_num_threads(),
            )  # fmt: skip
        hparams = HPARAMS[header.method].model_validate(header.settings)
        self.editor = editor_of(header.method)
        network = None if trained is None else trained.network
        self.context = Context(hparams, header.prefixes, recorded_moments(model, header), network)
        self.sums: Sums = ledger.sums()
        self.health = Health(model, header.weights, self._factors())
        self.level = "ok"
        self.guard = guard

    def go(self, facts: Sequence[Fact], *, skip: int) -> None:
        started = time.monotonic()
        batches = [facts[i : i + self.batch_size] for i in range(skip, len(facts), self.batch_size)]
        self._name_repeats(batches, skip)
        done = skip
        with self._carrying():
            if self.guard is not None:
                self.guard.begin(self.ledger)
            self._restrain_if_due()
            self._look()
            for batch in batches:
                events, reading = self._edit(batch)
                self._restrain_if_due()
                self._look()
                done += len(batch)
                if self.progress:
                    each = (time.monotonic() - started) / (done - skip)
                    for at, event in enumerate(events, start=done - len(events) + 1):
                        self.progress(Progress(at, len(facts), event, reading, each * (len(facts) - at)))
            if self._since_restraint():
                self._restrain()
            self._look(at_the_end=True)

    def _name_repeats(self, batches: Sequence[Sequence[Fact]], skip: int) -> None:
        """Facts that one solve cannot tell apart: named before the work starts, an error under `strict`."""
        number = skip
        for batch in batches:
            for index, problem in repeats(batch):
                where = f"fact {number + index + 1}, in one batch: {problem}"
                if self.strict:
                    raise TetherError(where)
                logger.warning("%s", where)
            number += len(batch)

    @contextmanager
    def _carrying(self) -> Iterator[None]:
        """The model carries the sums inside and, whatever happens, after: those of the ledger on disk, also where an
        interruption came between an event and its sum."""
        try:
            self.sums.show(self.model)
            yield
        except BaseException:
            self.ledger.reload()
            self.sums = self.ledger.sums()
            raise
        finally:
            self.sums.show(self.model)

    def _edit(self, facts: Sequence[Fact]) -> tuple[list[Event], Reading | None]:
        """Propose, watch, append, apply, for one fact or one batch."""
        started = time.monotonic()
        first = self.ledger.attempts + 1
        batch = self._propose(facts)
        reading = None
        updates: dict[str, LowRank] = {}
        shared: dict[str, Any] = {}
        if batch.proposal is not None:
            updates = {name: update.to("cpu", torch.float32) for name, update in batch.proposal.updates.items()}
            due = any(number % self.health_every == 0 for number in range(first, first + len(facts)))
            reading = self.health.look(updates, read_text=due)
            self._warn(first, facts, reading)
            shared = {
                **batch.proposal.record, "norm": max(u.norm() for u in updates.values()), **reading.record()
            }  # fmt: skip
        shared["seconds"] = (time.monotonic() - started) / len(facts)
        attempts = [
            Attempt("edit", fact, {**outcome, **shared}) if not isinstance(outcome, TetherError)
            else Attempt(
                "skipped" if isinstance(outcome, EditSkippedError) else "failed", fact,
                {**outcome.record, "seconds": shared["seconds"]}, str(outcome),
            )
            for fact, outcome in zip(facts, batch.outcomes, strict=True)
        ]  # fmt: skip
        for number, attempt in enumerate(attempts, start=first):
            if attempt.reason is not None:
                logger.warning("edit %d %s: %s", number, attempt.kind, attempt.reason)
        failed = [number for number, attempt in enumerate(attempts, start=first) if attempt.kind == "failed"]
        if failed and self.strict:
            stopped = f"its batch was stopped by --strict at edit {failed[0]}"
            attempts = [
                replace(attempt, kind="failed", reason=stopped) if attempt.kind == "edit" else attempt
                for attempt in attempts
            ]
            updates = {}
        vectors = {} if batch.proposal is None else batch.proposal.vectors
        events = self.ledger.append(attempts, updates, vectors)
        if updates:
            self.sums.add(updates)
            self.health.commit(updates)
            self.sums.show(self.model)
        if failed and self.strict:
            reason = attempts[failed[0] - first].reason
            raise TetherError(f"edit {failed[0]} failed, and --strict stops there: {reason}")
        return events, reading

    def _propose(self, facts: Sequence[Fact]) -> Batch:
        """The batch of a method that edits batches; of one fact, for a method that edits facts."""
        try:
            if isinstance(self.editor, BatchEditor):
                return self.editor.propose_batch(self.model, facts, self.context)
            (fact,) = facts
            return Batch(self.editor.propose(self.model, fact, self.context), [{}])
        except EditFailedError as error:
            return Batch(None, [error] * len(facts))
        except TetherError as error:
            return Batch(None, [EditFailedError(str(error))] * len(facts))

    def _warn(self, number: int, facts: Sequence[Fact], reading: Reading) -> None:
        if reading.level != "ok" and (reading.level != self.level or reading.disabling):
            which = f"edit {number}" if len(facts) == 1 else f"edits {number}-{number + len(facts) - 1}"
            logger.warning(
                "%s (%s -> %s%s): %s", which, facts[0].subject, facts[0].target_new, " …" if len(facts) > 1 else "",
                reading.line(),
            )  # fmt: skip
        self.level = reading.level

    def _restrain_if_due(self) -> None:
        if self.every is not None and self._since_restraint() >= self.every:
            self._restrain()

    def _since_restraint(self) -> int:
        """Live edits after the last restraint; 0 where nothing restrains."""
        if not self.restraint.acts:
            return 0
        count, undone = 0, self.ledger.undone
        for event in self.ledger.events:
            alive = event.kind == "edit" and event.edit not in undone
            count = 0 if event.kind == "restrain" else count + alive
        return count

    def _look(self, *, at_the_end: bool = False) -> None:
        if self.guard is not None and self.guard.due(self.ledger, at_the_end=at_the_end):
            self.guard.look(self.ledger, self._fallback(), self._restrain, self.model)

    def _fallback(self) -> Constraint:
        """What the guard restrains with: the run's restraint, or log:1.2 where it has none."""
        return self.restraint if self.restraint.acts else log(1.2)

    def _restrain(self, restraint: Constraint | None = None, reason: str | None = None) -> None:
        restraint = restraint or self.restraint
        before = {name: held.factors.singular_values() for name, held in self.sums.of.items()}
        self.sums.restrain(restraint)
        self.ledger.append_restraint(restraint, {
            name: {"update_sigma_max": float(s[0]) if len(s) else 0.0, "above_m": int((s > self.sums.m[name]).sum()),
                   "restrained_sigma_max": max(self.sums.of[name].factors.singular_values().tolist(), default=0.0)}
            for name, s in before.items()
        }, reason)  # fmt: skip
        self.health.reset(self._factors())
        self.sums.show(self.model)

    def _factors(self) -> dict[str, LowRank]:
        return {name: held.factors for name, held in self.sums.of.items()}
