"""A run of edits that can be paused between two of them. It is `tether.edit`: paused it is an interrupted run, and
going on is `resume`, here or by the command."""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from tether.editing.run import Progress, same_edit
from tether.facts.fact import Fact
from tether.ledger import Event

State = Literal["running", "paused", "done", "failed"]
_SHOWN = 100  # last lines of a run
_TALKING = ("tether.editing.prepare", "tether.editors.corpus")  # what a first edit waits for


class Paused(Exception):  # noqa: N818 - no error: the person asked for it
    """The run stops here, and can go on."""


class Run:
    """What is asked of a run, how far it is, and what it said."""

    def __init__(self, facts: Sequence[Fact], schedule: Mapping[str, Any]) -> None:
        self.facts, self.schedule = list(facts), dict(schedule)
        self.state: State = "running"
        self.pausing = False
        self.tried = 0  # facts, in the parts of the run that ended
        self.seen: int | None = None  # facts that the ledger had tried when the last part ended
        self._done, self._eta, self._error = 0, None, None  # type: int, float | None, str | None
        self.said: str | None = None  # which facts are said, after the run
        self._lines: deque[dict[str, Any]] = deque(maxlen=_SHOWN)
        self._notes: deque[str] = deque(maxlen=_SHOWN)

    def told(self, at: Progress) -> None:
        """Progress after an edit. Raises Paused where a pause is wanted, and facts are left."""
        self._done, self._eta = self.tried + at.done, at.eta
        health = None if at.reading is None else at.reading.line()
        self._lines.append({**line_of(at.event), "health_line": health})
        if self.pausing and at.done < at.total:
            raise Paused

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block, what the library logs in this thread is a note of the run."""
        handler = _Notes(self._notes)
        root, levels = logging.getLogger("tether"), {name: logging.getLogger(name).level for name in _TALKING}
        root.addHandler(handler)
        for name in _TALKING:
            logging.getLogger(name).setLevel(logging.INFO)
        try:
            yield
        finally:
            root.removeHandler(handler)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)

    def end(self, state: State, error: str | None = None) -> None:
        self.state, self._error, self.pausing = state, error, False

    def count(self, tried: int) -> None:
        """So many facts more are in the ledger: going on begins after them, whatever was written to it meanwhile."""
        self.tried = self._done = min(self.tried + tried, len(self.facts))

    def catch_up(self, tried: Iterable[Fact]) -> None:
        """Facts were tried since the last part, as by a command that went on with this run: those next in it are not
        tried again."""
        for fact in tried:
            if self.tried < len(self.facts) and same_edit(fact) == same_edit(self.facts[self.tried]):
                self.count(1)

    def begin(self) -> None:
        """Go on."""
        self.state, self._error, self.pausing, self.said = "running", None, False, None

    def to_dict(self) -> dict[str, Any]:
        return {
            "state": self.state, "pausing": self.pausing, "done": self._done, "total": len(self.facts),
            "eta": self._eta, "error": self._error, "said": self.said, "lines": list(self._lines),
            "notes": list(self._notes),
        }  # fmt: skip


class _Notes(logging.Handler):
    """Keeps what this thread logs."""

    def __init__(self, notes: deque[str]) -> None:
        super().__init__(logging.INFO)
        self._notes, self._thread = notes, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._notes.append(record.getMessage())


def line_of(event: Event) -> dict[str, Any]:
    """An event as the page lists it."""
    fact, record = event.fact, event.record
    return {
        "number": event.number, "time": event.time, "kind": event.kind, "edit": event.edit,
        "text": None if fact is None else fact.text, "subject": None if fact is None else fact.subject,
        "target": None if fact is None else fact.target_new, "reason": event.reason,
        "restrain": event.restrain, "edits": event.redone if event.kind == "redo" else event.undone,
        **{name: record.get(name) for name in ("loss_first", "loss_last", "seconds", "health", "kappa", "sigma_max",
                                               "update_sigma_max", "update_ratio", "perplexity_ratio", "reasons")},
    }  # fmt: skip
