"""The data of the packaged tasks: local files in the formats the paper's tasks use, or the hub where it is asked.

Every reader gives plain dicts, in file order, each question once:

- reasoning: `question`, `hint` (the gold rationale as it stands, calculator marks and last line end included),
  `solution` (the same in plain words), `number`
- nli: `premise`, `hypothesis`, `entailed`
- qa: `question`, `answers` (all accepted), `passage`
- summarization: `dialogue`, `summary`
"""

import csv
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tether.errors import TetherError

logger = logging.getLogger(__name__)

Document = dict[str, Any]

BUILT_IN = Path(__file__).parent / "data"
FILES = {
    "reasoning": "test-reasoning.jsonl",
    "nli": "test-NLI.tsv",
    "qa": "test-OpenDomainQA.jsonl",
    "summarization": "test-summarization.json",
}
_HUB = {  # kind -> dataset, configuration, split
    "reasoning": ("openai/gsm8k", "main", "test"),
    "nli": ("nyu-mll/glue", "rte", "validation"),
    "summarization": ("knkarthick/samsum", None, "test"),
}
_QUESTION = {"nli": ("premise", "hypothesis"), "summarization": ("dialogue",)}  # of the other kinds: "question"
_LABELS = {"entailment": True, "not_entailment": False}


def read(kind: str, folder: Path | None = None, *, hub: bool = False) -> list[Document]:
    """The documents of a kind: from `folder`, from the hub, or (neither given) the small set of tether.

    A question asked twice is taken once. Raises TetherError for a missing file and a damaged record.
    """
    file = (folder or BUILT_IN) / FILES[kind]
    source = f"the hub's {kind}" if hub else str(file)
    records = list(_from_hub(kind) if hub else _records(file, kind))
    documents: dict[tuple[str, ...], Document] = {}
    for number, record in enumerate(records, 1):
        try:
            document = _PARSERS[kind](record)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise TetherError(
                f"{source}: record {number} is none of {kind} ({type(error).__name__}: {error}): mend it or take it out"
            ) from None
        documents.setdefault(tuple(document[name] for name in _QUESTION.get(kind, ("question",))), document)
    if not documents:
        raise TetherError(f"{source} has no record: a task needs at least one")
    if len(documents) < len(records):
        logger.warning("%s asks %d of its questions twice: each counts once", source, len(records) - len(documents))
    return list(documents.values())


def dataset(*, kind: str, folder: str | None = None, hub: bool = False, **_: object) -> Mapping[str, Any]:
    """The split `test` for the harness, which calls this with the task's metadata."""
    from datasets import Dataset

    return {"test": Dataset.from_list(read(kind, None if folder is None else Path(folder), hub=hub))}


def _records(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TetherError(
            f"{file} cannot be read ({error}): the {kind} tasks need it; without --abilities-data they take the small "
            "set that comes with tether"
        ) from None
    try:
        if file.suffix == ".tsv":
            yield from csv.DictReader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
        elif file.suffix == ".jsonl":
            yield from (json.loads(line) for line in text.split("\n") if line.strip())
        else:
            yield from json.loads(text)
    except (json.JSONDecodeError, csv.Error, TypeError) as error:
        raise TetherError(f"{file} is damaged ({error}): fetch it again") from None


def _reasoning(record: Mapping[str, Any]) -> Document:
    rationale, mark, number = record["answer"].rpartition("####")
    if not mark or not re.fullmatch(r"-?[\d,]*\.?\d+", number.strip()):
        raise ValueError("the answer needs a last line '#### NUMBER'")
    lines = [line.strip() for line in re.sub(r"<<[^>]*>>", "", rationale).splitlines()]
    return {
        "question": record["question"].strip(),
        "hint": rationale,
        "solution": "\n".join(line for line in lines if line),
        "number": number.strip().replace(",", ""),
    }


def _nli(record: Mapping[str, Any]) -> Document:
    label = record["label"]
    if label not in _LABELS:
        raise ValueError(f"label {label!r} is not entailment or not_entailment")
    premise, hypothesis = record["sentence1"].strip(), record["sentence2"].strip()
    return {"premise": premise, "hypothesis": hypothesis, "entailed": _LABELS[label]}


def _qa(record: Mapping[str, Any]) -> Document:
    given = record["answer"]
    answers = [text.strip() for text in ([given] if isinstance(given, str) else given) if text.strip()]
    if not answers:
        raise ValueError("there is no answer")
    return {"question": record["question"].strip(), "answers": answers, "passage": record["output"][0]}


def _summarization(record: Mapping[str, Any]) -> Document:
    dialogue, summary = record["dialogue"].strip(), record["summary"].strip()
    if not dialogue or not summary:
        raise ValueError("dialogue or summary is empty")
    return {"dialogue": dialogue, "summary": summary}


_PARSERS = {"reasoning": _reasoning, "nli": _nli, "qa": _qa, "summarization": _summarization}


def _from_hub(kind: str) -> Iterable[dict[str, Any]]:
    if kind not in _HUB:
        raise TetherError(f"the {kind} tasks need passages that are not on the hub: give --abilities-data a folder")
    from datasets import load_dataset

    path, name, split = _HUB[kind]
    try:
        records: Any = load_dataset(path, name, split=split)
    except (OSError, ValueError) as error:
        raise TetherError(f"{path} cannot be had from the hub ({error}): give --abilities-data a folder") from None
    if kind == "nli":  # 0 is entailment there
        records = ({**record, "label": ("entailment", "not_entailment")[record["label"]]} for record in records)
    return records
