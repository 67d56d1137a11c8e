"""What a grid comes to: its runs in order, each with an id that says what it depends on, and what is missing for it.

One ledger of a cell and seed serves every restraint applied once and every number of edits. A restraint every K edits
has a ledger of its own, since later edits depend on it. Nothing is loaded, downloaded or run here.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tether.constraints.base import parse
from tether.editing.plan import EditPlan, Schedule
from tether.editors.corpus import SELF
from tether.editors.registry import EDITORS
from tether.editors.settings import read_settings
from tether.errors import BadFactError, BadSettingsError, TetherError
from tether.evaluation.abilities.harness import named_tasks
from tether.evaluation.abilities.run import ABILITIES, HUB, PERPLEXITY, TEXT_FILE, ability_data
from tether.evaluation.abilities.tasks import task_file
from tether.evaluation.abilities.tasks.documents import FILES, read
from tether.evaluation.measurement import Measurement
from tether.experiment.results import Run
from tether.experiment.spec import Cell, DatasetSpec, GridSpec, ModelSpec
from tether.facts import Fact, read_facts

_MISSING = "missing"  # stands for the sha256 of a file that is not there


class Job(BaseModel, frozen=True, extra="forbid"):
    """A run with all that it takes; what another process needs to do it.

    `restraints` are applied once, to the ledger's sum; empty where the ledger is restrained every K edits and replayed.
    `at`: the numbers of edits with a row. `files` are the sha256 of what it reads; `wanted` is one of all that is
    measured, so that a finished run is known to be what the grid asks for now.
    """

    run: Run
    model: ModelSpec
    dataset: DatasetSpec
    plan: EditPlan
    measurement: Measurement
    restraints: tuple[str, ...]
    at: tuple[int, ...]
    analyses: tuple[str, ...]
    files: dict[str, str]
    wanted: str

    def facts(self) -> list[Fact]:
        """The facts of the run, in their order."""
        return _facts(self.dataset, self.run.seed, self.run.edits)

    @property
    def schedule(self) -> Schedule:
        """When what is done while its ledger is made. No alarm leaves an edit out: its effect is measured."""
        return Schedule(
            restraint=parse(self.run.restrain), every=self.run.every, batch_size=self.run.batch_size, on_alarm="warn"
        )

    @property
    def rows(self) -> int:
        """How many rows will be measured."""
        return sum(1 if count == 0 else max(1, len(self.restraints)) for count in self.at)


@dataclass(frozen=True)
class Plan:
    """The runs in their order. `missing`: why a run would be refused, each on one line; `notes`: what a reader may not
    expect."""

    spec: GridSpec
    jobs: tuple[Job, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def make_plan(spec: GridSpec) -> Plan:
    """The runs of a grid: all seeds, datasets and editors of a model before the next model, the first seed of all of
    them before the second. Raises TetherError for an ability that is none."""
    _check_names(spec)
    checks = FileChecks()
    jobs: list[Job] = []
    notes: dict[str, None] = {}
    for model in spec.models:
        cells = [cell for cell in spec.cells() if cell.model is model]
        for seed in spec.seeds:
            for cell in cells:
                drawn = cell.dataset.shuffle or EDITORS[str(cell.plan.method)].needs & {"prefixes", "moments"}
                if seed != spec.seeds[0] and not drawn:
                    what = f"{cell.plan.method} on {cell.dataset.name} does not depend on the seed"
                    why = f"it runs with seed {spec.seeds[0]} alone (shuffle: true would draw the order of the facts)"
                    notes[f"{what}: {why}"] = None
                    continue
                checks.cell(cell)
                once = [("none", None)] if cell.once else []  # the ledger of all restraints applied once
                jobs += [_job(spec, cell, seed, restrain, every, checks) for restrain, every in (*once, *cell.every)]
    checks.abilities(spec)
    return Plan(spec, tuple(jobs), tuple(checks.missing), tuple(notes))


def _job(spec: GridSpec, cell: Cell, seed: int, restrain: str, every: int | None, checks: FileChecks) -> Job:
    dataset, plan = cell.dataset, cell.plan.model_copy(update={"seed": seed})
    inline = isinstance(plan.settings, dict)
    named = {
        "facts": dataset.facts, "settings": None if inline else plan.settings, "editor": plan.editor,
        "anatomy": cell.model.anatomy,
        "corpus": None if plan.corpus == SELF else plan.corpus,
    }  # fmt: skip
    files = {what: checks.sha256(what, str(file)) for what, file in named.items() if file is not None}
    run: dict[str, Any] = {
        "model": cell.model.name, "method": cell.editor_name, "dataset": dataset.name, "seed": seed,
        "edits": cell.edits[-1], "batch_size": cell.batch_size, "restrain": restrain, "every": every,
    }  # fmt: skip
    edited = {
        **run, "files": files, "load": cell.model.load, "dtype": cell.model.dtype, "device": cell.model.device,
        "method": plan.method, "layers": plan.layers, "corpus": SELF if plan.corpus == SELF else None,
        **({"settings": plan.settings} if inline else {}),
        "skip": dataset.skip, **({"limit": dataset.limit, "shuffle": True} if dataset.shuffle else {}),
    }  # fmt: skip
    schedule = [] if every is None else [restrain, f"every{every}"]
    words = [cell.model.name, cell.editor_name, dataset.name, *schedule, f"seed{seed}"]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "", "-".join(words))
    restraints = cell.once if every is None else ()
    measured: dict[str, Any] = {
        "restraints": restraints, "at": cell.edits, "abilities": spec.abilities, "limit": spec.limit,
        "quick": spec.quick, "analyses": spec.analyses,
    }  # fmt: skip
    prompts = (dataset.metrics, dataset.paraphrases, dataset.locality)
    return Job(
        run=Run(id=f"{readable}-{_digest(edited)[:10]}", **run), model=cell.model, dataset=dataset,
        plan=plan, measurement=spec.measurement(dataset), restraints=restraints, at=cell.edits,
        analyses=spec.analyses, files=files,
        wanted=_digest({"measured": measured, "prompts": prompts, "data": checks.data(spec)}),
    )  # fmt: skip


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _facts(dataset: DatasetSpec, seed: int, wanted: int) -> list[Fact]:
    """The first `wanted` facts; shuffled ones are drawn from all that `skip` and `limit` leave."""
    span = dataset.limit if dataset.shuffle else min(wanted, dataset.limit or wanted)
    listed = read_facts(dataset.facts, span, skip=dataset.skip)
    if dataset.shuffle:
        random.Random(seed).shuffle(listed)
    return listed[:wanted]


def _check_names(spec: GridSpec) -> None:
    """Raise TetherError for an ability that neither tether nor the harness has."""
    for name in spec.abilities:
        if name in ABILITIES:
            continue
        try:
            known = bool(named_tasks(name, hub=False, limit=spec.limit))
        except TetherError as error:
            if spec.abilities_data == HUB and not Path(name).is_file():  # its data may be fetched when the grid runs
                continue
            raise BadSettingsError(f"abilities: {error}") from None
        if not known:
            raise BadSettingsError(
                f"abilities: {name!r} is none that can be measured: choose from {', '.join(ABILITIES)}, or name a task "
                "of lm-evaluation-harness"
            )


@dataclass
class FileChecks:
    """Checks every file that a grid names, once."""

    missing: dict[str, None] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    counted: set[tuple[str, int]] = field(default_factory=set)

    @contextmanager
    def _noting(self, key: str) -> Iterator[None]:
        """What is refused inside the block is missing."""
        try:
            yield
        except TetherError as error:
            self.missing[f"{key}: {error}"] = None

    def sha256(self, key: str, path: str) -> str:
        if path not in self.hashes:
            try:
                with Path(path).open("rb") as handle:
                    self.hashes[path] = hashlib.file_digest(handle, "sha256").hexdigest()
            except OSError as error:
                self.missing[f"{key}: {path} ({error.strerror})"] = None
                self.hashes[path] = _MISSING
        return self.hashes[path]

    def cell(self, cell: Cell) -> None:
        """That the model's folder is there, the settings are some of the method, and the facts are enough."""
        model, dataset, wanted = cell.model, cell.dataset, cell.edits[-1]
        if Path(model.load).is_absolute() and not Path(model.load).exists():
            self.missing[f"models {model.name}: {model.load} (no such file or folder)"] = None
        settings, method = cell.plan.settings, str(cell.plan.method)
        there = isinstance(settings, dict) or (settings and self.sha256("settings", str(settings)) != _MISSING)
        if settings is not None and there:
            with self._noting("settings"):
                unknown = read_settings(settings).keys() - EDITORS[method].settings.model_fields
                if unknown:
                    named = f"{settings} has" if isinstance(settings, Path) else f"settings of {cell.editor_name} have"
                    raise BadSettingsError(f"{named} {', '.join(sorted(unknown))}, which {method} does not know")
        if (dataset.name, wanted) in self.counted or self.sha256("datasets", dataset.facts) == _MISSING:
            return
        self.counted.add((dataset.name, wanted))
        with self._noting(f"datasets {dataset.name}"):
            found = len(_facts(dataset, 0, wanted))
            if found < wanted:
                raise BadFactError(f"{dataset.facts} gives {found} facts, {wanted} edits are wanted")

    def data(self, spec: GridSpec) -> dict[str, str]:
        """The sha256 of the abilities' files."""
        if spec.abilities_data in (None, HUB):
            return {"source": str(spec.abilities_data)}
        source = Path(str(spec.abilities_data))
        if not source.is_dir():
            return {"text": self.sha256("abilities_data", str(source))} if source.exists() else {}
        names = sorted(file for file in (*FILES.values(), TEXT_FILE) if (source / file).is_file())
        return {name: self.sha256("abilities_data", str(source / name)) for name in names}

    def abilities(self, spec: GridSpec) -> None:
        """That the data of the abilities are there and can be read."""
        if spec.abilities_data == HUB:
            return
        folder = None
        with self._noting("abilities_data"):
            folder = ability_data(spec.abilities_data).folder
        if set(spec.abilities) - {PERPLEXITY} and find_spec("lm_eval") is None:
            self.missing["abilities: lm-evaluation-harness is not installed: pip install 'tether[abilities]'"] = None
        kinds = (task_file(name).kind for name in spec.abilities if name in ABILITIES and name != PERPLEXITY)
        for kind in dict.fromkeys(kinds):
            with self._noting("abilities_data"):
                read(kind, folder)
