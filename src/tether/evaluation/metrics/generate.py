"""`generate`: does the model, left to itself, say the answer?

The greedy continuation must contain the target as whole words, whatever the case, before its first sentence ends.
"""

import re
from collections.abc import Sequence
from types import MappingProxyType

from tether.evaluation.metrics.base import KINDS, Asked, Item, Metric
from tether.evaluation.scores import greedy
from tether.evaluation.statistics.mean import Record
from tether.models.editable import EditableModel

_TOKENS = 20  # generated at least; a longer target is given room


class Generate(Metric):
    """Whether the greedy continuation says the answer, of every prompt that has one."""

    name = "generate"
    reports = MappingProxyType({"generate": KINDS})
    columns = (("generate", "efficacy"),)
    holds = "generate"

    def measure(self, asked: Asked) -> list[Record]:
        wanted = [item for item in asked.items if item.answer is not None]
        return [
            item.record("generate", says(text, str(item.answer)), continuation=text)
            for item, text in zip(wanted, continuations(asked.model, wanted), strict=True)
        ]


def continuations(model: EditableModel, items: Sequence[Item]) -> list[str]:
    """The greedy continuation of every item's prompt, as long as the longest answer needs."""
    if not items:
        return []
    answers = list(dict.fromkeys(f" {item.answer}" for item in items))
    longest = max(len(ids) for ids in model.tokenizer(answers, add_special_tokens=False)["input_ids"])
    return greedy(model, [item.prompt for item in items], max(_TOKENS, longest + 4))


def says(continuation: str, target: str) -> bool:
    """Whether a continuation contains the target, as whole words, whatever the case, before its first sentence ends.

    A sentence ends with . ! or ? before white space or the end of the text, and with a line. Blanks and line ends
    before the first word do not count, and what the target itself contains ("St. Petersburg") ends nothing.
    """
    text = continuation.lstrip()
    words = r"\s+".join(re.escape(word) for word in target.split())
    found = re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE)
    return found is not None and re.search(r"[.!?](?=\s)|\n", text[: found.start()]) is None


METRIC = Generate()
