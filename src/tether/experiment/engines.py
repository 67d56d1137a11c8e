"""What does the runs of a grid: this process (`local`), one after another, or Ray.

A run leaves everything in its folder, so an engine only tells which run ended and how. Ray's workers need the same
folders as the process that started them: one machine, or a shared file system.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tether.engine import ray_cluster
from tether.errors import BadSettingsError, TetherError
from tether.experiment.plan import Job
from tether.experiment.run import Analyse, ProgressCallback, Step, do_run, load_for
from tether.experiment.spec import GridSpec
from tether.models import EditableModel

logger = logging.getLogger(__name__)


# Yields every run that ended, with why it failed, on one line, or None.
Engine = Callable[[GridSpec, Sequence[Job], Path, ProgressCallback, Analyse | None], Iterator[tuple[Job, str | None]]]


def local(
    spec: GridSpec, jobs: Sequence[Job], out: Path, tell: ProgressCallback, analyse: Analyse | None
) -> Iterator[tuple[Job, str | None]]:
    """One after another in this process; a model stays loaded while the next run has it too."""
    held: dict[str, EditableModel] = {}

    def model(job: Job) -> EditableModel:
        if job.model.name not in held:
            held.clear()  # before the next one is loaded
            held[job.model.name] = load_for(job)
        return held[job.model.name]

    for job in jobs:
        yield job, reason_of(partial(do_run, job, out, partial(model, job), tell, analyse))


def reason_of(work: Callable[[], object]) -> str | None:
    """Do it; why it failed, on one line, or None. One failed run does not stop the others."""
    try:
        work()
    except TetherError as error:
        return " ".join(str(error).split())
    except Exception as error:  # whatever it is, it is told, and the other runs go on
        logger.warning("a run failed unexpectedly", exc_info=True)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def ray(
    spec: GridSpec, jobs: Sequence[Job], out: Path, tell: ProgressCallback, analyse: Analyse | None
) -> Iterator[tuple[Job, str | None]]:
    """As many at a time as the cluster's resources allow, each in a worker of its own. A run whose worker dies is
    started again on another, where it goes on."""
    wanted = spec.resources
    with ray_cluster(spec.ray_address) as cluster:
        work = cluster.remote(num_cpus=wanted.num_cpus, num_gpus=wanted.num_gpus, max_retries=wanted.retries)(
            _in_worker
        )
        pending = {work.remote(job.model_dump_json(), str(out.resolve()), analyse): job for job in jobs}
        try:
            while pending:
                (ready,), _ = cluster.wait(list(pending), num_returns=1)
                job = pending.pop(ready)
                try:
                    reason = cluster.get(ready)
                except cluster.exceptions.RayError as error:
                    reason = f"its worker died, {wanted.retries} retries included ({type(error).__name__})"
                if reason is None:
                    tell(Step(job.run, "done"))
                yield job, reason
        finally:
            for left in pending:
                cluster.cancel(left, force=True)


def _in_worker(job: str, out: str, analyse: Analyse | None) -> str | None:
    """A run in a worker; why it failed, or None. Progress goes to the worker's stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    found = Job.model_validate_json(job)
    return reason_of(partial(do_run, found, Path(out), partial(load_for, found), lambda step: None, analyse))


ENGINES: Mapping[str, Engine] = MappingProxyType({"local": local, "ray": ray})


def engine(name: str) -> Engine:
    """An engine by its name."""
    if name not in ENGINES:
        raise BadSettingsError(f"engine {name!r} is none: choose one of {', '.join(ENGINES)}")
    return ENGINES[name]
