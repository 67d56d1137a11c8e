"""The records of a file of facts: JSON lines, a JSON array, a JSON object around them, or CSV with a header.

What a file is, its text says, never its name.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from tether.errors import BadFactError

Record = Mapping[str, Any]
Row = tuple[int | None, Any]  # line (None in a JSON array or object), and a record or the error that it raised
_LOOKED_FOR = (
    "looked for one JSON object a line, a JSON array, a JSON object that holds one list, and CSV with a header"
)


Source = str | Path | TextIO  # a file, or an open stream such as standard input


def name_of(source: Source) -> str:
    """What messages call a source of facts."""
    return str(source) if isinstance(source, str | Path) else "standard input"


def read_records(source: Source, known: Callable[[Record], bool]) -> Iterator[Row]:
    """Every record of a file. `known` says whether a format recognises a record's fields.

    Raises BadFactError for a file that no record can be read from.
    """
    path, text = name_of(source), text_of(source)
    start = text.lstrip()[:1]
    if start == "[":
        yield from ((None, record) for record in _whole(path, text))
    elif start == "{" and isinstance(document := parsed(text), dict):
        yield from _of_object(path, document, known)
    elif start != "{" and (rows := _of_csv(text, known)) is not None:
        yield from rows
    else:
        yield from _of_lines(path, text)


def text_of(source: Source) -> str:
    """The whole text of a source. Raises BadFactError for a file that cannot be read, or is not UTF-8."""
    try:
        text = Path(source).read_text(encoding="utf-8-sig") if isinstance(source, str | Path) else source.read()
        return text.removeprefix("\ufeff")
    except OSError as error:
        raise BadFactError(f"{name_of(source)} cannot be read ({error.strerror}): name a file that is there") from None
    except UnicodeDecodeError as error:
        raise BadFactError(f"{name_of(source)} is not UTF-8 text at byte {error.start}: save it as UTF-8") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ; of two equal ones json would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands in it more than once: keep one of them")
    return found


def parsed(text: str) -> Any:
    """What JSON text holds, or the ValueError it raises."""
    try:
        return json.loads(text, object_pairs_hook=_pairs)
    except ValueError as error:
        return error


def _whole(path: str, text: str) -> Any:
    document = parsed(text)
    if isinstance(document, json.JSONDecodeError):
        raise BadFactError(f"{path} is not a JSON array: {document.msg} at line {document.lineno}; mend it")
    if isinstance(document, ValueError):
        raise BadFactError(f"{path}: in one of its objects {document}")
    return document


def _of_object(path: str, document: dict[str, Any], known: Callable[[Record], bool]) -> Iterator[Row]:
    """One record, the one list of records in an object, or the objects that are its values."""
    if known(document):
        yield 1, document
        return
    values = list(document.values())
    lists = [value for value in values if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) > 1:
        lists = [value for value in lists if known(value[0])]
    if len(lists) == 1:
        yield from ((None, record) for record in lists[0])
    elif values and all(isinstance(value, dict) for value in values):
        yield from ((None, record) for record in values)
    else:
        keys = ", ".join(list(document)[:8])
        raise BadFactError(f"{path} is a JSON object of {keys}, with no list of facts among them: {_LOOKED_FOR}")


def _of_csv(text: str, known: Callable[[Record], bool]) -> Iterator[Row] | None:
    """The rows of a table whose header has the fields of a format; None where the text is no such table."""
    head = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(text.lstrip("\n"), newline=""), delimiter=delimiter, skipinitialspace=True)
    if not known(dict.fromkeys(reader.fieldnames or (), "")):
        return None
    return ((reader.line_num, _of_row(row)) for row in reader)


def _of_row(row: dict[str | None, Any]) -> Any:
    """A table's row: empty cells are left out, a cell that holds a JSON list or object is read as one."""
    if None in row:
        return ValueError(f"{len(row[None])} cells more than the header names: quote a cell that holds the delimiter")
    found = {}
    for field, cell in row.items():
        if cell:
            value = parsed(cell) if cell[0] in "[{" else cell
            found[field] = cell if isinstance(value, ValueError) else value
    return found


def _of_lines(path: str, text: str) -> Iterator[Row]:
    """One object a line. A line that is no JSON comes as the error it raised, unless no line is."""
    rows = [(line, parsed(row)) for line, row in enumerate(text.split("\n"), 1) if row.strip()]
    if rows and all(isinstance(found, json.JSONDecodeError) for _, found in rows) and len(rows) > 1:
        where = parsed(text)
        raise BadFactError(
            f"{path} is not JSON ({where}), nor a table whose header names subject and prompt: {_LOOKED_FOR}"
        )
    yield from rows
