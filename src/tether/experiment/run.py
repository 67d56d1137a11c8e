"""One run of a grid: a ledger, its rows, its analyses; and the file that says it is done.

    OUT/runs/<id>/ledger/          made by `tether.edit`; one put there before with the same arguments is taken
    OUT/runs/<id>/results.json     written by `tether.evaluate_ledger`, with its items beside it
    OUT/runs/<id>/run.json         a StoredRun: the run is done

Killed at any moment and started again, a run goes on where it was.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from tether.analyses.points import Analyses
from tether.constraints.base import AS_RECORDED
from tether.editing.plan import EditPlan
from tether.editing.prepare import trained_editor
from tether.editing.run import Progress, edit
from tether.editors.corpus import Corpus
from tether.editors.registry import EDITORS
from tether.editors.settings import settings_for
from tether.errors import TetherError, pydantic_line
from tether.evaluation import Results, evaluate_ledger
from tether.evaluation.results import read as read_results
from tether.experiment.plan import Job
from tether.experiment.results import Run, StoredRun
from tether.facts import Fact
from tether.ledger import ATTEMPTS, Ledger
from tether.models import EditableModel, load
from tether.storage.atomic import write_atomically
from tether.storage.cache import locked

Stage = Literal["load", "edit", "evaluate", "analyse", "done", "failed"]


@dataclass(frozen=True)
class Step:
    """Where a run is. `edited` is the progress of `edit` in the stage `edit`, `reason` says why it failed."""

    run: Run
    stage: Stage
    edited: Progress | None = None
    reason: str | None = None


ProgressCallback = Callable[[Step], None]
Analyse = Callable[..., Analyses]  # called as tether.analyses.analyse.analyse


def run_folder(out: Path, job: Job) -> Path:
    """Where a run keeps what it makes."""
    return out / "runs" / job.run.id


def finished(job: Job, out: Path) -> StoredRun | None:
    """What a done run found, where it is what is asked for now. Raises TetherError for a damaged file."""
    file = run_folder(out, job) / "run.json"
    try:
        stored = StoredRun.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        why = pydantic_line(error) if isinstance(error, ValidationError) else error
        raise TetherError(f"{file} is damaged ({why}): remove it, the run is then put together again") from None
    return stored if stored.run == job.run and stored.hashes.get("wanted") == job.wanted else None


def state(job: Job, out: Path) -> Literal["done", "begun", "new"]:
    """How far a run is."""
    if finished(job, out) is not None:
        return "done"
    return "begun" if (run_folder(out, job) / "ledger" / "ledger.json").exists() else "new"


def load_for(job: Job) -> EditableModel:
    """The run's model."""
    return load(job.model.load, dtype=job.model.dtype, device=job.model.device, anatomy=job.model.anatomy)


def do_run(
    job: Job, out: Path, model: Callable[[], EditableModel], say: ProgressCallback, analyse: Analyse | None = None
) -> StoredRun:
    """Do a run, or what is left of it. `model` gives the unedited model, only where something is left to do.

    Waits while another process does the same run. Raises TetherError for a ledger in its place that is not its own.
    """
    folder = run_folder(out, job)
    with locked(folder / "run"):
        done = finished(job, out)
        if done is not None:
            return done
        (folder / "failed.txt").unlink(missing_ok=True)
        say(Step(job.run, "load"))
        loaded = model()
        loaded.clear_updates()
        ledger = _edited(job, folder / "ledger", loaded, say)
        say(Step(job.run, "evaluate"))
        results = _measured(job, folder / "results.json", ledger, loaded)
        analyses = Analyses()
        if job.analyses:
            say(Step(job.run, "analyse"))
            work = analyse or import_module("tether.analyses.analyse").analyse
            restraints = job.restraints or (AS_RECORDED,)
            analyses = work(loaded, ledger, job.analyses, restraints=restraints, at=job.at, results=results)
        loaded.clear_updates()
        stored = _stored(job, ledger, results, analyses)
        data = json.dumps(stored.model_dump(mode="json"), ensure_ascii=False, indent=1)  # keeps infinity
        write_atomically(folder / "run.json", data.encode())
    say(Step(job.run, "done"))
    return stored


def _edited(job: Job, folder: Path, model: EditableModel, say: ProgressCallback) -> Ledger:
    facts = job.facts()
    if len(facts) < job.run.edits:
        raise TetherError(f"{job.dataset.facts} gives {len(facts)} facts, {job.run.edits} edits are wanted")
    plan, threads = job.plan, torch.get_num_threads()
    try:
        if (folder / "ledger.json").exists():
            ledger = Ledger.open(folder, model)
            _check(job, ledger, facts, model)
            plan = EditPlan(method=plan.method, seed=plan.seed, editor=plan.editor)  # the ledger keeps the rest
            torch.set_num_threads(ledger.header.threads)  # further factors have the same bits
        return edit(
            model, facts, out=folder, plan=plan, schedule=job.schedule, resume=True,
            progress=lambda at: say(Step(job.run, "edit", at)),
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)


def _check(job: Job, ledger: Ledger, facts: Sequence[Fact], model: EditableModel) -> None:
    """Raise TetherError unless the ledger there is one that `edit` made, or is making, with the run's arguments."""
    header, plan = ledger.header, job.plan
    pairs: dict[str, tuple[Any, Any]] = {
        "method": (header.method, plan.method), "seed": (header.seed, job.run.seed),
        "restrain": (header.restrain, job.run.restrain), "every": (header.every, job.run.every),
        "dtype": (header.dtype, str(model.dtype).removeprefix("torch.")),
    }  # fmt: skip
    trained = trained_editor(model, EDITORS[str(plan.method)], plan)
    if trained is None:
        expected = settings_for(plan.method or header.method, model, given=plan.settings, layers=plan.layers)[0]
    else:
        expected = trained.settings(plan.settings)
        pairs["editor"] = header.editor and header.editor.sha256, trained.sha256
    ours, spent = EDITORS[header.method].settings.model_validate(header.settings), set(expected.resources)
    pairs["settings"] = ours.model_dump(mode="json", exclude=spent), expected.model_dump(mode="json", exclude=spent)
    if plan.corpus is not None:
        corpus = Corpus.parse(plan.corpus, seed=job.run.seed).told()
        pairs["corpus"] = {key: header.corpus.get(key) for key in corpus}, corpus
    for what, (made, asked) in pairs.items():
        if made != asked:
            raise TetherError(
                f"{ledger.path} was made with another {what} than the grid's ({made!s:.80}, the grid's "
                f"{asked!s:.80}): remove it, or make it with the grid's arguments"
            )
    found = [(event.fact.sha256, (event.batch or (1, 1))[1]) for event in ledger.events if event.fact is not None]
    batches = [facts[first : first + job.run.batch_size] for first in range(0, len(facts), job.run.batch_size)]
    wanted = [(fact.sha256, len(batch)) for batch in batches for fact in batch]
    for place, one in enumerate(found):
        if [one] != wanted[place : place + 1]:
            raise TetherError(
                f"{ledger.path}: edit {place + 1} is not the grid's (another fact, or another batch size): remove the "
                "ledger, or make it with the grid's arguments"
            )
    if any(event.kind in ("undo", "guard") for event in ledger.events):
        raise TetherError(f"{ledger.path} has edits undone or a guard's events: a grid measures plain ledgers alone")


def _measured(job: Job, file: Path, ledger: Ledger, model: EditableModel) -> Results:
    """The rows asked for, as the file has them; rows of an earlier, larger question stay in the file alone."""
    evaluate_ledger(
        ledger, model, job.facts(), at=job.at, restraints=job.restraints or (None,), measurement=job.measurement,
        out=file, resume=True,
    )  # fmt: skip
    results = read_results(file)
    wanted = [(count, name if count else "none") for count in job.at for name in job.restraints or (AS_RECORDED,)]
    rows = [row for row in results.rows if row.key in wanted]
    results.rows = sorted(rows, key=lambda row: wanted.index(row.key))
    results.items = [item for item in results.items if (item["edits"], item["restraint"]) in wanted]
    return results


def _stored(job: Job, ledger: Ledger, results: Results, analyses: Analyses) -> StoredRun:
    hashes = {"journal": ledger.head, "model": ledger.header.fingerprint, "facts": results.facts_sha256}
    hashes |= {f"{name} file": digest for name, digest in job.files.items()}
    hashes |= {f"data of {name}": about["data_sha256"] for name, about in results.settings["abilities"].items()}
    counts = {kind: sum(event.kind == kind for event in ledger.events) for kind in ATTEMPTS}
    return StoredRun(
        run=job.run, rows=results.rows, analyses=analyses, counts=counts, versions=results.versions,
        hashes={**hashes, "wanted": job.wanted},
    )  # fmt: skip
