"""Models, ledgers and restraints that a command line names."""

import logging
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import typer
from transformers.utils import logging as transformers_logging

from tether.cli.options import parse_option
from tether.constraints.base import Constraint, parse
from tether.engine import Engine, check_engine, open_engine
from tether.evaluation.strength import AUTO
from tether.ledger import Ledger
from tether.models import EditableModel, load
from tether.models.load import is_adapter, with_adapter

_COMMA = re.compile(r",(?!\s*[0-9.])")


def restraints(text: str | None) -> list[Constraint | str | None]:
    """`none,log:1.2` -> both restraints; None, as recorded, where nothing is named. A comma before a number is one
    within a restraint. `log:auto` and `linear:auto` stay as they are."""
    if text is None:
        return [None]
    return [part if AUTO.fullmatch(part) else parse_option("--restrain", parse, part) for part in _COMMA.split(text)]


def restraint(text: str | None) -> Constraint | None:
    """`log:1.2` -> the restraint; None, as recorded, where none is named."""
    return None if text is None else parse_option("--restrain", parse, text)


def load_model(
    name: str, *, dtype: str | None = None, device: str | None = None, anatomy: Mapping[str, str] | str | None = None
) -> EditableModel:
    transformers_logging.disable_progress_bar()
    log_progress("tether.models.load")
    return load(name, dtype=dtype, device=device, anatomy=anatomy)


def load_edited(name: str, base: str | None, *, dtype: str | None = None, device: str | None = None) -> EditableModel:
    """A checkpoint that anything edited: a model, or an adapter for `base`."""
    if not is_adapter(name):
        return load_model(name, dtype=dtype, device=device)
    if base is None:
        raise typer.BadParameter(f"{name} is an adapter: name the model it is for", param_hint="--base")
    return with_adapter(load_model(base, dtype=dtype, device=device), name)


def engine_of(name: str, workers: int | None, device: str | None) -> AbstractContextManager[Engine]:
    """The engine that a command line names, for the time of a block."""
    parse_option("--engine", lambda word: check_engine(word, workers), name)
    return open_engine(name, workers=workers, device=device)


def open_ledger(path: Path, model: str | None, dtype: str | None, device: str | None) -> tuple[Ledger, EditableModel]:
    """The ledger, and its model (the recorded one in the recorded dtype unless named otherwise)."""
    ledger = Ledger.open(path)
    header = ledger.header
    loaded = load_model(model or header.model, dtype=dtype or header.dtype, device=device, anatomy=header.anatomy)
    ledger.check_model(loaded)
    return ledger, loaded


def log_progress(*rooms: str) -> None:
    """Let what rooms of the library log of their progress go to stderr, for a verb that takes long."""
    for room in rooms:
        logging.getLogger(room).setLevel(logging.INFO)
