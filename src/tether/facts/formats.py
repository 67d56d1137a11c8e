"""Files of facts: one reader a format, recognised from a record's fields, never from the file's name.

    facts = read_facts("facts.jsonl")
    records = scan_facts("facts.jsonl")        # every record: a Fact, or a BadRecord that says what is wrong

A file is a JSON array or one JSON object a line. To add a format, write the function that turns a record into the
fields of a `Fact`, and register it in `READERS`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from tether.errors import TetherError
from tether.facts.fact import Fact

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
class Reader:
    """A format: any of `marks` among a record's fields gives it away, `fields` makes the keywords of a `Fact`.
    `rephrased` is false where the paraphrases mostly ask something else than the edit prompt."""

    name: str
    marks: tuple[str, ...]
    fields: Callable[[Record], dict[str, Any]]
    rephrased: bool = True


def read_facts(path: str | Path, limit: int | None = None, on_bad: Literal["raise", "skip"] = "raise") -> list[Fact]:
    """The facts of a file, in its order; the first `limit` of them where given.

    A record that cannot become a fact (an empty or missing field, a subject not in its prompt) raises a TetherError
    that names it, so that no fact is lost unseen; `on_bad="skip"` leaves it out with a warning instead, and `limit`
    then counts the facts, not the records.
    """
    if limit is not None and limit < 1:
        raise TetherError(f"limit {limit}: at least one fact must be read; leave it away to read all")
    facts: list[Fact] = []
    for record in _scan(Path(path)):
        if isinstance(record, BadRecord):
            if on_bad == "raise":
                raise TetherError(str(record))
            logger.warning("skipped: %s", record)
            continue
        facts.append(record)
        if len(facts) == limit:
            break
    if not facts:
        raise TetherError(f"{path} holds no fact: write one JSON object a line with subject, prompt and target_new")
    return facts


def read_training_facts(path: str | Path) -> list[Fact]:
    """The facts of a file to train an editor on, bad records left out with a warning. Where a format's paraphrases
    mostly ask something else, they are left out too."""
    facts: list[Fact] = []
    for record in _scan(Path(path), only_rephrased=True):
        if isinstance(record, BadRecord):
            logger.warning("skipped: %s", record)
        else:
            facts.append(record)
    if not facts:
        raise TetherError(f"{path} holds no fact to train on: give a file in the format of zsRE or CounterFact")
    return facts


def scan_facts(path: str | Path, limit: int | None = None) -> list[Fact | BadRecord]:
    """Every record of a file (the first `limit`): a Fact, or a BadRecord. Raises only for a file no record can be read
    from (missing, not UTF-8, a damaged JSON array)."""
    return list(islice(_scan(Path(path)), limit))


# --- files ------------------------------------------------------------------------------------------------------


def _scan(path: Path, *, only_rephrased: bool = False) -> Iterator[Fact | BadRecord]:
    for number, (line, record) in enumerate(_records(path), 1):
        try:
            fact = _fact(record)
            if only_rephrased and not recognise(record).rephrased:
                fact = fact.model_copy(update={"paraphrases": ()})
            yield fact
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            yield BadRecord(str(path), number, line, _problem(error, record))


def _records(path: Path) -> Iterator[tuple[int | None, Any]]:
    """(line, record) of a JSON array or of JSON lines; a line that is no JSON comes as the error it raised."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TetherError(f"{path} cannot be read ({error.strerror}): name a file of facts") from None
    except UnicodeDecodeError as error:
        raise TetherError(f"{path} is not UTF-8 text at byte {error.start}: save it as UTF-8") from None
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise TetherError(f"{path} is not a JSON array: {error.msg} at line {error.lineno}; mend it") from None
        yield from ((None, record) for record in records)
        return
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            try:
                yield line, json.loads(row)
            except json.JSONDecodeError as error:
                yield line, error


def _fact(record: Any) -> Fact:
    if isinstance(record, json.JSONDecodeError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"{json.dumps(record)[:60]} is not a JSON object: write {{'subject': …, 'prompt': …, …}}")
    return Fact(**recognise(record).fields(record))


def recognise(record: Record) -> Reader:
    """The first registered reader one of whose marks is a field of the record. Raises ValueError where none is."""
    for reader in READERS:
        if any(mark in record for mark in reader.marks):
            return reader
    names = ", ".join(reader.name for reader in READERS)
    raise ValueError(f"fields {sorted(record)} belong to no known format: use one of {names}")


def _problem(error: Exception, record: Any) -> str:
    """One line: what is wrong with the record, the rule, the remedy."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at column {error.colno} ({error.msg}): write one object a line, or one JSON array"
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, ValueError):
        return str(error)
    name = recognise(record).name
    if isinstance(error, KeyError):
        return f"field {error.args[0]!r} is missing: every record of {name} has it; add it"
    return f"a field has not the shape it has in {name} ({error}): compare the record with a published one"


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


# --- formats ----------------------------------------------------------------------------------------------------


def _template(text: str, subject: str) -> str:
    """`text` with `{}` for the subject: for its first occurrence as a whole word, else for its first one at all. Of
    several the first is taken, since that is how the subject stands in other texts, and the key is read there. Spaces
    around the subject, which a fact does not keep, stay in the text."""
    subject = subject and subject.strip()
    word = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text) if subject else None
    start = word.start() if word else text.find(subject) if subject else -1
    if start < 0:
        raise ValueError(f"subject {subject!r} does not occur in its prompt {text!r}: make them agree")
    return text[:start] + "{}" + text[start + len(subject) :]


def _list(value: Any) -> list[Any]:
    """A field that some files give as one value, some as a list, some not at all."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _pairs(prompts: Any, targets: Any) -> list[dict[str, Any]]:
    """Locality prompts with their answers, which may be missing altogether."""
    texts, answers = _list(prompts), _list(targets)
    if answers and len(answers) != len(texts):
        raise ValueError(f"{len(texts)} locality prompts have {len(answers)} answers: give one answer a prompt")
    return [{"prompt": p, "target": t} for p, t in zip(texts, answers or [None] * len(texts), strict=True)]


def _id(value: Any) -> str | None:
    return None if value is None else str(value)


def _own(record: Record) -> dict[str, Any]:
    """tether's own: the fields of `Fact`; an item of `locality` may be a bare prompt."""
    fields = {key: value for key, value in record.items() if value is not None}
    if isinstance(fields.get("locality"), list):
        fields["locality"] = [{"prompt": item} if isinstance(item, str) else item for item in fields["locality"]]
    return {**fields, "id": _id(record.get("id"))}


def _counterfact(record: Record) -> dict[str, Any]:
    """ROME's CounterFact. The neighbours share the true object, so that is their answer."""
    rewrite = record["requested_rewrite"]
    true = rewrite["target_true"]["str"]
    return {
        "subject": rewrite["subject"],
        "prompt": rewrite["prompt"],
        "target_new": rewrite["target_new"]["str"],
        "target_true": true,
        "paraphrases": record.get("paraphrase_prompts", ()),
        "locality": [{"prompt": prompt, "target": true} for prompt in record.get("neighborhood_prompts", ())],
        "id": _id(record.get("case_id")),
    }


def _counterfact_flat(record: Record) -> dict[str, Any]:
    """EasyEdit's CounterFact, with the subject filled in."""
    return {
        "subject": record["subject"],
        "prompt": _template(record["prompt"], record["subject"]),
        "target_new": record["target_new"],
        "target_true": record.get("ground_truth"),
        "paraphrases": _list(record.get("rephrase_prompt")),
        "locality": _pairs(record.get("locality_prompt"), record.get("locality_ground_truth")),
        "id": _id(record.get("case_id")),
    }


def _zsre(record: Record) -> dict[str, Any]:
    """MEND's zsRE. `alt` is what the edit wants, `answers` are true. `loc` stays as published ("nq question: …"): MEND,
    ROME and EasyEdit all evaluate with that beginning (ROME alone adds a question mark)."""
    true = _list(record.get("answers"))
    return {
        "subject": record["subject"],
        "prompt": _template(record["src"], record["subject"]),
        "target_new": record["alt"],
        "target_true": true[0] if true else None,
        "paraphrases": _list(record.get("rephrase")),
        "locality": _pairs(record.get("loc"), record.get("loc_ans")),
        "id": _id(record.get("case_id")),
    }


def _concept_final(record: Record) -> dict[str, Any]:
    """ConceptEdit's `final_<model>_{inter,intra}.json`: a concept's new definition, questions about its instances."""
    return {
        "subject": record["label"],
        "prompt": _template(record["prompt"], record["label"]),
        "target_new": record["target_new_desc"],
        "paraphrases": _list(record.get("phrase_prompt")),
        "locality": _pairs(record.get("locality_prompt"), record.get("locality_answer")),
        "instances": _list(record.get("instance_prompt")),
    }


def _concept_data(record: Record) -> dict[str, Any]:
    """ConceptEdit's `concept_data.json`, which has definitions but no edit prompt, so that is ours. Of the two new
    definitions a concept has there the one from its own superclass (`module_intra`) is taken."""
    return {
        "subject": record["concept_name"],
        "prompt": "The definition of {} is",
        "target_new": record["module_intra"]["replace_def"],
        "target_true": record["concept_def"],
        "locality": _pairs(record.get("locality_prompt"), record.get("locality_answer")),
    }


READERS = (
    Reader("CounterFact", ("requested_rewrite",), _counterfact),
    Reader("zsRE", ("src", "alt"), _zsre),
    Reader("ConceptEdit final", ("target_new_desc",), _concept_final),
    Reader("ConceptEdit concepts", ("concept_name", "concept_def"), _concept_data),
    Reader(
        "flat CounterFact", ("ground_truth", "rephrase_prompt", "locality_prompt"), _counterfact_flat, rephrased=False
    ),
    Reader("tether", ("subject", "prompt", "target_new"), _own),
)
