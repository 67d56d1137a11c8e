"""A small server on this machine that takes uploads as the Hugging Face hub does, without Xet storage."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple

import pytest


class Hub(NamedTuple):
    """What it was sent: repositories made, files by repository and name, and the tokens that came with them."""

    url: str
    made: list[dict[str, Any]]
    files: dict[str, dict[str, bytes]]
    tokens: set[str | None]


@contextmanager
def hub(status: int = 200) -> Iterator[Hub]:
    """A hub that huggingface_hub talks to inside the block, with the token `hf_test`. It answers to the creation of a
    repository with `status`."""
    blobs: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.tokens.add(self.headers["Authorization"])
            if self.path == "/api/repos/create":
                found.made.append(json.loads(body))
                name = "/".join(filter(None, (found.made[-1]["organization"], found.made[-1]["name"])))
                self.answer({"url": f"{found.url}/{name}"} if status == 200 else {"error": "no"}, status)
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {True: "lfs", False: "regular"}
                files = [
                    {"path": n, "uploadMode": modes[n.endswith(".safetensors")], "shouldIgnore": False} for n in names
                ]
                self.answer({"files": files})
            elif self.path.endswith("/info/lfs/objects/batch"):
                self.answer({"transfer": "basic", "objects": [
                    {**one, "actions": {"upload": {"href": f"{found.url}/blob/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]})  # fmt: skip
            elif self.path == "/api/validate-yaml":  # the front matter of a card
                self.answer({"errors": [], "warnings": []})
            else:
                repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                lines = [json.loads(line) for line in body.decode().splitlines()]
                held = found.files.setdefault(repo, {})
                for value in (line["value"] for line in lines if line["key"] == "file"):
                    held[value["path"]] = base64.b64decode(value["content"])
                for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
                    held[value["path"]] = blobs[value["oid"]]
                self.answer({"commitUrl": f"{found.url}/{repo}/commit/1", "commitOid": "1", "success": True})

        def do_PUT(self) -> None:
            blobs[self.path.removeprefix("/blob/")] = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer({})

        def answer(self, document: dict[str, Any], code: int = 200) -> None:
            data = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Hub(f"http://127.0.0.1:{server.server_address[1]}", [], {}, set())
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_test")
        patch.setattr("huggingface_hub.constants.ENDPOINT", found.url)  # what HF_ENDPOINT sets where it is imported
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        try:
            yield found
        finally:
            server.shutdown()
            server.server_close()
