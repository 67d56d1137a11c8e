"""What the model could do before: general abilities, by name.

`perplexity` of plain text needs nothing. The others are tasks of lm-evaluation-harness: those that come with tether
(`tether.evaluation.abilities.tasks`), and any other by the harness's own name or by a YAML file.
"""

import logging
import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tether.errors import TetherError
from tether.evaluation.abilities.cache import AbilityCache
from tether.evaluation.abilities.data import AbilityData, ability_data
from tether.evaluation.abilities.estimate import in_words, probe
from tether.evaluation.abilities.harness import named_tasks, packaged_task
from tether.evaluation.abilities.perplexity import PERPLEXITY as PERPLEXITY
from tether.evaluation.abilities.perplexity import PerplexityTask
from tether.evaluation.abilities.task import AbilityResult, AbilityTask
from tether.evaluation.abilities.tasks import task_names
from tether.models.editable import EditableModel

logger = logging.getLogger(__name__)

ABILITIES = (PERPLEXITY, *task_names())
QUICK_ITEMS = 40


def ability_tasks(
    names: Sequence[str],
    data: AbilityData,
    *,
    limit: int | None = None,
    quick: bool = False,
    trust_task_files: bool = False,
) -> tuple[AbilityTask, ...]:
    """The tasks of `names`, in order, each once.

    A task takes its first `limit` items; None: QUICK_ITEMS for `quick`, else the task's own size. The perplexity always
    takes its whole text. A name can be a task file (YAML) with `trust_task_files` alone, as such a file can run any
    Python. Raises TetherError for an unknown name, data that are missing or damaged, a limit below 1.
    """
    if limit is not None and limit < 1:
        raise TetherError(f"limit {limit}: a task needs at least 1 item")
    wanted = limit if limit is not None or not quick else QUICK_ITEMS
    tasks: dict[str, AbilityTask] = {}
    for name in dict.fromkeys(names):
        if name == PERPLEXITY:
            found: Sequence[AbilityTask] = [PerplexityTask(data.text)]
        elif name in ABILITIES:
            found = [packaged_task(name, data, wanted)]
        else:
            found = named_tasks(name, hub=data.hub, limit=wanted, trust_files=trust_task_files)
        if not found:
            raise TetherError(
                f"{name!r} is no ability that can be measured: choose from {', '.join(ABILITIES)}, or name a task of "
                "lm-evaluation-harness"
            )
        for task in found:
            tasks.setdefault(task.name, task)
    return tuple(tasks.values())


class AbilityRun:
    """The abilities of one model, measured again and again while its edits change.

    What the cache knows is taken from there, and every task goes there as soon as it is done, so that an interrupted
    run goes on with the next task. How long it will take is told before anything is measured.
    """

    def __init__(self, model: EditableModel, tasks: Sequence[AbilityTask]) -> None:
        self._model, self._tasks, self._cache, self._told = model, tuple(tasks), AbilityCache(model), False

    def measure(self, rows_left: int = 1) -> dict[str, AbilityResult]:
        """Every ability of the model as it is now, which is not changed. `rows_left`, this one included, is for saying
        how long it will take."""
        known = {task.name: self._cache.get(task) for task in self._tasks}
        todo = [task for task in self._tasks if known[task.name] is None]
        if any(task.name != PERPLEXITY for task in todo):
            self._tell(todo, rows_left)
        for task in todo:
            started = time.perf_counter()
            found = task.measure(self._model)
            self._cache.put(task, found)
            known[task.name] = found
            error = "" if found.stderr is None else f" ± {found.stderr:.2g}"
            figures = f"{found.value:.1f}{error} {'%' if found.unit == 'percent' else 'ppl'} (n {found.n})"
            logger.info("%s: %s, %s", task.name, figures, in_words(time.perf_counter() - started))
        return {name: found for name, found in known.items() if found is not None}

    @cached_property
    def _seconds(self) -> dict[str, float]:
        """Of every task, for one row."""
        speed = probe(self._model)
        return {task.name: speed.seconds(task.work(self._model)) for task in self._tasks}

    def _tell(self, todo: Sequence[AbilityTask], rows_left: int) -> None:
        row = sum(self._seconds[task.name] for task in todo)
        if self._told:
            logger.info("general abilities: %s for this row", in_words(row))
            return
        self._told = True
        parts = (f"{task.name} ({task.items or 'all'} items, {in_words(self._seconds[task.name])})" for task in todo)
        logger.info("general abilities of a row: %s", ", ".join(parts))
        total = in_words(row + (rows_left - 1) * sum(self._seconds.values()))
        logger.info("%s for %d row%s, less where they were measured before", total, rows_left, "s" * (rows_left > 1))
        fewest = min(task.items for task in todo if task.items)
        most = 50 / math.sqrt(fewest)
        logger.info("with %d items the standard error of a percentage is up to %.1f points", fewest, most)


def measure_abilities(
    model: EditableModel, names: Sequence[str], data: AbilityData | None = None, **options: Any
) -> dict[str, AbilityResult]:
    """The abilities `names` of the model as it is now, which is not changed. `data` None: the small sets of tether; the
    options as in `ability_tasks`."""
    return AbilityRun(model, ability_tasks(names, data or ability_data(), **options)).measure()
