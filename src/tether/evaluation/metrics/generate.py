"""`generate`: does the model, left to itself, say the answer?

The greedy continuation must contain the target before its first sentence ends; `says` has the rules.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from types import MappingProxyType

import regex

from tether.evaluation.metrics.base import KINDS, Asked, Item, Metric
from tether.evaluation.statistics.mean import Record
from tether.facts.chat import special_tokens
from tether.facts.prompt import UNSPACED
from tether.models.editable import EditableModel

_UNSPACED = regex.compile(f"[{UNSPACED}]")
_LETTER = rf"(?V1:[[\w\p{{M}}]--[{UNSPACED}]])"  # of a script that separates words
_SENTENCE_END = regex.compile(r"(?V1)[.!?…‥](?=\s)|．(?!\d)|[\p{Sentence_Terminal}།--[.!?．]]|\n")
_TOKENS = 20  # generated at least; a longer target is given room


class Generate(Metric):
    """Whether the greedy continuation says the answer, of every prompt of plain text that has one."""

    name = "generate"
    reports = MappingProxyType({"generate": KINDS})
    columns = (("generate", "efficacy"),)
    holds = "generate"

    def measure(self, asked: Asked) -> list[Record]:
        wanted = in_text(asked.items)
        return [
            item.record("generate", says(text, said(asked.model, item)), continuation=text)
            for item, text in zip(wanted, continuations(asked, wanted), strict=True)
        ]


def in_text(items: Iterable[Item]) -> list[Item]:
    """The items that are plain text and have an answer."""
    return [item for item in items if item.answer is not None and item.turn is None]


def continuations(asked: Asked, items: Sequence[Item]) -> list[str]:
    """The greedy continuation of every item's prompt, as long as the longest answer needs."""
    if not items:
        return []
    answers = list(dict.fromkeys(str(item.answer) for item in items))
    longest = max(len(ids) for ids in asked.model.tokenizer(answers, add_special_tokens=False)["input_ids"])
    return asked.greedy([item.asked for item in items], max(_TOKENS, longest + 4))


def said(model: EditableModel, item: Item) -> str:
    """What must be found of an item's answer: special tokens, as an end of turn, are no part of it."""
    tokens = regex.compile(r"\L<tokens>", tokens=list(special_tokens(model.tokenizer)))
    return str(tokens.sub("", str(item.answer)))


def says(continuation: str, target: str) -> bool:
    """Whether a continuation contains the target, as whole words, whatever the case, before its first sentence ends.

    A word ends anywhere beside a script that does not separate its words, and a number neither before nor behind the
    mark of its decimals or thousands. A sentence ends with . ! ? … before white space, with the full stop of any other
    script, and with a line. Blanks and line ends before the first word do not count, and what the target itself
    contains ("St. Petersburg") ends nothing. Of an empty target nothing may be said.
    """
    text, wanted = _folded(continuation).strip(), _folded(target).split()
    if not wanted:
        return not text
    found = _found(text, wanted)
    return found is not None and _SENTENCE_END.search(text, endpos=found.start()) is None


def mentions(text: str, target: str) -> bool:
    """Whether a text contains the target as `says` has it, in any of its sentences; never an empty one."""
    wanted = _folded(target).split()
    return bool(wanted) and _found(_folded(text), wanted) is not None


def _found(text: str, wanted: Sequence[str]) -> regex.Match[str] | None:
    """The first place where the words of a target stand in a text, both folded."""
    words = r"\s+".join(map(regex.escape, wanted))
    return regex.search(rf"{_starts(wanted[0][0])}{words}{_ends(wanted[-1][-1])}", text)


def _folded(text: str) -> str:
    """The same for texts that differ in case, or in how their characters are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _starts(first: str) -> str:
    """What must hold before the first character of a target: no word, and no number, goes on there."""
    separate = "" if _UNSPACED.match(first) else f"(?<!{_LETTER})"
    return separate + (r"(?<!\d[.,٫٬'’])" if first.isdecimal() else "")


def _ends(last: str) -> str:
    """The same behind its last character; a mark there belongs to that character, in any script."""
    separate = r"(?!\p{M})" if _UNSPACED.match(last) else f"(?!{_LETTER})"
    return separate + (r"(?![.,٫٬'’]\d)" if last.isdecimal() else "")


METRIC = Generate()
