"""What all verbs share: errors on one line, exit codes, JSON, logs on stderr.

Exit codes: 0 done, 1 the work failed, 2 the command line is wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from tether.constraints.base import Constraint, parse
from tether.errors import TetherError
from tether.storage.atomic import finite

app = typer.Typer(
    name="tether",
    help="Change what a language model knows, edit after edit, and keep it tethered to everything else it knew.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130

VERBS = (
    "edit",
    "evaluate",
    "compare",
    "spectrum",
    "bound",
    "log",
    "verify",
    "undo",
    "export",
    "restrain",
    "check",
    "moments",
    "tune",
    "train_mend",
    "grid",
    "report",
    "demo",
)

Read = TypeVar("Read")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
ModelName = Annotated[str, typer.Option("--model", help="smollm2 (bundled), a folder, a .gguf file, or a hub id.")]
ModelOrRecorded = Annotated[
    str | None, typer.Option("--model", help="The model; by default the one the ledger records.")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, …; by default the ledger's, else the checkpoint's own.")
]
Device = Annotated[str | None, typer.Option(help="A torch device; by default the accelerator, else the CPU.")]
AnatomyFile = Annotated[
    str | None, typer.Option("--anatomy", help="JSON file that names an unknown layout's blocks and projection.")
]
LedgerPath = Annotated[Path, typer.Argument(help="Folder of a ledger.")]

out = Console(soft_wrap=True, highlight=False, markup=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def show(document: Any, text: str, as_json: bool) -> None:
    """The one thing a verb prints on stdout."""
    out.out(
        json.dumps(finite(document), ensure_ascii=False, indent=2, default=str) if as_json else text, highlight=False
    )


def numbers(text: str | None, what: str) -> list[int] | None:
    """`0,10,100` -> [0, 10, 100]."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: write whole numbers with commas, as in 0,10,100", param_hint=what
        ) from None


def understood(what: str, read: Callable[[str], Read], words: str) -> Read:
    """What a word of the command line says; one that the library refuses is a wrong command line."""
    try:
        return read(words)
    except TetherError as error:
        raise typer.BadParameter(str(error), param_hint=what) from None


def restraints(text: str | None) -> list[Constraint | None]:
    """`none,log:1.2` -> both restraints; None, as recorded, where nothing is named."""
    return [None] if text is None else [understood("--restrain", parse, part) for part in text.split(",")]


def every(seconds: float) -> Callable[[], bool]:
    """A function that is true at most once in so many seconds, for progress on stderr."""
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return True

    return due


def load_model(
    name: str, *, dtype: str | None = None, device: str | None = None, anatomy: Mapping[str, str] | str | None = None
) -> Any:
    from tether.models import load

    return load(name, dtype=dtype, device=device, anatomy=anatomy)


def open_ledger(path: Path, model: str | None = None, dtype: str | None = None, device: str | None = None) -> Any:
    """The ledger, and its model (the recorded one in the recorded dtype unless named otherwise)."""
    from tether.ledger import Ledger

    ledger = Ledger.open(path)
    header = ledger.header
    loaded = load_model(model or header.model, dtype=dtype or header.dtype, device=device, anatomy=header.anatomy)
    ledger.check_model(loaded)
    return ledger, loaded


def tell_progress(room: str) -> None:
    """Let what a room of the library says of its progress go to stderr, for a verb that takes long."""
    logging.getLogger(room).setLevel(logging.INFO)


@app.callback()
def _options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default torch's choice.")] = None,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if context.invoked_subcommand is None:
        out.out(context.get_help(), highlight=False)


def main() -> None:
    """Run the command line; never returns."""
    for verb in VERBS:
        import_module(f"tether.cli.{verb}")
    as_json = "--json" in sys.argv[1:]
    try:
        code = app(standalone_mode=False)  # what a verb raised as typer.Exit comes back as a number
        if code == INTERRUPTED:  # which typer makes of Ctrl-C without a word
            raise KeyboardInterrupt
    except TetherError as error:
        _fail(str(error), 1, as_json)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; run it again, with --resume where the command has it", INTERRUPTED, as_json)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1, as_json)
    except Exception as error:  # a usage error has its own code; anything else is a bug and shows itself
        if not hasattr(error, "exit_code"):
            raise
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        _fail(f"{message} (see tether --help)", 2, as_json)
    sys.exit(code or 0)


def _fail(message: str, code: int, as_json: bool) -> None:
    line = " ".join(message.split())
    if as_json:
        out.out(json.dumps({"error": line}), highlight=False)
    err.out(f"tether: {line}", highlight=False)
    sys.exit(code)
