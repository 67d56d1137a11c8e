"""What stands between a prompt and its answer: one space, or nothing where nobody would write one."""

import re
import unicodedata

_PLACE = re.compile(r"(?<!\{)\{\}(?!\})")  # of the subject; a literal {} is written {{}}
_SPECIAL = re.compile(r"<[|｜][^<>\s]*[|｜]>$")  # a chat template's own mark, as <|assistant|>
_QUOTES = "\"'`"
_UNSPACED = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "YI ", "FULLWIDTH", "THAI", "LAO",
    "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI", "JAVANESE", "BALINESE",
)  # fmt: skip


def unspaced(character: str) -> bool:
    """Whether a character belongs to a script that does not separate words, or is a mark of its width."""
    return not character.isascii() and unicodedata.name(character, "").startswith(_UNSPACED)


def joint(prompt: str, answer: str) -> str:
    """What the rule puts between them: "" after white space, an opening mark (bracket, quote, currency sign), the mark
    of a chat template or a script that does not separate words, and before white space; else one space."""
    if not prompt or answer[:1].isspace():
        return ""
    last, before = prompt[-1], prompt[-2:-1]
    opens = not before or before.isspace() or unicodedata.category(before) in ("Ps", "Pi", "Pd", "Sc")
    category = unicodedata.category(last)
    if last.isspace() or category in ("Ps", "Pi") or last in "¿¡" or unspaced(last) or _SPECIAL.search(prompt):
        return ""
    if category == "Sc":  # "$" opens what follows it; in "5 €" it closes
        return " " if prompt[:-1].rstrip()[-1:].isdigit() else ""
    return "" if opens and (last in _QUOTES or last in "#@") else " "


def split_prompt(prompt: str) -> tuple[str, str]:
    """The text before the place of the subject, `{}`, and after it. A literal {} is written {{}}. Raises ValueError
    unless there is exactly one place."""
    parts = _PLACE.split(prompt)
    if len(parts) != 2:
        raise ValueError(
            f"prompt {prompt!r} must contain exactly one '{{}}', the place of the subject; a literal {{}} is written "
            "{{}}"
        )
    before, after = (part.replace("{{}}", "{}") for part in parts)
    return before, after


def as_prompt(before: str, after: str) -> str:
    """The prompt of which `split_prompt` gives these two."""
    return "{}".join(part.replace("{}", "{{}}") for part in (before, after))
