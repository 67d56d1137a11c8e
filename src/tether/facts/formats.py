"""Files of facts: each record's format is recognised from its fields, never from the file's name.

    facts = read_facts("facts.jsonl")
    records = scan_facts("facts.jsonl")        # every record: a Fact, or a BadRecord that says what is wrong

A file is a JSON array or one JSON object a line. To add a format, make a `Format` and declare it as an entry point of
the group `tether.fact_formats`.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from tether.errors import BadFactError, BadSettingsError
from tether.facts.fact import Fact
from tether.plugins import Registry

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot become a fact. `str()` names the file, the record (counted from 1), its line, and the rule.
    `line` is None in a JSON array."""

    file: str
    number: int
    line: int | None
    problem: str

    def __str__(self) -> str:
        line = f" (line {self.line})" if self.line else ""
        return f"{self.file}, record {self.number}{line}: {self.problem}"


@dataclass(frozen=True)
class Format:
    """A format of facts. `recognises` looks at a record's fields. `read` makes the fact of a record that it recognises:
    a KeyError names a missing field, a ValueError any other fault. `source`: who published it, and where it is
    described. `rephrased` is false where the paraphrases mostly ask something else than the edit prompt."""

    name: str
    recognises: Callable[[Record], bool]
    read: Callable[[Record], Fact]
    source: str
    rephrased: bool = True


FORMATS: Registry[Format] = Registry(
    "tether.fact_formats",
    "format of facts",
    Format,
    {
        "CounterFact": "tether.facts.published:COUNTERFACT",
        "zsRE": "tether.facts.published:ZSRE",
        "ConceptEdit final": "tether.facts.published:CONCEPT_FINAL",
        "ConceptEdit concepts": "tether.facts.published:CONCEPT_DATA",
        "flat CounterFact": "tether.facts.published:COUNTERFACT_FLAT",
        "tether": "tether.facts.published:OWN",
    },
)


def recognise(record: Record) -> Format:
    """The format of a record. Raises ValueError where no format recognises it.

    A record that has the fields of a Fact alone is tether's own. The published formats are asked next, those of other
    packages after them, and tether's own last, so that it names the fields it does not know.
    """
    own = FORMATS["tether"]
    if record.keys() <= Fact.model_fields.keys() and own.recognises(record):
        return own
    for name in sorted(FORMATS, key=lambda name: name == own.name):
        if FORMATS[name].recognises(record):
            return FORMATS[name]
    raise ValueError(f"fields {sorted(record)} belong to no known format: use one of {', '.join(FORMATS)}")


def read_facts(path: str | Path, limit: int | None = None, on_bad: Literal["raise", "skip"] = "raise") -> list[Fact]:
    """The facts of a file, in its order; the first `limit` of them where given.

    A record that cannot become a fact (an empty or missing field, a subject not in its prompt) raises a BadFactError
    that names it, so that no fact is lost unseen; `on_bad="skip"` leaves it out with a warning instead, and `limit`
    then counts the facts, not the records.
    """
    if limit is not None and limit < 1:
        raise BadSettingsError(f"limit {limit}: at least one fact must be read; give no limit to read all")
    facts = list(islice(_good(_scan(Path(path)), on_bad), limit))
    if not facts:
        raise BadFactError(f"{path} holds no fact: write one JSON object a line with subject, prompt and target_new")
    return facts


def read_training_facts(path: str | Path) -> list[Fact]:
    """The facts of a file to train an editor on, bad records left out with a warning. Where a format's paraphrases
    mostly ask something else, they are left out too."""
    facts = list(_good(_scan(Path(path), only_rephrased=True), "skip"))
    if not facts:
        raise BadFactError(f"{path} holds no fact to train on: give a file in the format of zsRE or CounterFact")
    return facts


def scan_facts(path: str | Path, limit: int | None = None) -> list[Fact | BadRecord]:
    """Every record of a file (the first `limit`): a Fact, or a BadRecord. Raises only for a file no record can be read
    from (missing, not UTF-8, a damaged JSON array)."""
    return list(islice(_scan(Path(path)), limit))


def _good(records: Iterable[Fact | BadRecord], on_bad: Literal["raise", "skip"]) -> Iterator[Fact]:
    for record in records:
        if isinstance(record, Fact):
            yield record
        elif on_bad == "raise":
            raise BadFactError(str(record))
        else:
            logger.warning("skipped: %s", record)


def _scan(path: Path, *, only_rephrased: bool = False) -> Iterator[Fact | BadRecord]:
    """Every record of a file. The format is logged where it is met first."""
    met: set[str] = set()
    for number, (line, record) in enumerate(_records(path), 1):
        try:
            found = _format(record)
            if found.name not in met:
                met.add(found.name)
                logger.info("%s: facts in the format %s (%s)", path, found.name, found.source)
            fact = _read(found, record)
        except ValueError as error:
            problem = _invalid(error) if isinstance(error, ValidationError) else str(error)
            printable = problem.encode("utf-8", "backslashreplace").decode("utf-8")  # half of a surrogate pair too
            yield BadRecord(str(path), number, line, printable)
            continue
        yield fact if found.rephrased or not only_rephrased else fact.model_copy(update={"paraphrases": ()})


def _records(path: Path) -> Iterator[tuple[int | None, Any]]:
    """(line, record) of a JSON array or of JSON lines; a line that is no JSON comes as the error it raised."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadFactError(f"{path} cannot be read ({error.strerror}): name a file of facts") from None
    except UnicodeDecodeError as error:
        raise BadFactError(f"{path} is not UTF-8 text at byte {error.start}: save it as UTF-8") from None
    if text.lstrip().startswith("["):
        try:
            yield from ((None, record) for record in json.loads(text))
        except json.JSONDecodeError as error:
            raise BadFactError(f"{path} is not a JSON array: {error.msg} at line {error.lineno}; mend it") from None
        return
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            try:
                yield line, json.loads(row)
            except json.JSONDecodeError as error:
                yield line, error


def _format(record: Any) -> Format:
    if isinstance(record, json.JSONDecodeError):
        raise ValueError(
            f"not JSON at column {record.colno} ({record.msg}): write one object a line, or one JSON array"
        )
    if not isinstance(record, dict):
        raise ValueError(f"{json.dumps(record)[:60]} is not a JSON object: write {{'subject': …, 'prompt': …, …}}")
    return recognise(record)


def _read(found: Format, record: Record) -> Fact:
    """The fact of a record; every fault of the record is a ValueError."""
    try:
        return found.read(record)
    except KeyError as error:
        raise ValueError(f"field {error.args[0]!r} is missing: every record of {found.name} has it; add it") from None
    except (LookupError, TypeError, AttributeError) as error:
        rule = f"a field has not the shape it has in {found.name} ({error}): compare the record with a published one"
        raise ValueError(rule) from None


def _invalid(error: ValidationError) -> str:
    """What pydantic found, in our words; several finds of one record stay on one line."""
    finds, unknown = [], []
    for part in error.errors():
        field = ".".join(map(str, part["loc"]))
        if part["type"] == "missing":
            finds.append(f"field {field!r} is missing: a fact needs subject, prompt and target_new; add it")
        elif part["type"] == "extra_forbidden":
            unknown.append(field)
        elif part["type"] == "value_error":
            finds.append(str(part["ctx"]["error"]))
        else:
            finds.append(f"field {field!r} is {part['input']!r}: {part['msg'].lower()}")
    if unknown:
        known = ", ".join(Fact.model_fields)
        finds.append(f"fields a fact does not have: {', '.join(unknown)}; rename or remove them, it has {known}")
    return "; ".join(finds)
