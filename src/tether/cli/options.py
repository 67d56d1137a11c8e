"""What the verbs share on the command line: options, words of an option, what is printed. Light to import."""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from tether.errors import TetherError
from tether.storage.atomic import finite

Parsed = TypeVar("Parsed")
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")

ModelName = Annotated[str, typer.Option("--model", help="smollm2 (bundled), a folder, a .gguf file, or a hub id.")]
ModelOrRecorded = Annotated[str | None, typer.Option("--model", help="By default the one that the ledger records.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, …; by default the ledger's or the checkpoint's.")]
Device = Annotated[str | None, typer.Option(help="A torch device; by default the accelerator, else the CPU.")]
AnatomyFile = Annotated[
    str | None, typer.Option("--anatomy", help="JSON file that names an unknown layout's blocks and projection.")
]
LedgerPath = Annotated[Path, typer.Argument(help="Folder of a ledger.")]
LedgerOrNone = Annotated[Path | None, typer.Argument(help="Folder of a ledger; none with --edited.")]
Base = Annotated[
    str | None, typer.Option(help="With --edited: the unedited model, a folder, a .gguf file, a hub id or smollm2.")
]
Edited = Annotated[
    str | None, typer.Option(help="In place of a ledger: a checkpoint that anything edited, or an adapter of peft.")
]
Restraint = Annotated[str | None, typer.Option("--restrain", help="A restraint of the sum; default: as recorded.")]
Floor = Annotated[float, typer.Option(min=1, max=100, help="With auto: percent of the unedited perplexity to keep.")]
Upto = Annotated[int | None, typer.Option(min=0, help="Only the edits numbered up to N.")]
EngineName = Annotated[str, typer.Option("--engine", help="local (this process), or ray: spread over workers.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Of ray, each with the model; default: one a GPU, else a CPU.")
]
RestraintOrAuto = Annotated[
    str | None, typer.Option("--restrain", help="A restraint of the sum, also log:auto; default: as recorded.")
]
NewLedger = Annotated[Path, typer.Option("--out", help="A new or empty folder for the ledger.")]
SumRestraint = Annotated[
    str | None, typer.Option("--restrain", help="Restraint of the new sum; default: the one applied last.")
]
ModelForRestraint = Annotated[
    str | None, typer.Option("--model", help="Checked; needed for restraints that ask for W₀ or moments.")
]
Edits = Annotated[
    list[str] | None,
    typer.Argument(help="Numbers of edits, and ranges as 10-20, which mean those of them it can be done to."),
]


class Answer(NamedTuple):
    """What a verb gives back: what is printed on stdout, with --json and without, and the exit code."""

    document: Any
    text: str
    code: int = 0

    def json(self) -> str:
        return json.dumps(finite(self.document), ensure_ascii=False, indent=2, default=str)


def wants_json() -> bool:
    """Whether one JSON document is wanted on stdout."""
    return "--json" in sys.argv[1:]


def printable(text: str) -> str:
    """`text` with its control characters, and those that turn the direction of writing, as escapes: a fact must not
    steer the terminal it is shown on."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def write(text: str, *, err: bool = False) -> None:
    """Lines on stdout."""
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def say(text: str) -> None:
    """Lines on stderr: progress, warnings, errors."""
    write(text, err=True)


def numbers(text: str | None, what: str) -> list[int] | None:
    """`0,10,100` -> [0, 10, 100]."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r}: write whole numbers with commas, as in 0,10", param_hint=what) from None


def selected(words: Sequence[str] | None, last: int | None, possible: Sequence[int]) -> list[int]:
    """The edits that `3 7 10-20` or `--last 5` mean. A range, and `last`, take those among `possible`; a number by
    itself stands for itself. Raises TetherError for a range that holds none of them."""
    if (last is None) == (not words):
        raise typer.BadParameter("give numbers of edits, or --last N, and not both", param_hint="EDITS")
    if last is not None:
        return list(possible)[-last:]
    chosen: list[int] = []
    for word in words or ():
        first, dash, end = word.removesuffix(",").partition("-")
        if not first.isdecimal() or (dash and not end.isdecimal()):
            raise typer.BadParameter(f"{word!r}: write the number of an edit, or a range as 10-20", param_hint="EDITS")
        inside = [edit for edit in possible if int(first) <= edit <= int(end)] if dash else [int(first)]
        if not inside:
            raise TetherError(f"{word} holds no edit that this can be done to: see `tether log`")
        chosen += inside
    return list(dict.fromkeys(chosen))


def parse_option(option: str, parse: Callable[[str], Parsed], word: str) -> Parsed:
    """What a word of the command line stands for; one that the library refuses is a wrong command line."""
    try:
        return parse(word)
    except TetherError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def at_most_every(seconds: float) -> Callable[[], bool]:
    """A function that is true at most once in so many seconds, for progress on stderr."""
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        enough = time.monotonic() - last >= seconds
        last = time.monotonic() if enough else last
        return enough

    return due
