"""The errors a user is meant to read, and what they quote of others."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


_ALGEBRA = "a linear-algebra routine failed", "look for weights that are not finite, restrain or undo the last edits"
_REMEDIES = {
    "OutOfMemoryError": ("out of memory", "use a smaller model, batch or --dtype bfloat16, or another --device"),
    "MemoryError": ("out of memory", "use a smaller model, batch or --dtype bfloat16, or another machine"),
    "_LinAlgError": _ALGEBRA,
    "LinAlgError": _ALGEBRA,
    "ArpackError": _ALGEBRA,
    "SafetensorError": ("a safetensors file is damaged", "fetch it again, or restore it from a copy"),
}  # names of classes, since importing their packages takes seconds
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")  # how a RuntimeError of torch says it


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


def failure(error: Exception) -> str | None:
    """One line for an error that a user can do something about; None for any other."""
    if isinstance(error, TetherError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    names = [kind.__name__ for kind in type(error).__mro__]
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
        names.append("MemoryError")
    what, remedy = next((_REMEDIES[name] for name in names if name in _REMEDIES), (None, None))
    return what and f"{what} ({first_line(error)}): {remedy}"
