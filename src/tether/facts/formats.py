"""Files of facts: each record's format is recognised from its fields, never from the file's name.

    facts = read_facts("facts.jsonl")
    records = scan_facts("facts.jsonl")        # every record: its facts, or a BadRecord that says what is wrong
    scan_facts("facts.jsonl").formats          # what was recognised, what each field became, what was not used

To add a format, make a `Format` and declare it as an entry point of the group `tether.fact_formats`.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from tether.errors import BadFactError, BadSettingsError
from tether.facts.fact import Fact
from tether.facts.records import Record, Source, name_of, read_records
from tether.plugins import Registry

logger = logging.getLogger(__name__)


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
    """A format of facts. `recognises` looks at a record's fields. `read` makes the fact, or the facts, of a record that
    it recognises: a KeyError names a missing field, a ValueError any other fault. `source`: who published it, and where
    it is described. `rephrased` is false where the paraphrases mostly ask something else than the edit prompt.
    `fields`: what each field of a record becomes; None where the format does not say."""

    name: str
    recognises: Callable[[Record], bool]
    read: Callable[[Record], Fact | Sequence[Fact]]
    source: str
    rephrased: bool = True
    fields: Mapping[str, str] | None = None


@dataclass
class FormatFound:
    """A format met in a file: how many records and facts it had, how often each of their fields was there, and how
    many targets were numbers or booleans (they are read as their JSON text)."""

    format: Format
    records: int = 0
    facts: int = 0
    present: Counter[str] = field(default_factory=Counter)
    numbers: int = 0

    @property
    def became(self) -> dict[str, str]:
        """Field -> what it becomes, of those that were there."""
        known = self.format.fields or {}
        return {name: becomes for name, becomes in known.items() if self.present[name]}

    @property
    def unused(self) -> dict[str, int]:
        """Fields that the format does not use -> in how many records."""
        known = self.format.fields
        return {} if known is None else {name: n for name, n in sorted(self.present.items()) if name not in known}


class Scan(list["Fact | BadRecord"]):
    """All records of a file, in order. `formats`: what was recognised, by name. `records`: how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: dict[str, FormatFound] = {}
        self.records = 0


FORMATS: Registry[Format] = Registry(
    "tether.fact_formats",
    "format of facts",
    Format,
    {
        "CounterFact": "tether.facts.published:COUNTERFACT",
        "MQuAKE": "tether.facts.published:MQUAKE",
        "zsRE": "tether.facts.published:ZSRE",
        "WikiBigEdit": "tether.facts.published:WIKIBIGEDIT",
        "UltraEditBench": "tether.facts.published:ULTRAEDIT",
        "QAEdit": "tether.facts.published:QAEDIT",
        "FastEdit": "tether.facts.published:FASTEDIT",
        "KnowEdit WikiBio": "tether.facts.published:KNOWEDIT_BIOGRAPHIES",
        "KnowEdit Sanitation": "tether.facts.published:KNOWEDIT_SANITATION",
        "KnowEdit ConvSent": "tether.facts.published:KNOWEDIT_SENTIMENT",
        "ConceptEdit final": "tether.facts.published:CONCEPT_FINAL",
        "ConceptEdit concepts": "tether.facts.published:CONCEPT_DATA",
        "KnowEdit": "tether.facts.published:KNOWEDIT",
        "flat CounterFact": "tether.facts.published:COUNTERFACT_FLAT",
        "EasyEdit": "tether.facts.published:EASYEDIT",
        "tether": "tether.facts.published:OWN",
    },
)


def recognise(record: Record) -> Format:
    """The format of a record. Raises ValueError where no format recognises it.

    A record that has the fields of a Fact alone is tether's own, unless it groups prompts by name. The published
    formats are asked next, those of other packages after them, and tether's own last, so that it names the fields it
    does not know.
    """
    own = FORMATS["tether"]
    grouped = any(isinstance(record.get(field), Mapping) for field in ("locality", "portability"))
    if record.keys() <= Fact.model_fields.keys() and not grouped and own.recognises(record):
        return own
    for name in sorted(FORMATS, key=lambda name: name == own.name):
        if FORMATS[name].recognises(record):
            return FORMATS[name]
    raise ValueError(f"fields {sorted(record)} belong to no known format: use one of {', '.join(FORMATS)}")


def read_facts(
    path: Source, limit: int | None = None, on_bad: Literal["raise", "skip"] = "raise", *, skip: int = 0
) -> list[Fact]:
    """The facts of a file (or of an open stream), in its order: those of the first `limit` records after `skip`.

    A record that cannot become a fact (an empty or missing field, a subject not in its prompt) raises a BadFactError
    that names it, so that no fact is lost unseen; `on_bad="skip"` leaves it out with a warning instead. Records outside
    of those asked for are not judged.
    """
    if limit is not None and limit < 1:
        raise BadSettingsError(f"limit {limit}: at least one record must be read; give no limit to read all")
    facts = []
    for record in scan_facts(path, limit, skip=skip):
        if isinstance(record, Fact):
            facts.append(record)
        elif on_bad == "raise":
            raise BadFactError(str(record))
        else:
            logger.warning("skipped: %s", record)
    if not facts:
        raise BadFactError(
            f"{name_of(path)} holds no fact: write one JSON object a line with subject, prompt and target_new"
        )
    return facts


def read_training_facts(path: str | Path) -> list[Fact]:
    """The facts of a file to train an editor on, bad records left out with a warning. Where a format's paraphrases
    mostly ask something else, they are left out too."""
    facts = []
    for number, line, found, read in _scan(path, Scan(), None, 0):
        if isinstance(read, str):
            logger.warning("skipped: %s", BadRecord(name_of(path), number, line, read))
        else:
            facts += (
                read if found and found.rephrased else [fact.model_copy(update={"paraphrases": ()}) for fact in read]
            )
    if not facts:
        raise BadFactError(f"{path} holds no fact to train on: give a file in the format of zsRE or CounterFact")
    return facts


def scan_facts(path: Source, limit: int | None = None, *, skip: int = 0) -> Scan:
    """Every record of a file (the first `limit` after `skip`): its facts, or a BadRecord. What was recognised is
    logged, and once a file what was not used. Raises only for a file no record can be read from (missing, not UTF-8, a
    damaged JSON array)."""
    scan = Scan()
    for number, line, _, read in _scan(path, scan, limit, skip):
        scan += [BadRecord(name_of(path), number, line, read)] if isinstance(read, str) else read
    for name, found in scan.formats.items():
        if found.unused:
            logger.info("%s: not used by %s: %s", name_of(path), name, ", ".join(found.unused))
        if found.numbers:
            logger.info(
                "%s: targets that are numbers or booleans are read as their text, in %d records",
                name_of(path),
                found.numbers,
            )
    return scan


def _scan(
    path: Source, scan: Scan, limit: int | None, skip: int
) -> Iterator[tuple[int, int | None, Format | None, list[Fact] | str]]:
    """(number, line, format, facts or what is wrong) of every record asked for; `scan` is filled with what was met."""
    stop = None if limit is None else skip + limit
    for number, (line, record) in islice(enumerate(read_records(path, _is_known), 1), skip, stop):
        scan.records += 1
        try:
            form = _format(record)
            if form.name not in scan.formats:
                logger.info("%s: facts in the format %s (%s)", name_of(path), form.name, form.source)
            found = scan.formats.setdefault(form.name, FormatFound(form))
            facts = _read(form, record)
        except ValueError as error:
            problem = _invalid(error) if isinstance(error, ValidationError) else str(error)
            printable = problem.encode("utf-8", "backslashreplace").decode("utf-8")  # half of a surrogate pair too
            yield number, line, None, printable
            continue
        found.records += 1
        found.facts += len(facts)
        found.present.update(name for name, value in record.items() if value not in (None, "", [], {}))
        found.numbers += any(
            isinstance(value, int | float) and _is_target(form, name) for name, value in record.items()
        )
        yield number, line, form, facts


def _is_known(record: Record) -> bool:
    try:
        recognise(record)
    except ValueError:
        return False
    return True


def _is_target(form: Format, name: str) -> bool:
    return (form.fields or {}).get(name) in ("target_new", "target_true")


def _format(record: Any) -> Format:
    if isinstance(record, json.JSONDecodeError):
        rule = "write one object a line, or one JSON array"
        raise ValueError(f"not JSON at column {record.colno} ({record.msg}): {rule}")
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"{json.dumps(record)[:60]} is not a JSON object: write {{'subject': …, 'prompt': …, …}}")
    return recognise(record)


def _read(found: Format, record: Record) -> list[Fact]:
    """The facts of a record; every fault of the record is a ValueError."""
    try:
        read = found.read(record)
        return [read] if isinstance(read, Fact) else list(read)
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
