"""Edit facts into a model, into a ledger.

model = tether.load("smollm2")
ledger = tether.edit(model, tether.read_facts("facts.jsonl"), out="my-edits", restrain="log:1.2")
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypedDict, Unpack

from tether.constraints.base import Constraint, parse
from tether.editing.guard import Guard
from tether.editing.loop import Loop, Progress
from tether.editing.plan import DEFAULT_METHOD, EditPlan, OnAlarm, Schedule, plan_and_schedule
from tether.editing.prepare import new_header, recorded_editor, trained_editor
from tether.editors import EDITORS, BatchEditor, Method
from tether.editors.corpus import Corpus
from tether.engine import LOCAL, Engine
from tether.errors import BadFactError, BadSettingsError, TetherError, WrongModelError
from tether.facts.fact import Fact
from tether.ledger import IMPORT, Header, Ledger
from tether.models import EditableModel

__all__ = ["EditOptions", "Progress", "edit"]

logger = logging.getLogger(__name__)


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
    verify_every: int | None
    bystanders: int


def edit(
    model: EditableModel,
    facts: Sequence[Fact],
    *,
    out: str | Path | None = None,
    plan: EditPlan | None = None,
    schedule: Schedule | None = None,
    resume: bool = False,
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
    engine: Engine = LOCAL,
    **options: Unpack[EditOptions],
) -> Ledger:
    """Edit facts into a model one after another and return the ledger; the model then carries its edits.

    `out` is a new ledger, or an existing one to append to, after verifying it; None is a trial, whose ledger lies in a
    temporary folder and goes with it. `plan` says what the ledger depends on and `schedule` when what is done; their
    fields can be given as keywords instead. `resume` goes on with an interrupted list of facts. A fact that fails is
    recorded and leaves the model as it was; `strict` raises instead. An `engine` with workers (`tether.engine`) shares
    out the moments, and the search for δ of a batch of memit or emmet: the same edits, to rounding.
    An appended run keeps the ledger's dtype, method, settings and, unless given, restraint. On any error or Ctrl-C the
    model carries what the ledger says, and the ledger can be resumed. Raises GuardStopError where a guard had to stop.
    """
    plan, schedule = plan_and_schedule(plan, schedule, options)
    if not facts:
        raise BadFactError("no facts to edit: the list is empty")
    trial = tempfile.TemporaryDirectory(prefix="tether-") if out is None else None
    out = Path(trial.name if trial is not None else str(out))
    guard = None
    if schedule.guard is not None:
        guard = Guard(model, schedule.guard, every=schedule.guard_every, data=schedule.guard_data)
    if (out / "ledger.json").exists():
        ledger = Ledger.open(out, model)
        _check_same(ledger.header, model, plan)
        trained = recorded_editor(model, ledger.header, plan.editor)
        method, restraint, every = EDITORS[ledger.header.method], parse(ledger.header.restrain), ledger.header.every
        schedule = _completed(schedule, method, restraint, every)
    else:
        _check_room(out)
        method = EDITORS[plan.method or DEFAULT_METHOD]
        schedule = _completed(schedule, method, parse("none"), None)
        trained = trained_editor(model, method, plan)
        ledger = Ledger.create(out, new_header(model, method, plan, schedule, trained, engine=engine))
    if ledger.header.joint is None:  # made by an earlier version, which always put one space before the target
        facts = [fact.spaced() for fact in facts]
    with ledger.writing():
        loop = Loop(model, ledger, schedule, trained, guard, strict, progress, engine)
        loop.go(facts, skip=_already_done(ledger, facts) if resume else 0)
    ledger.trial = trial
    return ledger


def _check_room(out: Path) -> None:
    """Raise BadSettingsError where a new ledger has no room."""
    if out.is_file() or any(parent.is_file() for parent in out.parents):
        raise BadSettingsError(f"{out}: there is a file where a folder must be; choose another place for the ledger")
    # A kill while a ledger was made leaves its folder "factors" and files named "ledger.…".
    if out.exists() and any(p.name != "factors" and not p.name.startswith("ledger.") for p in out.iterdir()):
        raise BadSettingsError(f"{out} holds something that is no ledger: choose an empty or new folder")


def _completed(schedule: Schedule, method: Method, restraint: Constraint, every: int | None) -> Schedule:
    """The schedule, with a ledger's own restraint where it names none. Raises BadSettingsError where the method or the
    restraint cannot do what it asks for."""
    if schedule.batch_size > 1 and not isinstance(method.editor(), BatchEditor):
        others = ", ".join(name for name in EDITORS if isinstance(EDITORS[name].editor(), BatchEditor))
        raise BadSettingsError(
            f"batch size {schedule.batch_size}: {method.name} edits one fact at a time; use 1, or a new ledger with a "
            f"method that takes batches ({others})"
        )
    acting = schedule.restraint or restraint
    if "moments" in acting.needs and "moments" not in method.needs:
        what = f"restraint {acting} needs the moments of the keys, and {method.name} collects none"
        raise BadSettingsError(f"{what}: name another restraint, or a method that does, as r-rome and memit")
    if schedule.every is not None and not acting.acts:
        raise BadSettingsError(
            f"every {schedule.every}: there is no restraint to act; name one, as in log:1.2, or do without every"
        )
    if schedule.restraint is not None:
        return schedule
    return schedule.model_copy(update={"restraint": restraint, "every": schedule.every or every})


def _check_same(header: Header, model: EditableModel, plan: EditPlan) -> None:
    """An appended run has the ledger's own dtype, method, seed and settings."""
    if header.method == IMPORT:
        raise BadSettingsError("this ledger holds an imported checkpoint, and no edits are added to it: name another")
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype != header.dtype:
        raise TetherError(
            f"dtype {dtype}: this ledger was made with {header.dtype}; load the model in that or make a new ledger"
        )
    made = {"method": header.method, "seed": header.seed, "layers": tuple(header.settings["layers"])}
    for what, value in made.items():
        wanted = getattr(plan, what)
        if wanted is not None and wanted != value:
            raise BadSettingsError(
                f"{what} {wanted}: this ledger was made with {value}; name none, or make a new ledger"
            )
    text = {} if plan.corpus is None else Corpus.parse(plan.corpus, seed=header.seed).told()
    if not text.items() <= header.corpus.items():
        raise BadSettingsError(f"corpus {plan.corpus}: this ledger was made with other text; name none")
    foreign = sorted(set(model.edited) - header.weights.keys())
    if foreign:
        raise WrongModelError(f"the model carries edits of {foreign[0]} that are not this ledger's: load it again")
    if plan.settings is not None:
        raise BadSettingsError(
            f"settings {plan.settings}: an existing ledger keeps its own; name none, or make a new ledger"
        )


same_edit = attrgetter("subject", "prompt", "phrasings", "target_new")  # what a fact is edited by


def _already_done(ledger: Ledger, facts: Sequence[Fact]) -> int:
    """How many facts of the list, from its start, are the last ones the ledger tried and no guard took back. A fact is
    known by its subject, prompts and target: what it is measured with may have changed since."""
    taken_back = set[int]()
    for event in ledger.events:
        if event.kind == "guard":
            taken_back.update(event.undone or ())
        taken_back.difference_update(event.redone or ())
    tried = [same_edit(e.fact) for e in ledger.events if e.fact is not None and e.edit not in taken_back]
    wanted = [same_edit(fact) for fact in facts]
    for count in range(min(len(tried), len(wanted)), 0, -1):
        if tried[-count:] == wanted[:count]:
            return count
    if tried:
        last = f"the {len(tried)} facts that {ledger.path} tried"
        logger.warning("resume: this list does not go on from %s, so all %d of it are edited", last, len(facts))
    return 0
