"""The desk: one worker, on which everything that touches the model is done, one thing after another."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from tether.errors import TetherError

T = TypeVar("T")
Tell = Callable[[dict[str, Any]], None]


class BusyError(TetherError):
    """The model is at work on something that takes long."""


class GoneError(Exception):
    """Nobody listens any more."""


class Desk:
    """Short work waits for its turn; while `busy` names long work, other work is refused at once.

    Always the same thread works: torch's settings of gradients and threads belong to a thread.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="tether-desk")
        self.busy: str | None = None

    def check_free(self) -> None:
        """Raise BusyError while long work is under way."""
        if self.busy is not None:
            raise BusyError(f"busy: {self.busy}; wait until it ends, or pause it")

    async def do(self, work: Callable[[], T]) -> T:
        """What short work gives."""
        self.check_free()
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def do_long(self, what: str, work: Callable[[], T]) -> T:
        """What long work gives; the desk is `busy` with `what` meanwhile."""
        self.check_free()
        self.busy = what

        def whole() -> T:  # free again when the work ends, also where nobody waits for it any more
            try:
                return work()
            finally:
                self.busy = None

        return await asyncio.get_running_loop().run_in_executor(self._worker, whole)

    async def stream(self, work: Callable[[Tell], None], queue: "asyncio.Queue[dict[str, Any] | None]") -> None:
        """Do short work that tells of itself: what it tells goes into the queue, None at the end. Cancelled, the work
        meets a GoneError where it tells next."""
        loop, gone = asyncio.get_running_loop(), False

        def tell(said: dict[str, Any]) -> None:
            if gone:
                raise GoneError
            loop.call_soon_threadsafe(queue.put_nowait, said)

        def quiet() -> None:
            with suppress(GoneError):
                work(tell)

        try:
            await self.do(quiet)
        finally:
            gone = True
            queue.put_nowait(None)

    def close(self) -> None:
        """Wait for what is at work."""
        self._worker.shutdown(wait=True, cancel_futures=True)
