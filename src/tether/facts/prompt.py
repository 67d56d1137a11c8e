"""A prompt as text: the place of its subject, and what stands between it and what follows it, in any script.

joint("The capital of France is", "Paris")      # " "
joint("The monthly price of the paper is $", "72")      # ""
joint("法国的首都是", "巴黎")      # ""
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import regex
from pydantic import BaseModel, BeforeValidator

PLACE = "{}"  # where the subject goes
LITERAL = "{{}}"  # two braces that are text

EAST_ASIAN = r"\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{Yi}\p{ea=F}"  # full-width marks as well
UNSPACED = (  # scripts that do not separate their words
    EAST_ASIAN + r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Balinese}"
    r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}"
)
_PLACE = regex.compile(r"(?<!\{)\{\}|\{\}(?!\})")
_UNSPACED = regex.compile(f"[{UNSPACED}]")
_AFTER_EAST_ASIAN = regex.compile(rf"[{EAST_ASIAN}][^\p{{L}}\s]*\Z")  # marks and digits may follow it
# What has no space behind it: white space and invisible marks; full-width letters and marks; opening brackets; a
# currency sign that no number stands before; a quote, @ or # that begins a word; a tag, as templates end with.
_OPEN = regex.compile(
    rf"(?:^|[\s\p{{Cf}}]|[{EAST_ASIAN}]|[\p{{Ps}}¿¡]"
    r"|(?<!\d\s?)\p{Sc}"
    rf"""|(?<=^|[\s\p{{Ps}}\p{{Pi}}\p{{Pd}}:={EAST_ASIAN}])["'`\p{{Pi}}\p{{Pf}}@#]"""
    r"|(?<!\w)<\w+>|<([|｜])[^<>]+\1>)\Z"
)
_CLOSED = regex.compile(r"«[^«»]*\s»\Z")  # as French writes it


def around_subject(prompt: str) -> tuple[str, str]:
    """The text before and after the subject. `{}` is its place, and `{{}}` a literal `{}`; where nothing else is the
    place, `{{}}` is, in braces. Raises ValueError unless there is exactly one place."""
    parts = [part.replace(LITERAL, PLACE) for part in _PLACE.split(prompt)]
    if len(parts) == 1:
        parts = prompt.split(PLACE)
    if len(parts) != 2:
        rule = "must contain exactly one '{}', the place of the subject; a literal one is written '{{}}'"
        raise ValueError(f"prompt {prompt!r} {rule}")
    return parts[0], parts[1]


def joint(prompt: str, continuation: str, join: str | None = None) -> str:
    """What stands between a prompt and what follows it: `join` where given, else one space, or nothing.

    Nothing after white space, an opening mark or a tag, after a full-width character, between two characters of scripts
    that do not separate words, and before a continuation that begins with white space of its own.
    """
    if join is not None:
        return "" if join == " " and prompt.endswith(" ") else join
    first = continuation[:1]
    if first.isspace() or (_OPEN.search(prompt) and not _CLOSED.search(prompt)):
        return ""
    unspaced = _UNSPACED.match(first) and _UNSPACED.match(prompt[-1:])
    marked = regex.match(f"[{EAST_ASIAN}]", first) and _AFTER_EAST_ASIAN.search(prompt)
    return "" if unspaced or marked else " "


def without_blanks(prompt: str) -> str:
    """A prompt without the spaces at its end, where a space follows anyway. Elsewhere ("$ ") they are text."""
    bare = prompt.rstrip(" ")
    return prompt if _OPEN.search(bare) or _UNSPACED.match(bare[-1:]) else bare


def as_prompt(before: str, after: str) -> str:
    """The prompt of which `around_subject` gives these two."""
    return PLACE.join(part.replace(PLACE, LITERAL) for part in (before, after))


class Turn(BaseModel, frozen=True, extra="forbid"):
    """What a user says to a chat model, behind an optional system prompt. The model's own chat template makes the text
    of it (`tether.facts.chat`)."""

    user: str
    system: str | None = None

    def __str__(self) -> str:
        return self.user if self.system is None else f"{self.user} (system: {self.system})"


def checked_prompt(value: Any) -> Any:
    """A prompt as a file gives it: text without the spaces at its end, or an object with `user` and `system`."""
    if isinstance(value, Mapping):
        unknown = ", ".join(map(str, value.keys() - Turn.model_fields.keys()))
        if unknown or "user" not in value:
            what = f"not {unknown}" if unknown else "with 'user'"
            raise ValueError(f"a chat turn is {{'user': …, 'system': …}}, {what}: {dict(value)!r}")
    turn = value if isinstance(value, Turn) else Turn(**value) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        said = value = without_blanks(value)
    elif turn is None:
        raise ValueError(f"{value!r} is no prompt: write text, or {{'user': …}} for a chat turn")
    else:
        said = turn.user
        value = Turn(user=turn.user, system=(turn.system or "").strip() or None)
    if not said.strip():
        raise ValueError(f"prompt {said!r} is empty: write one or leave it out")
    return value


Prompt = Annotated[str | Turn, BeforeValidator(checked_prompt)]


def said_in(prompt: str | Turn) -> str:
    """The text of a prompt; of a chat turn what the user says."""
    return prompt.user if isinstance(prompt, Turn) else prompt


def about(prompt: str | Turn, subject: str) -> str | Turn:
    """A prompt with a place, asked of a subject."""
    if isinstance(prompt, str):
        return subject.join(around_subject(prompt))
    return Turn(user=subject.join(around_subject(prompt.user)), system=prompt.system)
