"""What the model could do before: general abilities, by name, and how long measuring them will take.

`perplexity` of plain text needs nothing. The others are tasks of lm-evaluation-harness: those that come with tether
(`tether.evaluation.abilities.tasks`), and any other by the harness's own name or by a YAML file.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from timeit import timeit
from typing import Any

from tether.errors import TetherError
from tether.evaluation.abilities.cache import AbilityCache
from tether.evaluation.abilities.harness import named_tasks, packaged_task
from tether.evaluation.abilities.perplexity import PERPLEXITY as PERPLEXITY
from tether.evaluation.abilities.perplexity import PerplexityTask, builtin_text
from tether.evaluation.abilities.task import AbilityResult, AbilityTask, Work
from tether.evaluation.abilities.tasks import task_names
from tether.evaluation.scores import greedy, score_ids
from tether.facts.tokens import Continuation
from tether.models.editable import EditableModel

logger = logging.getLogger(__name__)

ABILITIES = (PERPLEXITY, *task_names())
QUICK_ITEMS = 40
HUB = "hub"
TEXT_FILE = "perplexity.txt"

_READ = 256  # tokens read by the probe of the model's speed
_STEPS, _ROWS = 4, 8  # its generated tokens, and rows of its second batch


@dataclass(frozen=True)
class AbilityData:
    """`folder` holds the tasks' files (None: the small sets that come with tether); `hub` allows downloads instead;
    `text` is for the perplexity."""

    text: str
    folder: Path | None = None
    hub: bool = False


def ability_data(source: str | Path | None = None, *, text: str | None = None) -> AbilityData:
    """What `--abilities-data` names: a folder (its `perplexity.txt` too, where it has one), a text file for the
    perplexity alone, `hub`, or nothing. A `text` given here is taken before any other.

    Raises TetherError for what is neither, and for a file that is no text.
    """
    if source is None or str(source) == HUB:
        return AbilityData(builtin_text() if text is None else text, hub=source is not None)
    path = Path(source)
    file = path / TEXT_FILE if path.is_dir() else path
    if not path.exists():
        raise TetherError(f"{path} is not there: give a folder with the tasks' data, a text file, or {HUB}")
    if text is None:
        try:
            text = file.read_text(encoding="utf-8") if file.is_file() else builtin_text()
        except (OSError, UnicodeDecodeError) as error:
            raise TetherError(f"{file} cannot be read ({error}): give a text file in UTF-8") from None
    return AbilityData(text, folder=path if path.is_dir() else None)


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
            found = [packaged_task(name, data.folder, hub=data.hub, limit=wanted)]
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


@dataclass(frozen=True)
class Speed:
    """Seconds a token read, a generated token (a step of a batch), and each row of the batch in it."""

    read: float
    step: float
    row: float

    def seconds(self, work: Work) -> float:
        return self.read * work.read + self.step * work.steps + self.row * work.rows


def probe(model: EditableModel) -> Speed:
    """Time the model as it is now, which is not changed: some 300 tokens read and a few generated."""
    text = builtin_text()
    ids = tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"][: min(_READ, model.limit or _READ)])
    score_ids(model, [Continuation(ids[:16], 1)])  # the first forward is slower than any other
    read = timeit(lambda: score_ids(model, [Continuation(ids, 1)]), number=1) / len(ids)
    starts = [text[40 * row : 40 * row + 30] for row in range(_ROWS)]

    def step(prompts: list[str]) -> float:
        """The seconds one more token takes for all prompts of a batch together."""
        few, many = (timeit(partial(greedy, model, prompts, tokens), number=1) for tokens in (1, 1 + _STEPS))
        return (many - few) / _STEPS

    one = step(starts[:1])
    row = max(0.0, (step(starts) - one) / (_ROWS - 1))
    return Speed(read, max(0.0, one - row), row)


def in_words(seconds: float) -> str:
    """About so long, for a person."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
