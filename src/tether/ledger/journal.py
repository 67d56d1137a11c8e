"""The journal: one JSON line an event, each sealed by its own checksum and chained to the line before.

A line is written whole or not at all, and so are the lines of a batch: a torn last line (no newline yet), or the last
lines where they are of an incomplete batch, are dropped at open, since their event never happened; any other damage is
an error that names the event.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tether.errors import TetherError
from tether.facts.fact import Fact
from tether.storage.atomic import finite, sync_folder

FORMAT = 1


class WeightRecord(BaseModel):
    """An edited weight: its shape (out, in), m, the largest singular value of W₀, and κ₀, its condition number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, int]
    sigma_max: float
    kappa: float | None = None


class EditorRecord(BaseModel):
    """The file of a trained editor, where the method needs one: the edits depend on its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str


class Header(BaseModel):
    """ledger.json: everything the events depend on. Never changes after the ledger is made. `anatomy` names the layout
    of a model whose structure does not tell it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    created: str
    model: str
    fingerprint: str
    dtype: str
    weights: dict[str, WeightRecord]
    method: str
    settings: dict[str, Any]
    settings_origin: str
    prefixes: tuple[str, ...]
    moments: dict[int, dict[str, Any]]
    corpus: dict[str, Any]
    seed: int
    threads: int
    restrain: str
    every: int | None
    editor: EditorRecord | None = None
    anatomy: dict[str, str] | None = None
    versions: dict[str, str]


class Event(BaseModel):
    """One line of the journal. `edit` numbers attempts (edit, failed, skipped), one a fact; `record` is what was
    measured. Facts edited together have a line each: `batch` is (place in the batch from 1, size), `column` the fact's
    column in the factors file they share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    time: str
    kind: Literal["edit", "failed", "skipped", "restrain", "undo", "guard"]
    edit: int | None = None
    fact: Fact | None = None
    factors: str | None = None
    sha256: str | None = None
    batch: tuple[int, int] | None = None
    column: int | None = None
    restrain: str | None = None
    undone: tuple[int, ...] | None = None
    reason: str | None = None
    record: dict[str, Any] = {}
    previous: str
    checksum: str = ""

    def line(self) -> bytes:
        """The sealed line, newline included."""
        body = finite(self.model_dump(mode="json", exclude_none=True, exclude={"checksum"}))
        return (json.dumps({**body, "checksum": _seal(body)}, ensure_ascii=False) + "\n").encode()


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Journal:
    """The events on disk. Reading checks every line; appending needs the lock of `writing`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self._header_sha = hashlib.sha256((folder / "ledger.json").read_bytes()).hexdigest()
        self._last = self._header_sha
        self._whole = 0
        self.events: list[Event] = []
        self.reload()

    def reload(self) -> None:
        """Read and check every line. Raises TetherError that names the first damaged event."""
        data = self.path.read_bytes() if self.path.exists() else b""
        self._last, self.events, self._whole = self._header_sha, [], 0
        whole = (0, self._header_sha, 0)  # bytes, hash and events up to the last complete event or batch
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
            event = self._check(number, line)
            self.events.append(event)
            self._whole += len(line) + 1
            self._last = hashlib.sha256(line + b"\n").hexdigest()
            if event.batch is None or event.batch[0] == event.batch[1]:
                whole = (self._whole, self._last, number)
        self._whole, self._last = whole[:2]
        del self.events[whole[2] :]

    @property
    def torn(self) -> bool:
        """Whether a torn last line, or an incomplete last batch, was dropped."""
        return self.path.exists() and self.path.stat().st_size > self._whole

    @property
    def head(self) -> str:
        """sha256 of the last line: the identity of everything so far."""
        return self._last

    def _check(self, number: int, line: bytes) -> Event:
        where = f"{self.path}: event {number}"
        remedy = "the ledger is damaged from here on; restore it from a copy"
        try:
            body = json.loads(line)
            seal = body.pop("checksum", None)
        except (ValueError, AttributeError, TypeError):
            raise TetherError(f"{where} is no JSON object: {remedy}") from None
        if seal != _seal(body):
            raise TetherError(f"{where} does not match its checksum: {remedy}")
        try:
            event = Event.model_validate({**body, "checksum": seal})
        except ValidationError as error:
            first = error.errors()[0]
            raise TetherError(
                f"{where}: {'.'.join(map(str, first['loc']))} = {first.get('input')!r} is not of ledger format "
                f"{FORMAT}; open it with a newer tether"
            ) from None
        if event.number != number:
            raise TetherError(f"{where} is numbered {event.number}: lines are missing or out of order; {remedy}")
        if event.previous != self._last:
            raise TetherError(
                f"{where} does not follow the line before it: that line or ledger.json was changed; {remedy}"
            )
        return event

    def append(self, *events: Mapping[str, Any]) -> list[Event]:
        """Seal and write events, in one write; on return they are on disk."""
        sealed, lines, last = [], b"", self._last
        for number, fields in enumerate(events, start=len(self.events) + 1):
            event = Event(number=number, time=now(), previous=last, **fields)
            line = event.line()
            last = hashlib.sha256(line).hexdigest()
            sealed.append(event)
            lines += line
        with self.path.open("r+b" if self.path.exists() else "w+b") as handle:
            handle.truncate(self._whole)  # what a kill left half-written
            handle.seek(self._whole)
            handle.write(lines)
            handle.flush()
            os.fsync(handle.fileno())
        if self._whole == 0:
            sync_folder(self.path.parent)
        self._whole += len(lines)
        self._last = last
        self.events += sealed
        return sealed


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The one writer of a ledger: a lock that a kill releases. Raises TetherError while another process holds it, or
    where there are no locks."""
    with (folder / "ledger.lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TetherError(f"{folder} is being written by another process: wait until it ends") from None
        except OSError as error:
            raise TetherError(
                f"{folder} cannot be locked ({error.strerror}): a ledger needs a file system with locks; move it to one"
            ) from None
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
