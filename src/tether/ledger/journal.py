"""The journal: one JSON line an event, each sealed by its own checksum and chained to the line before.

A line is written whole or not at all, and so are the lines of a batch: a torn last line (no newline yet), or the last
lines where they are of an incomplete batch, are dropped at open, since their event never happened; any other damage is
an error that names the event.
"""

import copy
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tether.errors import BadLedgerError, TetherError, first_line, pydantic_line
from tether.facts.fact import Fact
from tether.storage.atomic import finite, seal, sync_folder

ATTEMPTS = ("edit", "failed", "skipped")
IMPORT = "import"  # the method of a ledger of imported updates: no editor goes on with it
LOCK = "ledger.lock"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightRecord(_Record):
    """An edited weight: its shape (out, in), m, the largest singular value of W₀, and κ₀, its condition number (None
    in ledgers that did not record it, and where it is infinite)."""

    shape: tuple[int, int]
    sigma_max: float
    kappa: float | None = None


class EditorRecord(_Record):
    """The file of a trained editor, where the method needs one: the edits depend on its content."""

    path: str
    sha256: str


class MomentsRecord(_Record):
    """The second moments of one layer: their key in the cache, the sha256 of C, and how many tokens they are of."""

    key: str = Field(pattern="^[0-9a-f]{32}$")
    sha256: str
    tokens: int


class SourceRecord(_Record):
    """A ledger that another one was made of: the name of its folder, its head then, and the edits that were taken, as
    numbered there."""

    name: str
    head: str
    edits: tuple[int, ...]


class Header(_Record):
    """ledger.json: everything the events depend on. Never changes after the ledger is made. `anatomy` names the layout
    of a model whose structure does not tell it. `joint` says what stands before the answers of facts that do not say:
    None, in ledgers of earlier versions, always one space. `fingerprint` is of the edited weights, `checkpoint` of the
    whole model (None in ledgers of earlier versions). `origin` says how a ledger was made that no editor made: by a
    merge or a pick, whose `sources` gave their edits in order, or by an import."""

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
    moments: dict[int, MomentsRecord]
    corpus: dict[str, Any]
    seed: int
    threads: int
    restrain: str
    every: int | None
    editor: EditorRecord | None = None
    anatomy: dict[str, str] | None = None
    joint: Literal["rule"] | None = None
    checkpoint: str | None = None
    origin: str | None = None
    sources: tuple[SourceRecord, ...] | None = None
    versions: dict[str, str]


class Event(_Record):
    """One line of the journal. `edit` numbers attempts (edit, failed, skipped), one a fact; `record` is what was
    measured. Facts edited together have a line each: `batch` is (place in the batch from 1, size), `column` the fact's
    first column in the factors file they share, `columns` how many it has (None: one). Without a `column` the facts of
    a batch share the whole update. An edit without a `fact` is an imported update: `reason` says of what. Edits that
    are `undone` by the lines of an attempt are replaced: those of its batch stand for them. A restraint with
    `only_with` acts only where one of the edits from the first to the last of these numbers counts."""

    number: int
    time: str
    kind: Literal["edit", "failed", "skipped", "restrain", "undo", "redo", "guard"]
    edit: int | None = None
    fact: Fact | None = None
    factors: str | None = None
    sha256: str | None = None
    batch: tuple[int, int] | None = None
    column: int | None = None
    columns: int | None = None
    restrain: str | None = None
    only_with: tuple[int, int] | None = None
    undone: tuple[int, ...] | None = None
    redone: tuple[int, ...] | None = None
    reason: str | None = None
    record: dict[str, Any] = {}
    previous: str
    checksum: str = ""

    @property
    def shared(self) -> bool:
        """Whether the edit's update is that of its whole batch, and can be taken out with it alone."""
        return self.kind == "edit" and self.batch is not None and self.column is None

    @property
    def part(self) -> slice:
        """The edit's columns in its factors file."""
        return slice(None) if self.column is None else slice(self.column, self.column + (self.columns or 1))

    def line(self) -> bytes:
        """The sealed line, newline included."""
        body = finite(self.model_dump(mode="json", exclude_none=True, exclude={"checksum"}))
        return (json.dumps({**body, "checksum": seal(body)}, ensure_ascii=False) + "\n").encode()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Journal:
    """The events on disk, and what is counted of them. Reading checks every line; appending needs the lock of
    `writing`. `head` is the sha256 of the last line: the identity of everything so far. `attempts` is the number of
    facts tried, `undone` the edits that do not count, `unrestrained` the edits after the last restraint.

    An edit does not count that was undone `by_hand` (or by a guard) and not redone, or that another stands for: one of
    those that replaced it which is not undone by hand, or for which in turn another stands."""

    def __init__(self, folder: Path, header: Header) -> None:
        self._spaced = header.joint is None
        self.path = folder / "journal.jsonl"
        self._header_sha = hashlib.sha256((folder / "ledger.json").read_bytes()).hexdigest()
        self._seen: tuple[int, int, int] | None = None
        self._clear()
        self._read()

    def reload(self) -> None:
        """Read and check every line. Raises BadLedgerError that names the first damaged event; the journal is then as
        it was before."""
        self._read(again=True)

    def refresh(self) -> None:
        """`reload`, where the file is not as this journal last read or wrote it. Where the lines that are known are
        the same bytes, those after them are read alone."""
        if self._stat() != self._seen:
            self._read()

    def _clear(self) -> None:
        self.events: list[Event] = []
        self.attempts = 0
        self.undone: frozenset[int] = frozenset()
        self.unrestrained: list[int] = []
        self.by_hand: frozenset[int] = frozenset()
        self.replacements: list[tuple[frozenset[int], tuple[int, ...]]] = []  # the old edits, those that stand for them
        self._whole, self.head = 0, self._header_sha  # up to the last complete event or batch
        self._bytes = hashlib.sha256()  # of all of it

    def _read(self, *, again: bool = False) -> None:
        """Take what the file holds, at once: another thread sees the journal as it was, or as it is now."""
        found, seen = copy.copy(self), self._stat()
        data = self.path.read_bytes() if seen else b""
        if again or hashlib.sha256(memoryview(data)[: self._whole]).digest() != self._bytes.digest():
            found._clear()
        else:
            found.events, found.unrestrained, found._bytes = [*self.events], [*self.unrestrained], self._bytes.copy()
        size, head = found._whole, found.head
        batch: list[Event] = []
        for number, line in enumerate(data[size:].split(b"\n")[:-1], start=len(found.events) + 1):
            batch.append(self._check(number, line, head))
            size, head = size + len(line) + 1, hashlib.sha256(line + b"\n").hexdigest()
            if batch[-1].batch is None or batch[-1].batch[0] == batch[-1].batch[1]:
                found._bytes.update(data[found._whole : size])
                found._whole, found.head = size, head
                found._take(batch)
                batch = []
        vars(self).update(vars(found), _seen=seen)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _take(self, events: Sequence[Event]) -> None:
        self.events += events
        made = tuple(event.edit for event in events if event.kind == "edit" and event.edit is not None)
        for event in events:
            self.attempts += event.kind in ATTEMPTS
            if event.undone:
                self.undone |= set(event.undone)
            if event.redone:
                self.undone -= set(event.redone)
            if event.kind in ATTEMPTS and event.undone and made:
                self.replacements.append((frozenset(event.undone), made))
            elif event.undone or event.redone:
                self.by_hand = (self.by_hand - set(event.redone or ())) | (self.undone - self.replaced(self.undone))
            if event.kind == "restrain":
                self.unrestrained = []
            elif event.kind == "edit" and event.edit is not None:
                self.unrestrained.append(event.edit)

    def replaced(self, out: Set[int], upto: int | None = None) -> frozenset[int]:
        """The edits that another one, numbered at most `upto`, stands for where those of `out` do not count."""
        found: set[int] = set()
        for old, made in reversed(self.replacements):  # what was made last, first: it may stand for what stands
            if any((upto is None or one <= upto) and (one not in out or one in found) for one in made):
                found |= old
        return frozenset(found)

    def standing_for(self, edit: int, out: Set[int]) -> list[int]:
        """The edits that stand for one, where those of `out` do not count."""
        found = {edit}
        for old, made in self.replacements:
            if old & found:
                found |= set(made)
        return sorted(found - out - {edit})

    def out(self, upto: int | None = None) -> frozenset[int]:
        """`undone`, as it stands where the edits after `upto` were not made: what they replaced counts."""
        if upto is None or not any(made[0] > upto for _, made in self.replacements):
            return self.undone
        return self.undone & (self.by_hand | self.replaced(self.by_hand, upto))

    @property
    def torn(self) -> bool:
        """Whether a torn last line, or an incomplete last batch, was dropped."""
        return self.path.exists() and self.path.stat().st_size > self._whole

    def after(self, head: str) -> int | None:
        """How many events follow the line whose sha256 begins with `head`; None where no line has it."""
        chain = [self.head, *(event.previous for event in reversed(self.events))]
        return next((count for count, line in enumerate(chain) if line.startswith(head.lower())), None)

    def _check(self, number: int, line: bytes, previous: str) -> Event:
        """The event of a line. Raises BadLedgerError that names it."""

        def damaged(what: str, remedy: str = "the ledger is damaged from here on; restore it from a copy") -> Exception:
            return BadLedgerError(f"{self.path}: event {number} {what}: {remedy}")

        try:
            body = json.loads(line)
            checksum = body.pop("checksum", None)
            sound = checksum == seal(body)
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise damaged("is no JSON object") from None
        if not sound:
            raise damaged("does not match its checksum")
        try:
            event = Event.model_validate({**body, "checksum": checksum})
        except ValidationError as error:
            what = f"is not of ledger format 1 ({pydantic_line(error)})"
            raise damaged(what, "open it with a newer tether") from None
        if self._spaced and event.fact is not None:
            event = event.model_copy(update={"fact": event.fact.spaced()})
        if event.number != number:
            raise damaged(f"is numbered {event.number}, so lines are missing or out of order")
        if event.previous != previous:
            raise damaged("does not follow the line before it, so that line or ledger.json was changed")
        return event

    def append(self, *events: Mapping[str, Any]) -> list[Event]:
        """Seal and write events, in one write; on return they are on disk."""
        sealed, lines, last = [], b"", self.head
        for number, fields in enumerate(events, start=len(self.events) + 1):
            sealed.append(Event(number=number, time=now(), previous=last, **fields))
            line = sealed[-1].line()
            last = hashlib.sha256(line).hexdigest()
            lines += line
        with self.path.open("r+b" if self.path.exists() else "w+b") as handle:
            handle.truncate(self._whole)  # what a kill left half-written
            handle.seek(self._whole)
            handle.write(lines)
            handle.flush()
            os.fsync(handle.fileno())
        if self._whole == 0:
            sync_folder(self.path.parent)
        self._bytes.update(lines)
        self._whole += len(lines)
        self.head = last
        self._take(sealed)
        self._seen = self._stat()
        return sealed


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """The one writer of a ledger: a lock that a kill releases. Raises TetherError while another process holds it, or
    where there are no locks."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TetherError(f"{folder} is being written by another process: wait until it ends") from None
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        remedy = "a ledger needs a file system with locks; move it to one"
        if isinstance(error, PermissionError):
            remedy = "writing needs the right to write there"
        raise TetherError(f"{folder} cannot be locked ({why}): {remedy}") from None
    try:
        yield
    finally:
        lock.release()
