"""A small server on this machine that answers as an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple

Reply = Callable[[str], "str | int"]


class Endpoint(NamedTuple):
    """Its address, and what it was sent: path, key and body of every request."""

    url: str
    sent: list[tuple[str, str | None, dict[str, Any]]]


@contextmanager
def endpoint(reply: Reply) -> Iterator[Endpoint]:
    """An endpoint that says `reply(content of the last message)`; a number is the status it answers with."""
    sent: list[tuple[str, str | None, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append((self.path, self.headers["Authorization"], body))
            said = reply(body["messages"][-1]["content"])
            self.send_response(said if isinstance(said, int) else 200)
            self.end_headers()
            if isinstance(said, str):
                self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", sent)
    finally:
        server.shutdown()
        server.server_close()
