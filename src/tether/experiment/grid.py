"""Run a grid.

outcome = run_grid("my-grid.yaml", "out")
outcome = run_grid("my-grid.yaml", "out", resume=True)      # goes on: nothing done is repeated
"""

from dataclasses import dataclass
from pathlib import Path

from tether.errors import TetherError
from tether.experiment.engines import engine as engine_of
from tether.experiment.parquet import write_grid
from tether.experiment.plan import Plan, make_plan
from tether.experiment.results import StoredGrid, StoredRun
from tether.experiment.run import Analyse, ProgressCallback, Step, finished, run_folder
from tether.experiment.spec import grid_text, read_spec
from tether.ledger import writing
from tether.storage.atomic import write_atomically

GRID = "grid.yaml"


@dataclass(frozen=True)
class Outcome:
    """What a grid found, in the order of its plan, and why runs failed, by their id."""

    plan: Plan
    grid: StoredGrid
    failed: dict[str, str]


def run_grid(
    source: str | Path, out: str | Path, *, resume: bool = False, engine: str = "local",
    progress: ProgressCallback | None = None, analyse: Analyse | None = None,
) -> Outcome:  # fmt: skip
    """Do every run of a grid (a file, or a name of `grid_names`) that is not done, and keep what they found in `out`:
    results.parquet, analyses.json and grid.yaml, written after every run, and the runs' own folders.

    `resume` goes on in a folder where the grid, or an older version of it, ran before: runs with the same id are the
    same, and a done one is not touched. `engine` is `local` or `ray`. `analyse` stands in for
    `tether.analyses.analyse.analyse`. A run that fails is recorded and the others go on.

    Raises TetherError for a fault in the grid, for missing files, and while another process writes there.
    """
    start, say = engine_of(engine), progress or (lambda step: None)
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
    with writing(out):
        write_atomically(out / GRID, grid_text(source).encode())
        done = {job.run.id: stored for job in plan.jobs if (stored := finished(job, out)) is not None}
        todo = [job for job in plan.jobs if job.run.id not in done]
        failed: dict[str, str] = {}
        grid = _store(plan, f"tether grid {source}", done, out)
        for job, reason in start(plan.spec, todo, out, say, analyse):
            stored = finished(job, out) if reason is None else None
            if stored is not None:
                done[job.run.id] = stored
                grid = _store(plan, grid.command, done, out)
                continue
            reason = reason or f"{run_folder(out, job)} holds no finished run: do its workers see the same folder?"
            run_folder(out, job).mkdir(parents=True, exist_ok=True)
            write_atomically(run_folder(out, job) / "failed.txt", (reason + "\n").encode())
            failed[job.run.id] = reason
            say(Step(job.run, "failed", reason=reason))
    return Outcome(plan, grid, failed)


def _store(plan: Plan, command: str, done: dict[str, StoredRun], out: Path) -> StoredGrid:
    """Write what is done, in the plan's order."""
    spec = plan.spec
    runs = [done[job.run.id] for job in plan.jobs if job.run.id in done]
    grid = StoredGrid(name=spec.name, title=spec.title or spec.name, command=command, runs=runs)
    write_grid(grid, out)
    return grid
