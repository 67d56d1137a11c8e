"""Who does the independent parts of one piece of work: this process (`LOCAL`), or workers of a Ray cluster.

    with open_engine("ray", workers=8) as engine:
        tether.edit(model, facts, out="my-edits", method="memit", batch_size=100, engine=engine)

A worker loads the model by its id, once, and is sent the updates that it carries as low-rank factors. It needs what the
id names: the same folder, or the hub.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from tether.algebra.lowrank import LowRank
from tether.errors import BadSettingsError, MissingExtraError, TetherError, WrongModelError
from tether.models.editable import EditableModel
from tether.models.load import load

T = TypeVar("T")
R = TypeVar("R")

ENGINES = ("local", "ray")
_RETRIES = 3  # of a part whose worker died
_PARTS = 4  # a worker, so that few wait for the last one


class Engine(Protocol):
    """Does parts that do not see each other."""

    @property
    def parts(self) -> int:
        """Into how many parts work is best cut; 1: not at all."""

    def map(self, work: Callable[[EditableModel, T], R], items: Iterable[T], model: EditableModel) -> Iterator[R]:
        """`work(model, item)` of every item, in their order, of the model with the updates that it carries now; `work`
        must leave it as it was. What `work` raises is raised here."""


@dataclass(frozen=True)
class Local:
    """One part after another, in this process."""

    parts: int = 1

    def map(self, work: Callable[[EditableModel, T], R], items: Iterable[T], model: EditableModel) -> Iterator[R]:
        return (work(model, item) for item in items)


LOCAL = Local()


def split(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """At most so many runs of neighbours, of nearly one length, none empty."""
    count = min(parts, len(items))
    return [items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)]


def check_engine(name: str, workers: int | None = None) -> None:
    """Raise BadSettingsError for a name that is none of ENGINES, and for workers of one that has none."""
    if name not in ENGINES:
        raise BadSettingsError(f"engine {name!r} is none: choose one of {', '.join(ENGINES)}")
    if name == "local" and workers is not None:
        raise BadSettingsError(f"workers {workers}: the engine local has none; name the engine ray")


@contextmanager
def open_engine(name: str, *, workers: int | None = None, device: str | None = None) -> Iterator[Engine]:
    """The engine `local` or `ray`, for the time of the block. Ray: of the cluster that RAY_ADDRESS names, else of this
    machine; so many `workers`, each with a GPU where the cluster has any, else a CPU (None: as many as there are);
    `device` is where they put the model. Raises BadSettingsError for another name and for more workers than there is
    room for, MissingExtraError without Ray, and TetherError where it cannot be reached."""
    check_engine(name, workers)
    if name == "local":
        yield LOCAL
        return
    with ray_cluster(os.environ.get("RAY_ADDRESS")) as cluster:
        resources = cluster.cluster_resources()
        kind = "GPU" if resources.get("GPU", 0) >= 1 else "CPU"
        room = int(resources.get(kind, 0))
        count = room if workers is None else workers
        if not 1 <= count <= room:
            raise BadSettingsError(f"workers {count}: the cluster has room for 1 to {room} (a {kind} each)")
        wanted = {"num_gpus": 1, "num_cpus": 0} if kind == "GPU" else {"num_cpus": 1}
        worker = cluster.remote(max_restarts=-1, max_task_retries=_RETRIES, **wanted)(_Worker)
        engine = Ray(cluster, [worker.remote(device) for _ in range(count)])
        try:
            yield engine
        finally:
            for one in engine.workers:
                cluster.kill(one)


@dataclass(frozen=True)
class Ray:
    """Parts side by side on workers of a Ray cluster. A part whose worker dies is done again, by the worker started in
    its place; what is done stays done."""

    cluster: Any
    workers: Sequence[Any]

    @property
    def parts(self) -> int:
        return _PARTS * len(self.workers)

    def map(self, work: Callable[[EditableModel, T], R], items: Iterable[T], model: EditableModel) -> Iterator[R]:
        """Items are taken as workers are free, a few ahead of the last result that was taken."""
        job = self.cluster.put(_Job(_Model.of(model), model.carried(), work))
        waiting, idle = enumerate(items), list(self.workers)
        busy: dict[Any, tuple[int, Any]] = {}
        done: dict[int, R] = {}
        given = taken = 0
        while True:
            while idle and given - taken < self.parts and (item := next(waiting, None)) is not None:
                worker = idle.pop()
                busy[worker.do.remote(job, item[1])] = item[0], worker
                given += 1
            if not busy:
                return
            (ready,), _ = self.cluster.wait(list(busy), num_returns=1)
            index, worker = busy.pop(ready)
            idle.append(worker)
            done[index] = self._result(ready)
            while taken in done:
                yield done.pop(taken)
                taken += 1

    def _result(self, ready: Any) -> Any:
        try:
            found = self.cluster.get(ready)
        except self.cluster.exceptions.RayActorError as error:
            what = f"a part of the work was lost with its worker, {_RETRIES} retries included ({type(error).__name__})"
            raise TetherError(f"{what}: see why it dies (memory?), or take fewer workers") from None
        if isinstance(found, _Failed):
            raise found.error
        return found


@dataclass(frozen=True)
class _Model:
    """What `load` needs to load a model again, and the fingerprint of its first projection."""

    id: str
    dtype: str
    anatomy: dict[str, str]
    fingerprint: str

    @classmethod
    def of(cls, model: EditableModel) -> _Model:
        if model.folder is None:
            rule = "lies in memory alone, and workers load a model by its name"
            raise WrongModelError(f"{model.id} {rule}: save it to a folder and load that, or take the engine local")
        dtype = str(model.dtype).removeprefix("torch.")
        return cls(model.id, dtype, asdict(model.anatomy), model.fingerprint([model.weight_name(0)]))


@dataclass(frozen=True)
class _Job:
    """What all parts of a piece of work share; sent once."""

    model: _Model
    carried: Mapping[str, LowRank | Tensor]
    work: Callable[[EditableModel, Any], Any]


@dataclass(frozen=True)
class _Failed:
    """An error of the work itself, which another try would not mend."""

    error: TetherError


class _Worker:
    """A process of the cluster; it keeps the last model that it loaded."""

    def __init__(self, device: str | None) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        self._device = device
        self._held: tuple[_Model, EditableModel] | None = None

    def do(self, job: _Job, item: Any) -> Any:
        try:
            model = self._loaded(job.model)
            with model.unedited():
                for name, update in job.carried.items():
                    model.set_update(name, update.to_dense() if isinstance(update, LowRank) else update)
                return job.work(model, item)
        except TetherError as error:
            return _Failed(error)

    def _loaded(self, wanted: _Model) -> EditableModel:
        if self._held is None or self._held[0] != wanted:
            self._held = None  # before the next one is loaded
            model = load(wanted.id, dtype=wanted.dtype, device=self._device, anatomy=wanted.anatomy)
            if model.fingerprint([model.weight_name(0)]) != wanted.fingerprint:
                where = f"{wanted.id} on {socket.gethostname()}"
                raise WrongModelError(f"{where} has other weights than here: give every machine the same files")
            self._held = wanted, model
        return self._held[1]


# --- the cluster ------------------------------------------------------------------------------------------------------


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected. A cluster that this process is connected to already is used, and stays; else the one
    at `address`, or one on this machine, for the time of the block."""
    if address is None:  # read at import: a cluster of this machine alone listens on the loopback
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray as cluster
    except ImportError:
        raise MissingExtraError("--engine ray needs Ray, which is not installed: pip install 'tether[ray]'") from None
    if cluster.is_initialized():
        yield cluster
        return
    _check_reachable(address)
    local: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cluster.init(address=address or "local", logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            told = " ".join(str(error).split())
            raise TetherError(f"Ray cannot be reached at {address or 'this machine'}: {told}") from None
    try:
        yield cluster
    finally:
        cluster.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise TetherError where nobody listens at host:port; Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise TetherError(
            f"Ray cannot be reached at {address} ({error}): start it there (ray start --head), or name no "
            "address (ray_address, RAY_ADDRESS) for this machine alone"
        ) from None
