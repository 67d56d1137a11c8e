"""The door: who may ask the server. It edits models, so no other page of the browser may speak to it.

A request must name a host that this server goes by (against DNS rebinding) and, where it has an Origin, come from the
page itself. With a token it must show it too: once in the address, `/?token=…`, from then on by a cookie.
"""

import hashlib
import ipaddress
import re
import secrets
import socket
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tether.errors import BadSettingsError

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_ALWAYS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store"}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Door:
    """An ASGI application in front of another."""

    def __init__(self, app: ASGIApp, *, host: str, token: str | None) -> None:
        if token is None and not is_loopback(host):
            raise BadSettingsError(f"host {host} can be reached from other machines: a token is needed")
        if token is not None and not re.fullmatch("[A-Za-z0-9_-]{8,}", token):
            raise BadSettingsError(f"token {token!r}: give at least 8 letters, digits, - and _")
        self._app, self._host, self._token = app, host.lower(), token
        # Cookies do not tell ports apart: two pages of one machine have two names.
        self._cookie = f"tether_{hashlib.sha256((token or '').encode()).hexdigest()[:12]}"
        self._names = {"localhost", self._host, *(() if is_loopback(host) else _own_names())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        answer = self._answer(scope, Headers(scope=scope))
        if answer is not None:
            await answer(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                wanted = {"content-security-policy": _POLICY, **_ALWAYS}
                new = [(k.encode(), v.encode()) for k, v in wanted.items() if k.encode() not in given]
                message["headers"] = [*message["headers"], *new]
            await send(message)

        await self._app(scope, receive, sealed)

    def _answer(self, scope: Scope, headers: Headers) -> Response | None:
        """Why a request is refused, or where it is sent instead; None for one that is let in."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._goes_by(host):
            return PlainTextResponse(f"host {host!r} is none of this server's names", 421)
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return PlainTextResponse(f"origin {origin!r} is another page", 403)
        visit = scope["method"] == "GET" and scope["path"] == "/"
        if not visit and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return PlainTextResponse("the request comes from another page", 403)
        if scope["method"] not in ("GET", "HEAD") and not headers.get("content-type", "").startswith(
            "application/json"
        ):
            return PlainTextResponse("send application/json", 415)
        if self._token is None:
            return None
        if visit and (given := parse_qs(scope["query_string"].decode("latin-1")).get("token")):
            if not secrets.compare_digest(given[0].encode(), self._token.encode()):
                return PlainTextResponse("wrong token: open the address that tether live printed", 401)
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return answer
        if not any(secrets.compare_digest(shown.encode(), self._token.encode()) for shown in self._shown(headers)):
            return PlainTextResponse("a token is needed: open the address that tether live printed", 401)
        return None

    def _goes_by(self, host: str) -> bool:
        """Whether a Host header names this server; the port does not count, since tunnels change it."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # An address cannot be rebound. A server of this machine alone goes by loopback addresses.
        return address.is_loopback or not is_loopback(self._host)

    def _shown(self, headers: Headers) -> list[str]:
        """The tokens that a request shows."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        shown = [given] if kind.lower() == "bearer" else []
        return [*shown, *filter(None, [cookie_parser(headers.get("cookie", "")).get(self._cookie)])]


def _own_names() -> set[str]:
    return {socket.gethostname().lower(), socket.getfqdn().lower()}
