"""results.json: what was measured, a row for every number of edits and restraint, and one record an item beside it.

Rows are pydantic models of exactly what the file holds; numbers that are not finite stand as null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tether.errors import TetherError
from tether.evaluation.statistics.mean import Measure, Record
from tether.facts.fact import Fact
from tether.storage.atomic import finite, write_atomically


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Number(_Strict):
    """A mean in percent over `n` facts with `prompts` prompts, and its standard error."""

    value: float | None
    n: int
    stderr: float | None
    prompts: int


class YesShare(Number):
    """A share of prompts answered Yes; `neither` of them with neither Yes nor No, which counts as Yes."""

    neither: int


class Ability(_Strict):
    """A general ability: `n` items (tokens for perplexity)."""

    value: float | None
    n: int
    stderr: float | None
    unit: Literal["percent", "ppl"]


def number(found: Measure) -> Number:
    """A measure as it stands in a row."""
    return (YesShare if "neither" in found else Number).model_validate(found)


class Singular(_Strict):
    """Extreme singular values of a weight, κ, and the largest of its update."""

    sigma_max: float | None
    sigma_min: float | None
    kappa: float | None
    update_sigma_max: float | None


class Row(_Strict):
    """The model after `edits` edits under `restraint`; `replayed`: the journal with the restraints recorded in it."""

    edits: int
    restraint: str
    replayed: bool
    editing: dict[str, dict[str, YesShare | Number]] = {}
    retention: list[tuple[int, float]] = []
    abilities: dict[str, Ability] = {}
    spectrum: dict[str, Singular] = {}

    @property
    def key(self) -> tuple[int, str]:
        return self.edits, self.restraint


class Results(_Strict):
    """A results file. `settings`: what the numbers depend on besides model and facts; `items` go to their own file."""

    model: str
    ledger: str | None
    facts_sha256: str
    versions: dict[str, str]
    settings: dict[str, Any]
    rows: list[Row] = []
    items: list[Record] = Field(default=[], exclude=True, repr=False)

    def comparable(self, other: Results) -> bool:
        """Whether rows of both were measured in the same way on the same facts of the same edits."""
        return all(getattr(self, name) == getattr(other, name) for name in ("model", "facts_sha256", "settings"))

    def add(self, row: Row, items: Iterable[Record]) -> None:
        """Take in a row and its items; rows stay in order of edits."""
        self.rows.append(row)
        self.rows.sort(key=lambda row: row.edits)
        self.items += [{"edits": row.edits, "restraint": row.restraint, **item} for item in items]


def facts_sha256(facts: Iterable[Fact]) -> str:
    """Identity of a list of facts, their prompts included, in order."""
    return hashlib.sha256("".join(fact.sha256 for fact in facts).encode()).hexdigest()


def items_path(path: Path) -> Path:
    """results.json -> results.items.jsonl"""
    return path.with_name(f"{path.stem}.items.jsonl")


def write(results: Results, path: str | Path) -> None:
    """Write the items, then the results, each under a temporary name first, so that whatever is there is whole."""
    path = Path(path)
    lines = (json.dumps(finite(item), ensure_ascii=False) + "\n" for item in results.items)
    for file, text in ((items_path(path), "".join(lines)), (path, results.model_dump_json(indent=2) + "\n")):
        write_atomically(file, text.encode())


def read(path: str | Path) -> Results:
    """A results file with its items (none where their file is missing). Raises TetherError for anything else."""
    path = Path(path)
    try:
        results = Results.model_validate_json(path.read_bytes())
        items = items_path(path)
        if items.exists():
            lines = items.read_text(encoding="utf-8").split("\n")  # splitlines would also split inside a text
            results.items = [json.loads(line) for line in lines if line]
    except OSError as error:
        raise TetherError(f"{path} cannot be read ({error.strerror}): name a results file of tether evaluate") from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        raise TetherError(
            f"{path} is no results file ({where}: {error.errors()[0]['msg']}): make it with tether evaluate"
        ) from None
    except ValueError as error:
        raise TetherError(f"{items_path(path)} is damaged ({error}): remove it and evaluate again") from None
    return results
