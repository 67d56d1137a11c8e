"""How long measuring will take: a short timed probe of the model, and what the work comes to at that speed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tether.evaluation.abilities.perplexity import builtin_text
from tether.evaluation.abilities.task import Work
from tether.evaluation.scores import greedy, score_ids
from tether.facts.tokens import Continuation
from tether.models.editable import EditableModel

_READ = 256  # tokens read by the probe
_STEPS, _ROWS = 4, 8  # its generated tokens, and rows of its second batch


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
    read = _timed(lambda: score_ids(model, [Continuation(ids, 1)])) / len(ids)
    starts = [text[40 * row : 40 * row + 30] for row in range(_ROWS)]
    # The seconds one more token takes for all prompts of a batch together.
    one, many = (
        (_timed(partial(greedy, model, rows, _STEPS + 1)) - _timed(partial(greedy, model, rows, 1))) / _STEPS
        for rows in (starts[:1], starts)
    )
    row = max(0.0, (many - one) / (_ROWS - 1))
    return Speed(read, max(0.0, one - row), row)


def in_words(seconds: float) -> str:
    """About so long, for a person."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
