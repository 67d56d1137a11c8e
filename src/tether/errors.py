"""The errors a user is meant to read, and what they quote of others."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class TetherError(Exception):
    """A message on one line: the value at fault, the rule it breaks, the remedy.

    The command prints it to stderr and exits with 1; nothing half-written stays. Its five kinds let a program tell
    what went wrong.
    """


class BadFactError(TetherError):
    """A fact, or a file of facts, cannot be used."""


class WrongModelError(TetherError):
    """The model is not the one that is needed, or of a layout that cannot be edited."""


class BadLedgerError(TetherError):
    """A ledger is damaged, or is none."""


class MissingExtraError(TetherError):
    """An optional package is not installed."""


class BadSettingsError(TetherError):
    """A setting, an option or a name has a value that the rule for it refuses."""


def first_line(error: BaseException) -> str:
    """The first line of an error that says something; with what follows where that is announced by a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = shorten(" ".join(lines), 400, placeholder=" …") if lines[0].endswith(":") else lines[0]
    return said.rstrip(".:")


def pydantic_line(error: ValidationError) -> str:
    """The first complaint of pydantic on one line: `key = value: rule`."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    inner = first.get("ctx", {}).get("error", first["msg"])
    if hasattr(inner, "errors"):  # of a model within a validator
        return pydantic_line(inner)
    message = str(inner)
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "extra_forbidden":
        return f"{key} is not known"
    return f"{key} = {first.get('input')!r}: {message}" if key else message
