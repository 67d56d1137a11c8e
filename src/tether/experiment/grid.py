"""Run a grid.

outcome = run_grid("my-grid.yaml", "out")
outcome = run_grid("my-grid.yaml", "out", resume=True)      # goes on: nothing done is repeated
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tether.errors import TetherError
from tether.experiment.engines import engine as engine_of
from tether.experiment.parquet import write_grid
from tether.experiment.plan import Plan, make_plan
from tether.experiment.results import StoredGrid, StoredRun
from tether.experiment.run import Analyse, Step, finished, note_failure, run_folder
from tether.experiment.spec import grid_text, read_spec
from tether.ledger import writing
from tether.storage.atomic import write_atomically

logger = logging.getLogger(__name__)

GRID = "grid.yaml"


@dataclass(frozen=True)
class Outcome:
    """What a grid found, in the order of its plan, and why runs failed, by their id."""

    plan: Plan
    grid: StoredGrid
    failed: dict[str, str]


def run_grid(
    source: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    engine: str = "local",
    progress: Callable[[Step], None] | None = None,
    analyse: Analyse | None = None,
) -> Outcome:
    """Do every run of a grid (a file, or a name of `grid_names`) that is not done, and keep what they found in `out`:
    results.parquet, analyses.json and grid.yaml, written after every run, and the runs' own folders.

    `resume` goes on in a folder where the grid, or an older version of it, ran before: runs with the same id are the
    same, and a done one is not touched. `engine` is `local` or `ray`. `analyse` stands in for
    `tether.analyses.analyse.analyse`. A run that fails is recorded and the others go on.

    Raises TetherError for a fault in the grid, for missing files, and while another process writes there.
    """
    start = engine_of(engine)
    out = Path(out)
    plan = make_plan(read_spec(source))
    if plan.missing:
        more = f"; and {len(plan.missing) - 1} more, see --plan" if len(plan.missing) > 1 else ""
        raise TetherError(f"{source}: {plan.missing[0]}{more}")
    if out.is_file():
        raise TetherError(f"{out} is a file: name a folder")
    if (out / GRID).exists() and not resume:
        raise TetherError(f"{out} holds runs of a grid already: add --resume to go on, or name another folder")
    (out / "runs").mkdir(parents=True, exist_ok=True)
    say = progress or (lambda step: None)
    with writing(out):
        write_atomically(out / GRID, grid_text(source).encode())
        done: dict[str, StoredRun] = {}
        failed: dict[str, str] = {}
        for job in plan.jobs:
            stored = finished(job, out)
            if stored is not None:
                done[job.run.id] = stored
        todo = [job for job in plan.jobs if job.run.id not in done]
        grid = _store(plan, f"tether grid {source}", done, out)
        for ended in start(plan.spec, todo, out, say, analyse):
            reason = ended.reason
            if reason is None:
                stored = finished(ended.job, out)
                if stored is not None:
                    done[ended.job.run.id] = stored
                    grid = _store(plan, grid.command, done, out)
                    continue
                reason = f"{run_folder(out, ended.job)} holds no finished run: do its workers see the same folder?"
            note_failure(ended.job, out, reason)
            failed[ended.job.run.id] = reason
            say(Step(ended.job.run, "failed", reason=reason))
    return Outcome(plan, grid, failed)


def _store(plan: Plan, command: str, done: dict[str, StoredRun], out: Path) -> StoredGrid:
    """Write what is done, in the plan's order."""
    spec = plan.spec
    runs = [done[job.run.id] for job in plan.jobs if job.run.id in done]
    grid = StoredGrid(name=spec.name, title=spec.title or spec.name, command=command, runs=runs)
    write_grid(grid, out)
    return grid
