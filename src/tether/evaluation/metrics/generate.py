"""`generate`: does the model, left to itself, say the answer?

The greedy continuation must contain the target before its first sentence ends; `says` has the rules.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from types import MappingProxyType

from tether.evaluation.metrics.base import KINDS, Asked, Item, Metric
from tether.evaluation.scores import greedy
from tether.evaluation.statistics.mean import Record
from tether.facts.joint import unspaced
from tether.models.editable import EditableModel

_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[\n。！？｡؟۔।॥።։]")
_DECIMAL_MARKS = ".,٫٬"
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
            item.record(
                "generate", says(text, str(item.answer), asked.model.tokenizer.all_special_tokens), continuation=text
            )
            for item, text in zip(wanted, continuations(asked.model, wanted), strict=True)
        ]


def continuations(model: EditableModel, items: Sequence[Item]) -> list[str]:
    """The greedy continuation of every item's prompt, as long as the longest answer needs."""
    if not items:
        return []
    answers = list(dict.fromkeys(str(item.answer) for item in items))
    longest = max(len(ids) for ids in model.tokenizer(answers, add_special_tokens=False)["input_ids"])
    return greedy(model, [item.prompt for item in items], max(_TOKENS, longest + 4))


def says(continuation: str, target: str, special: Iterable[str] = ()) -> bool:
    """Whether a continuation contains the target before its first sentence ends, whatever the case and composition.

    The target must stand as whole words where a script separates words, and as a whole number: 49 is not said by
    49.99. `special` are the tokenizer's special tokens, which are no part of what must be said. A sentence ends with
    . ! or ? before white space or the end of the text, with the full stop of another script, and with a line. White
    space before the first word does not count, and what the target itself contains ("St. Petersburg") ends nothing.
    """
    for mark in special:
        target = target.replace(mark, "")
    text, words = _plain(continuation).lstrip(), _plain(target).split()
    for found in re.finditer(r"\s+".join(map(re.escape, words)), text) if words else ():
        before, after = text[: found.start()], text[found.end() :]
        if not (_goes_on(before[::-1], found[0][0]) or _goes_on(after, found[0][-1])):
            return _SENTENCE_END.search(before) is None
    return False


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _goes_on(rest: str, edge: str) -> bool:
    """Whether a word or number whose outermost character is `edge` goes on in `rest`, read away from it."""
    if not rest:
        return False
    if edge.isdigit() and rest[0] in _DECIMAL_MARKS and rest[1:2].isdigit():
        return True
    return _in_word(edge) and _in_word(rest[0])


def _in_word(character: str) -> bool:
    """Whether a character belongs to a word of a script that separates words."""
    marks = character == "_" or unicodedata.category(character)[0] in "LNM"
    return marks and not unspaced(character)


METRIC = Generate()
