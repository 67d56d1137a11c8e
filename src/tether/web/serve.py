"""Serve the live page until somebody stops it."""

import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from tether.errors import BadSettingsError
from tether.web.app import Live
from tether.web.door import is_loopback
from tether.web.studio import Studio


def serve(
    studio: Studio, *, host: str, port: int, token: str | None, browser: bool, say: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C or a kill; a run of edits stops after the edit it is at. `say` is told the address; port 0
    takes a free one. Raises BadSettingsError for an address that cannot be had."""
    live = Live(studio, host=host, token=token)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            why = error.strerror or str(error)
            raise BadSettingsError(f"{host}:{port} cannot be had ({why}): name another --port or --host") from None
        listening.listen(64)
        shown = "localhost" if is_loopback(host) and host != "::1" else f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
        say(f"live page: {address} (Ctrl-C ends it)")
        if browser:
            webbrowser.open(address)
        config = uvicorn.Config(
            live.application, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2
        )
        once, library = _Once(), logging.getLogger("tether.constraints.prune")
        library.addFilter(once)
        server = uvicorn.Server(config)
        live.closing = lambda: server.should_exit
        with _killed_as_interrupted():
            try:
                server.run(sockets=[listening])
            finally:
                library.removeFilter(once)
                if live.desk.busy:
                    say(f"{live.desk.busy}: the page ends after the step that it is at")
                live.close()


@contextmanager
def _killed_as_interrupted() -> Iterator[None]:
    """Inside the block a kill is a KeyboardInterrupt: what is at work ends, and a trial's folder goes."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Once(logging.Filter):
    """Lets the first message of a kind through: a restraint is applied at every step of a drag."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.msg not in self._seen
        self._seen.add(record.msg)
        return new
