"""results.json: what was measured, a row for every number of edits and restraint, and one record an item beside it.

Rows are pydantic models of exactly what the file holds; numbers that are not finite are null. The format grows by
optional fields: those that this version does not know are left out, with a warning.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator

from tether.errors import TetherError, pydantic_line
from tether.evaluation.statistics.mean import Number, Record
from tether.storage.atomic import finite, write_atomically

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it where a file can no longer be read by leaving out what is unknown
IN_CONTEXT = "in-context"  # the restraint of a row of the unedited model with the facts in its prompts
AS_IT_IS = "as it is"  # the restraint of a row of a model that came without a ledger

RowKey = tuple[int, str]


class Ability(BaseModel):
    """A general ability: `n` items (tokens for perplexity)."""

    value: float | None
    n: int
    stderr: float | None
    unit: Literal["percent", "ppl"]


class Singular(BaseModel):
    """Extreme singular values of a weight, κ, and the largest of its update."""

    sigma_max: float | None
    sigma_min: float | None
    kappa: float | None
    update_sigma_max: float | None


class Recent(BaseModel):
    """The editing metrics of the last `edits` facts alone: what a sequence does to the facts before them shows in the
    difference to all."""

    edits: int
    editing: dict[str, dict[str, Number]]


class Told(BaseModel):
    """The `facts` that stood in the prompts of a row; where not all of them fit, `fewest` of the nearest did."""

    facts: int
    fewest: int


class Row(BaseModel):
    """The model after `edits` edits under `restraint`; `replayed`: the journal with the restraints recorded in it.

    Under AS_IT_IS `edits` is the number of facts, and 0 for a model of which nothing says that it was edited. Under
    IN_CONTEXT nothing is edited: `edits` facts stand in every prompt, and `told` says how many of them fit.
    `relations`: the editing metrics of the facts of every relation.
    """

    edits: int
    restraint: str
    replayed: bool
    editing: dict[str, dict[str, Number]] = {}
    recent: Recent | None = Field(default=None, exclude_if=lambda recent: recent is None)
    relations: dict[str, dict[str, dict[str, Number]]] | None = Field(default=None, exclude_if=lambda its: its is None)
    told: Told | None = Field(default=None, exclude_if=lambda told: told is None)
    retention: list[tuple[int, float]] = []
    abilities: dict[str, Ability] = {}
    spectrum: dict[str, Singular] = {}

    @property
    def key(self) -> RowKey:
        return self.edits, self.restraint

    @property
    def unedited(self) -> bool:
        """Whether this is known to be the model before its first edit."""
        return self.edits == 0 and self.restraint != AS_IT_IS


class Results(BaseModel):
    """A results file. `facts_sha256` is of the facts in order, prompts included; `settings`: what the numbers depend on
    besides model and facts. `strengths`: of restraints written with auto, what was found and the curve."""

    format: int = FORMAT
    model: str
    ledger: str | None
    facts_sha256: str
    versions: dict[str, str]
    settings: dict[str, Any]
    strengths: dict[str, Any] | None = Field(default=None, exclude_if=lambda found: found is None)
    rows: list[Row] = []
    _file: Path | None = PrivateAttr(default=None)  # has the items of the rows that are there
    _items: list[Record] = PrivateAttr(default_factory=list)  # of rows that are in no file

    @field_validator("format")
    @classmethod
    def _known(cls, number: int) -> int:
        if number > FORMAT:
            raise TetherError(f"results of format {number}: open them with a newer tether")
        return number

    @property
    def items(self) -> list[Record]:
        """One record an item of the rows; those that lie in a file are read with every call."""
        keys = {row.key for row in self.rows}
        stored = () if self._file is None else _stored_items(self._file)
        return [item for item in chain(stored, self._items) if (item["edits"], item["restraint"]) in keys]

    @items.setter
    def items(self, items: Iterable[Record]) -> None:
        self._items, self._file = list(items), None

    def comparable(self, other: Results) -> bool:
        """Whether rows of both were measured in the same way on the same facts of the same edits."""
        return all(getattr(self, name) == getattr(other, name) for name in ("model", "facts_sha256", "settings"))

    def add(self, row: Row, items: Iterable[Record]) -> None:
        """Take in a row and its items; rows stay in order of edits."""
        self.rows.append(row)
        self.rows.sort(key=lambda row: row.edits)
        self._items += _of_row(row, items)


class ResultsFile:
    """A results file that grows row by row. The items of a row are appended, then results.json is written with the row:
    a killed run leaves at most items without a row, which reading leaves out. `results` has the rows of the file that
    are kept. Nothing is written before the first row."""

    def __init__(self, path: Path, results: Results) -> None:
        self._path, self._results, self._begun = path, results, False
        results._file = path

    def add(self, row: Row, items: Iterable[Record]) -> None:
        """Take a row into the results and the files."""
        file = items_path(self._path)
        if not self._begun:  # only the rows that are kept, and their items
            _write_rows(self._results, self._path)
            write_atomically(file, _lines(self._results.items))
            self._begun = True
        with file.open("ab") as handle:
            handle.write(_lines(_of_row(row, items)))
            handle.flush()
            os.fsync(handle.fileno())
        self._results.add(row, ())
        _write_rows(self._results, self._path)


def items_path(path: Path) -> Path:
    """results.json -> results.items.jsonl"""
    return path.with_name(f"{path.stem}.items.jsonl")


def write(results: Results, path: str | Path) -> None:
    """Write the items, then the results, each under a temporary name first, so that whatever is there is whole."""
    path = Path(path)
    write_atomically(items_path(path), _lines(results.items))
    _write_rows(results, path)


def read(path: str | Path) -> Results:
    """A results file; its items are read when they are asked for (none where their file is missing). Raises TetherError
    for anything else."""
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
        results = Results.model_validate(content)
    except OSError as error:
        raise TetherError(f"{path} cannot be read ({error.strerror}): name a results file of tether evaluate") from None
    except ValueError as error:
        why = pydantic_line(error) if isinstance(error, ValidationError) else error
        raise TetherError(f"{path} is no results file ({why}): make it with tether evaluate") from None
    unknown = content.keys() - Results.model_fields.keys()
    unknown |= {name for row in content.get("rows", ()) for name in row.keys() - Row.model_fields.keys()}
    if unknown:
        logger.warning("%s: %s not known to this version, and left out", path, ", ".join(sorted(unknown)))
    results._file = path
    return results


def _write_rows(results: Results, path: Path) -> None:
    write_atomically(path, (results.model_dump_json(indent=2) + "\n").encode())


def _of_row(row: Row, items: Iterable[Record]) -> list[Record]:
    key = {"edits": row.edits, "restraint": row.restraint}
    return [{**key, **item, **key} for item in items]


def _lines(items: Iterable[Record]) -> bytes:
    return "".join(json.dumps(finite(item), ensure_ascii=False) + "\n" for item in items).encode()


def _stored_items(path: Path) -> Iterator[Record]:
    """The items beside a results file. A last line without its end is what a killed run left, and is left out. Raises
    TetherError for damage."""
    file = items_path(path)
    try:
        with file.open("rb") as handle:  # in bytes: text would also split at line ends inside a record
            yield from (json.loads(line) for line in handle if line.endswith(b"\n"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise TetherError(f"{file} cannot be read ({error.strerror}): mend that, or remove it") from None
    except ValueError as error:
        raise TetherError(f"{file} is damaged ({error}): remove it and evaluate again") from None
