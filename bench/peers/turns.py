"""How a worker takes its turns: it waits for a line, works, and answers with what that took. Standard library alone."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def cpu() -> float:
    """CPU seconds of this process and of the processes it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak() -> float:
    """The most memory this process had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Turns:
    """Of one worker. What the worker and its libraries print goes to stderr."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self._cpu, self._wall = 0.0, 0.0

    def wait(self, **answer: Any) -> None:
        """Answer, and wait for the next turn; the clocks start when it comes."""
        print(json.dumps({**answer, "peak": peak()}), file=self._answers, flush=True)
        if not sys.stdin.readline():
            sys.exit(0)
        self._cpu, self._wall = cpu(), time.perf_counter()

    def done(self, **more: Any) -> None:
        """A piece of work is done."""
        self.wait(cpu=cpu() - self._cpu, wall=time.perf_counter() - self._wall, **more)
