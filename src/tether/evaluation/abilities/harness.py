"""Tasks of lm-evaluation-harness as abilities: those that come with tether, and any other by its own name.

lm-eval is imported when a task is first needed, so that what the cache knows costs nothing.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tether.errors import BadSettingsError, MissingExtraError, TetherError
from tether.evaluation.abilities.task import AbilityResult, AbilityTask, Work
from tether.evaluation.abilities.tasks import FOLDER, read_yaml, task_file
from tether.evaluation.abilities.tasks.documents import read
from tether.evaluation.statistics.mean import Record, cluster_mean
from tether.models.editable import EditableModel
from tether.storage.atomic import finite

logger = logging.getLogger(__name__)

VERSION = 1  # raise it with every change of how a task is asked or scored: cached results are then measured anew

_LOCAL_LOADERS = ("json", "csv", "text", "parquet", "arrow")
_FEWSHOT_SEED = 1234  # the harness's own


class HarnessTask(AbilityTask):
    """A task of the harness: `load` gives its Task with the data, whose `documents` are measured up to `limit`. Its
    score is the mean, over items, of a metric from 0 to 1, shown in percent."""

    def __init__(
        self, name: str, of_task: str, documents: Sequence[Mapping[str, Any]], limit: int, load: Callable[[], Any]
    ) -> None:
        digest = hashlib.sha256()
        for document in documents:
            digest.update(json.dumps(document, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
        try:
            harness = version("lm_eval")  # it asks and scores too
        except PackageNotFoundError:
            raise MissingExtraError(
                "the general abilities need lm-evaluation-harness, which is not installed: pip install "
                "'tether[abilities]'"
            ) from None
        items = min(limit, len(documents))
        super().__init__(name, f"{of_task}-lm-eval {harness}-{VERSION}", digest.hexdigest(), items)
        self._load = load

    @cached_property
    def loaded(self) -> Any:
        """The harness's Task, with its data."""
        with quiet():
            return self._load()

    @cached_property
    def metric(self) -> str:
        """The first metric that is a mean over items and better when higher. Raises TetherError where there is none."""
        from lm_eval.api.registry import get_aggregation

        mean, better = get_aggregation("mean"), self.loaded.higher_is_better()
        aggregations = self.loaded.aggregation()
        for name, aggregation in aggregations.items():
            if aggregation is mean and better.get(name):
                return str(name)
        raise TetherError(
            f"{self.name!r} has no score that is a mean over its items (it has {', '.join(map(str, aggregations))}): "
            "choose another task"
        )

    def measure(self, model: EditableModel) -> AbilityResult:
        from tether.evaluation.abilities.harness_model import HarnessModel

        with quiet():
            return self.measure_with(HarnessModel(model))

    def measure_with(self, lm: Any) -> AbilityResult:
        """Of anything that answers as the harness's `LM` does."""
        from lm_eval.evaluator import evaluate

        with quiet():
            tasks = {"tasks": {self.name: self.loaded}}
            found = evaluate(lm=lm, task_dict=tasks, limit=self.items, bootstrap_iters=0, log_samples=True)
        samples = found["samples"][self.name]
        records = [self._record(sample) for sample in samples if sample["filter"] == samples[0]["filter"]]
        values = [record["value"] for record in records]
        if not all(0 <= value <= 1 for value in values):
            raise TetherError(f"{self.name}: its {self.metric} is no number from 0 to 1: choose another task")
        mean = cluster_mean([value] for value in values)
        return AbilityResult(value=mean.value or 0.0, n=mean.n, stderr=mean.stderr, unit="percent", records=records)

    def work(self, model: EditableModel) -> Work:
        """The tokens of all prompts (a prompt with several continuations once) and the new ones."""
        from tether.evaluation.abilities.harness_model import HarnessModel

        with quiet():
            lm = HarnessModel(model)
            self.loaded.build_all_requests(limit=self.items, rank=0, world_size=1)
            requests = self.loaded.instances
            read_at_once = sum(len(lm.tok_encode(text)) for text in {request.args[0] for request in requests})
            if self.loaded.OUTPUT_TYPE != "generate_until":
                return Work(read_at_once + sum(len(lm.tok_encode(request.args[-1])) for request in requests))
            batches = [(lm.new_tokens(requests[batch[0]]), len(batch)) for batch in lm.generation_batches(requests)]
            return Work(read_at_once, sum(new for new, _ in batches), sum(new * size for new, size in batches))

    def _record(self, sample: Mapping[str, Any]) -> Record:
        target, said = sample["target"], sample["filtered_resps"]
        if isinstance(target, int) and self.loaded.OUTPUT_TYPE == "multiple_choice":
            target = self.loaded.doc_to_choice(sample["doc"])[target]
        record: Record = {
            "ability": self.name,
            "item": sample["doc_id"],
            "value": float(sample[self.metric]),
            "target": target if isinstance(target, str | int | list) else str(target),
        }
        if self.loaded.OUTPUT_TYPE == "generate_until":
            return {**record, "answer": said[0]}
        return {**record, "log_likelihoods": finite([float(found[0]) for found in said])}


def packaged_task(name: str, folder: Path | None, *, hub: bool, limit: int | None) -> HarnessTask:
    """One of the tasks that come with tether. `limit` None takes the task's own size."""
    file = task_file(name)

    def load() -> Any:
        from lm_eval.tasks import TaskManager

        metadata = {"folder": folder and str(folder), "hub": hub}
        manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
        return manager.load([name])["tasks"][name]

    documents = read(file.kind, folder, hub=hub)
    return HarnessTask(name, file.version, documents, file.size if limit is None else limit, load)


def _named_task(name: str, loaded: Any, limit: int | None) -> HarnessTask:
    """A task that is loaded already. `limit` None takes all its items."""
    loaded.set_fewshot_seed(seed=_FEWSHOT_SEED)
    documents = list(loaded.eval_docs)
    config = json.dumps(loaded.dump_config(), sort_keys=True, default=str)
    version = f"{loaded.VERSION}-{hashlib.sha256(config.encode()).hexdigest()}"
    task = HarnessTask(name, version, documents, len(documents) if limit is None else limit, lambda: loaded)
    task.metric  # noqa: B018 - a task without one is refused now, not after an hour
    return task


def named_tasks(name: str, *, hub: bool, limit: int | None, trust_files: bool = False) -> list[HarnessTask]:
    """The tasks of a name the harness knows (one, or those of a group or tag), or of a YAML file; none for another
    name, or without the harness. Raises TetherError for data that lie on the hub unless `hub` allows it, and for a file
    unless `trust_files` allows it."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else None
    if file is not None and not trust_files:
        raise BadSettingsError(
            f"{name!r} is a task file, which can run any Python (!function, templates): read it, then allow it with "
            "trust_task_files (--trust-task-files); a grid takes names alone"
        )
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        return []
    with quiet():
        manager = _index() if file is None else TaskManager(include_defaults=False)
        if file is None and name not in manager.task_index:
            return []
        try:
            away = None if hub else next(_on_the_hub(manager, name), None)
            if away is not None:
                raise BadSettingsError(
                    f"{name!r} reads its data from the hub ({away}): add --abilities-data hub to allow the download"
                )
            found = manager.load([name])["tasks"]
        except (OSError, ValueError, ImportError) as error:
            raise TetherError(f"task {name!r} cannot be loaded ({error}): mend that, or name another") from error
        return [_named_task(str(task), loaded, limit) for task, loaded in found.items()]


@cache
def _index() -> Any:
    """The harness's own tasks, which take it many seconds to list."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's bars and notes inside the block, and without its second reading of our data telling again
    what the first told. Errors still come, and whatever else is written."""
    from lm_eval.api import task as tasks

    loggers = [logging.getLogger(name) for name in ("lm_eval", "tether.evaluation.abilities.tasks")]
    levels, bar = [found.level for found in loggers], tasks.tqdm
    for found in loggers:
        found.setLevel(logging.ERROR)
    tasks.tqdm = partial(bar, disable=True)  # the one bar of the harness that has no switch
    try:
        yield
    finally:
        tasks.tqdm = bar
        for found, level in zip(loggers, levels, strict=True):
            found.setLevel(level)


def _on_the_hub(manager: Any, name: str) -> Iterator[str]:
    """The data sets of a task (or its file), group or tag that are not local files."""
    entry = manager.task_index.get(name)
    file = Path(name) if entry is None else entry.yaml_path
    content = {"task": sorted(entry.tags)} if file is None else read_yaml(file)  # without a file: a tag
    if isinstance(content.get("task"), list):
        for child in content["task"]:
            known = child if isinstance(child, str) else child.get("task", child.get("group"))
            if isinstance(known, str) and known in manager.task_index:
                yield from _on_the_hub(manager, known)
            else:
                yield str(known)
        return
    path = content.get("dataset_path")
    if path is None and "custom_dataset" in content:
        return
    if path not in _LOCAL_LOADERS and not Path(str(path)).exists():
        yield str(path or name)
