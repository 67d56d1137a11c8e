"""The desk: one worker, on which everything that touches the model is done, one thing after another."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from tether.errors import TetherError

T = TypeVar("T")
Tell = Callable[[dict[str, Any]], None]


class BusyError(TetherError):
    """The model is at work on something that takes long."""


class GoneError(Exception):
    """Nobody listens any more."""


class GaveWayError(Exception):
    """The work stopped, since other work waits; it is to be done again."""


class Desk:
    """Short work waits for its turn; while `busy` names long work, other work is refused at once.

    Always the same thread works: torch's settings of gradients and threads belong to a thread.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="tether-desk")
        self._given: set[Future[Any]] = set()  # what is done now, and what waits for it
        self._behind: set[Future[Any]] = set()  # of these, what gives way
        self.busy: str | None = None

    @property
    def at_work(self) -> bool:
        """Whether anything is done, or waits."""
        return self.busy is not None or bool(self._given)

    def check_free(self) -> None:
        """Raise BusyError while long work is under way."""
        if self.busy is not None:
            raise BusyError(f"busy: {self.busy}; wait until it ends, or pause it")

    def do(self, work: Callable[[], T]) -> Awaitable[T]:
        """What short work gives; it has its place in the queue when this returns."""
        self.check_free()
        return self._give(work)

    def do_long(self, what: str, work: Callable[[], T]) -> Awaitable[T]:
        """What long work gives; the desk is `busy` with `what` from now on, until the work ends, also where nobody
        waits for it any more."""
        self.check_free()
        self.busy = what

        def free(_: Future[T]) -> None:
            self.busy = None

        return self._give(work, free)

    def do_behind(self, work: Callable[[Callable[[], None]], T]) -> Awaitable[T]:
        """What short work gives that all other work goes before. `work` often calls what it is given, which raises
        GaveWayError where other work waits: then it is to be given anew, and has its place after that."""
        self.check_free()

        def look() -> None:
            if len(self._given) > len(self._behind):
                raise GaveWayError

        future = self._worker.submit(work, look)
        self._behind.add(future)
        return self._kept(future, self._behind.discard)

    def _give(self, work: Callable[[], T], *ended: Callable[[Future[T]], None]) -> Awaitable[T]:
        return self._kept(self._worker.submit(work), *ended)

    def _kept(self, future: Future[T], *ended: Callable[[Future[T]], None]) -> Awaitable[T]:
        self._given.add(future)
        for call in (self._given.discard, *ended):
            future.add_done_callback(call)
        return asyncio.wrap_future(future)

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
