"""The live page's server: the routes of a Studio. Answers are JSON; what grows comes as server-sent events."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from importlib import resources
from typing import Any, Literal, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tether.errors import BadSettingsError, TetherError, failure, first_line
from tether.storage.atomic import finite
from tether.web.desk import BusyError, Desk, GaveWayError, GoneError, Tell
from tether.web.door import REPORT_POLICY, Door
from tether.web.studio import TOKENS, Studio

logger = logging.getLogger(__name__)

_LOOK = 0.25  # seconds between two looks at what changed
_KEEP_ALIVE = 15.0  # seconds after which a quiet stream says that it lives
_LARGEST = 64 << 20  # bytes of a request: a file of facts
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


class Live:
    """The page of one studio. `application` is what a server runs; `close` waits for what is at work, pausing a run."""

    def __init__(self, studio: Studio, *, host: str = "127.0.0.1", token: str | None = None) -> None:
        self.studio, self.desk = studio, Desk()
        self.closing: Callable[[], bool] = lambda: False  # whether the server wants its streams to end
        self._running: asyncio.Task[None] | None = None
        posts: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "check": self._check, "facts": self._facts, "run": self._run, "run/pause": self._pause,
            "run/resume": self._resume, "preview": self._preview, "undo": self._undo,
            "redo": self._redo, "verify": self._verify, "export": self._export, "tests": self._tests,
            "report": self._report, "consolidate": self._consolidate, "repair": self._repair,
            "headroom": self._headroom,
        }  # fmt: skip
        gets: dict[str, Callable[[Request], Any]] = {
            "state": lambda _: studio.state(), "prompts": lambda _: studio.prompts(), "events": self._events,
        }  # fmt: skip
        routes = [Route("/", _static("index.html")), Route("/static/{name:path}", _static())]
        routes += [Route(f"/api/{name}", self._got(get)) for name, get in gets.items()]
        routes += [Route(f"/api/{name}", _answering(post), methods=["POST"]) for name, post in posts.items()]
        routes += [
            Route("/api/ask", self._ask, methods=["POST"]), Route("/api/live", self._live),
            Route("/api/scores", self._scores, methods=["POST"]),
            Route("/report", self._report_page),
        ]  # fmt: skip
        self.application: ASGIApp = Door(
            Starlette(
                routes=routes,
                exception_handlers={TetherError: _refused, HTTPException: _wrong, Exception: _broken},
            ),
            host=host, token=token,
        )  # fmt: skip

    def close(self) -> None:
        self.closing = lambda: True
        self.studio.pause()
        self.desk.close()

    # --- what is asked for --------------------------------------------------------------------------------------

    def _got(self, get: Callable[[Request], Any]) -> Handler:
        """What is there; while the desk is at work, which alone may read the ledger anew, what is known without it."""

        async def answer(request: Request) -> Response:
            if not self.desk.at_work:
                await self.desk.do(self.studio.refresh)
            return _json(get(request))

        return answer

    def _events(self, request: Request) -> Any:
        after = request.query_params.get("after", "0")
        if not after.isdecimal():
            raise HTTPException(400, f"after must be the number of events that are known, not {after[:40]}")
        return self.studio.events(int(after))

    async def _check(self, body: Any) -> Any:
        return await self.desk.do(lambda: self.studio.check(body))

    async def _facts(self, body: Any) -> Any:
        return await asyncio.to_thread(self.studio.read, _needed(body, "text", str))  # which needs no model

    async def _run(self, body: Any) -> Any:
        self.desk.check_free()
        schedule = {name: body[name] for name in ("restrain", "every", "on_alarm") if body.get(name) is not None}
        self.studio.begin(_needed(body, "facts", list), schedule)
        return self._start()

    async def _resume(self, _: Any) -> Any:
        self.desk.check_free()
        self.studio.go_on()
        return self._start()

    def _start(self) -> Any:
        work = self.desk.do_long("editing", self.studio.work)  # at once: another request finds the desk busy

        async def whole() -> None:
            try:
                await work
            except TetherError as error:
                logger.warning("%s", error)
            except Exception:  # the run says that it failed, the log why
                logger.exception("the run failed")

        self._running = asyncio.get_running_loop().create_task(whole())
        return {"run": self.studio.run_state()}

    async def _pause(self, _: Any) -> Any:
        self.studio.pause()
        return {"run": self.studio.run_state()}

    async def _preview(self, body: Any) -> Any:
        return await self.desk.do(lambda: self.studio.preview(**_chosen(body), prompt=body.get("prompt")))

    async def _scores(self, request: Request) -> Response:
        """Behind all other work, and begun again after it, as long as somebody waits for it."""
        chosen = _chosen(await _body(request))
        while not await request.is_disconnected():
            with suppress(GaveWayError):
                return _json(await self.desk.do_behind(lambda look: self.studio.scores(**chosen, look=look)))
        return Response(status_code=499)  # which nobody reads

    async def _undo(self, body: Any) -> Any:
        edits = _edits(body)
        return await self.desk.do(lambda: self.studio.mark("undo", edits))

    async def _redo(self, body: Any) -> Any:
        edits = _edits(body)
        return await self.desk.do(lambda: self.studio.mark("redo", edits))

    async def _verify(self, body: Any) -> Any:
        return await self.desk.do_long("verifying", lambda: self.studio.verify(body.get("head") or None))

    async def _consolidate(self, body: Any) -> Any:
        given = str(body.get("strength") or "").strip()
        try:
            strength: float | Literal["auto"] | None = "auto" if given == "auto" else float(given) if given else None
        except ValueError:
            raise BadSettingsError(f"strength {given!r}: give a number above 0, auto, or nothing") from None
        return await self.desk.do_long("consolidating", lambda: self.studio.consolidate(strength))

    async def _repair(self, _: Any) -> Any:
        return await self.desk.do_long("repairing", self.studio.repair)

    async def _headroom(self, body: Any) -> Any:
        return await self.desk.do_long("looking for room", lambda: self.studio.headroom(**_chosen(body)))

    async def _export(self, body: Any) -> Any:
        kind, name = _needed(body, "as", str), str(body.get("name") or "")
        return await self.desk.do_long("exporting", lambda: self.studio.export(kind, name, **_chosen(body)))

    async def _tests(self, body: Any) -> Any:
        text = None if body.get("text") is None else _needed(body, "text", str)
        return await self.desk.do_long("running knowledge tests", lambda: self.studio.tests(text, **_chosen(body)))

    async def _report(self, body: Any) -> Any:
        restrain = _chosen(body)["restrain"]
        return await self.desk.do_long("measuring for the report", lambda: self.studio.report(restrain=restrain))

    async def _report_page(self, _: Request) -> Response:
        page = self.studio.report_page()
        if page is None:
            raise HTTPException(404)
        return HTMLResponse(page.read_bytes(), headers={"content-security-policy": REPORT_POLICY})

    # --- what grows ---------------------------------------------------------------------------------------------

    async def _ask(self, request: Request) -> Response:
        body, queue = await _body(request), asyncio.Queue[dict[str, Any] | None]()
        chosen, tokens = _chosen(body), _needed({"tokens": TOKENS, **body}, "tokens", int)
        self.desk.check_free()

        def work(tell: Tell) -> None:
            try:
                self.studio.ask(body.get("prompt"), tell, **chosen, tokens=tokens)
            except GoneError:
                raise
            except Exception as error:
                if not isinstance(error, TetherError):
                    logger.exception("the answer failed")
                tell({"kind": "error", "error": _line(error)})

        async def events() -> AsyncIterator[str]:
            task = asyncio.create_task(self.desk.stream(work, queue))
            try:
                while (said := await queue.get()) is not None:
                    yield _event(said)
                await task
            except TetherError as error:  # long work began meanwhile
                yield _event({"kind": "error", "error": _line(error)})
            finally:
                task.cancel()

        return _stream(events())

    async def _live(self, _: Request) -> Response:
        """What is at work, how far the run is, and whether the ledger changed: at once, and whenever it changes. Where
        nothing is at work, also what another process wrote."""

        async def events() -> AsyncIterator[str]:
            last: Any = None
            quiet = 0.0
            while not self.closing():
                if not self.desk.at_work:
                    with suppress(TetherError):  # who asks for the ledger is told
                        await self.desk.do(self.studio.refresh)
                now = self.desk.busy, self.studio.run_state(), self.studio.head
                quiet += _LOOK
                if now != last:
                    last, quiet = now, 0.0
                    state = self.studio.state()
                    known = {name: state[name] for name in ("head", "live", "edits")}
                    yield _event({"busy": now[0], "run": now[1], **known})
                elif quiet >= _KEEP_ALIVE:
                    quiet = 0.0
                    yield ": still here\n\n"
                await asyncio.sleep(_LOOK)

        return _stream(events())


def _chosen(body: Any) -> dict[str, Any]:
    """Which edits, and under which restraint (null: as recorded)."""
    upto = None if body.get("upto") is None else _needed(body, "upto", int)
    return {"upto": upto, "restrain": None if body.get("restrain") is None else _needed(body, "restrain", str)}


def _answering(post: Callable[[Any], Awaitable[Any]]) -> Handler:
    async def answer(request: Request) -> Response:
        return _json(await post(await _body(request)))

    return answer


async def _body(request: Request) -> Any:
    """The JSON object of a request."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > _LARGEST:
            raise HTTPException(413, f"more than {_LARGEST >> 20} MiB")
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "send a JSON object")
    return found


def _needed(body: Any, name: str, kind: type[T]) -> T:
    found = body.get(name)
    if not isinstance(found, kind):
        raise HTTPException(400, f"{name} must be given, as JSON's {kind.__name__}")
    return found


def _edits(body: Any) -> list[int]:
    found = _needed(body, "edits", list)
    if not all(isinstance(edit, int) for edit in found):
        raise HTTPException(400, "edits must be numbers of edits")
    return found


def _static(name: str | None = None) -> Handler:
    folder = resources.files(__package__) / "static"
    shared = resources.files("tether.report") / "style.css"

    async def answer(request: Request) -> Response:
        wanted = name or str(request.path_params["name"])
        file = shared if wanted == "style.css" else folder / wanted
        if "/" in wanted or not file.is_file():
            raise HTTPException(404)
        return Response(file.read_bytes(), media_type=_KINDS[wanted.rpartition(".")[2]])

    return answer


def _json(document: Any, status: int = 200) -> Response:
    return JSONResponse(finite(document), status)


async def _refused(_: Request, error: Exception) -> Response:
    return _json(
        {"error": str(error), "busy": isinstance(error, BusyError)}, 409 if isinstance(error, BusyError) else 400
    )


async def _wrong(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": f"the request is wrong: {error.detail}"}, error.status_code)


async def _broken(_: Request, error: Exception) -> Response:
    """For what nobody foresaw; the server logs where it happened."""
    return _json({"error": _line(error)}, 500)


def _line(error: Exception) -> str:
    return failure(error) or f"an error of tether ({first_line(error)}): the terminal of tether live says where"


def _event(document: Any) -> str:
    return f"data: {json.dumps(finite(document), ensure_ascii=False)}\n\n"


def _stream(events: AsyncIterator[str]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream")
