"""Prompts that a file or a stream gives, one a line: plain text, or JSON lines of texts and chat turns.

read_prompts("prompts.txt")     # ["The capital of France is", …]
read_prompts("turns.jsonl")     # [Turn(user="Who leads Velmora?", system=None), …]
"""

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tether.errors import BadFactError, pydantic_line
from tether.facts.prompt import Prompt, Turn
from tether.facts.records import Source, name_of, parsed, text_of

_PROMPT: TypeAdapter[str | Turn] = TypeAdapter(Prompt)


def lines_of(source: Source) -> list[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers. Raises BadFactError for a file that cannot be
    read."""
    return [(number, line) for number, line in enumerate(text_of(source).split("\n"), 1) if line.strip()]


def json_lines(lines: list[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """What every line holds, or the ValueError that it raised."""
    return ((number, parsed(line)) for number, line in lines)


def read_prompts(source: Source) -> list[str | Turn]:
    """The prompts of a file. They are JSON lines where the first one is a JSON text or object, else plain text. Raises
    BadFactError that names the first bad line."""
    lines = lines_of(source)
    as_json = bool(lines) and isinstance(parsed(lines[0][1]), str | dict)
    prompts = []
    for number, value in json_lines(lines) if as_json else lines:
        if isinstance(value, ValueError):
            raise BadFactError(
                f"{name_of(source)}, line {number}: no JSON, as the lines before it are ({value}): mend it"
            )
        try:
            prompts.append(_PROMPT.validate_python(value))
        except ValidationError as error:
            raise BadFactError(f"{name_of(source)}, line {number}: {pydantic_line(error)}") from None
    return prompts
