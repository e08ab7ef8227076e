"""Who may ask what of a server of ours: host, origin, token, size of a request. For any ASGI application.

Loopback needs no token, but a page of another site must not reach it through a name that it points at 127.0.0.1 (DNS
rebinding): only known hosts and the server's own origin are answered. With a token every route but the sign-in needs
it, be it as a bearer token or as the cookie that signing in sets; a new route is guarded unless it is named.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from selfalign.errors import UserError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN = "SELFALIGN_TOKEN"  # noqa: S105  (the variable's name)
SHORTEST = 16
SIGN_IN = "/sign-in"
BASE_CSS = "/static/base.css"

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""On every answer, unless the application set one of them itself."""


@dataclass(eq=False)
class Refused(Exception):
    """An answer with a status of 400 and more; `body` has the shape that OpenAI's clients read."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None
    """Seconds."""

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = [(b"content-type", b"application/json")]
        if self.retry_after is not None:
            found.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        if self.status == 405:
            found.append((b"allow", b"GET, HEAD, POST"))
        return found


@dataclass(frozen=True, slots=True)
class Policy:
    """What is let through."""

    names: frozenset[str] = frozenset({"localhost"})
    """Host names besides the addresses below, in lower case."""
    loopback: bool = True
    """Of addresses, only loopback ones are hosts; else any: no name can be pointed at us through one."""
    token: str | None = field(default=None, repr=False)
    methods: frozenset[str] = frozenset({"GET", "HEAD", "POST"})
    max_body: int = 1 << 20
    """Bytes of a request's body."""
    body_s: float = 30.0
    """Seconds in which a body must have come."""


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server that listens there."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def policy(host: str, allowed: Iterable[str] = ()) -> Policy:
    """The policy of a server that listens on `host`, with the token of the environment.

    Args:
        allowed: host names besides the machine's own under which clients will reach it.

    Raises:
        UserError: it would be reached from elsewhere and there is no token, the token is too short, or what is
            allowed is no host.
    """
    import socket

    token = os.environ.get(TOKEN) or None
    if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"{TOKEN} must be at least {SHORTEST} printable ASCII characters, such as `openssl rand -hex 24`"
        )
    if not is_loopback(host) and token is None:
        raise UserError(
            f"--host {host} can be reached from other machines and there is no token: set one, as in "
            f"{TOKEN}=$(openssl rand -hex 24), or leave --host out"
        )
    machine = socket.gethostname()
    own = () if is_loopback(host) else (host, machine, f"{machine}.local")
    names = {name.lower().rstrip(".") for name in ("localhost", *own) if _address(name) is None}
    for given in allowed:
        bare = given.strip("[]").lower().rstrip(".")
        if _address(bare) is None and not re.fullmatch(r"[a-z0-9._-]+", bare):
            raise UserError(f"--allow-host {given!r} is no host: a name or address, without scheme, port and path")
        names.add(bare)
    return Policy(frozenset(names), is_loopback(host), token)


# -- pure decisions ----------------------------------------------------------------------------------------------------


def check_host(policy: Policy, hosts: list[str]) -> None:
    """Raises Refused unless there is one Host header and it names this server. Ports may be forwarded: any will do."""
    name = _name(hosts[0]) if len(hosts) == 1 else None
    if name is not None:
        address = _address(name)
        if name in policy.names or (address is not None and (address.is_loopback or not policy.loopback)):
            return
    raise Refused(421, "this server is not known by that host name (--allow-host NAME allows one)", code="wrong_host")


def check_origin(method: str, host: str, origins: list[str], site: str, mode: str) -> None:
    """Raises Refused where a page of another origin asks.

    Args:
        origins: the Origin headers; none from programs, and from browsers that fetch within the page's own origin.
        site, mode: Sec-Fetch-Site and -Mode; empty where the client sends none.
    """
    own = {f"http://{host.lower()}", f"https://{host.lower()}"}
    foreign = any(origin.lower() not in own for origin in origins)
    elsewhere = site in ("cross-site", "same-site") and not (mode == "navigate" and method in ("GET", "HEAD"))
    if foreign or elsewhere:
        raise Refused(403, "pages of other sites may not ask this server", code="wrong_origin")


def cookie_name(host: str) -> str:
    """Cookies do not tell ports apart: servers side by side need names of their own."""
    port = host.rpartition(":")[2]
    return f"selfalign-{port if port.isdigit() else 0}"


def cookie_value(token: str) -> str:
    """What the cookie holds instead of the token."""
    return hmac.new(token.encode(), b"selfalign browser session", hashlib.sha256).hexdigest()


def has_token(policy: Policy, authorization: list[str], cookies: list[str], host: str) -> bool:
    """Whether a request shows the policy's token, as a bearer or by the cookie; true where there is none."""
    if policy.token is None:
        return True
    if len(authorization) == 1:
        scheme, _, given = authorization[0].partition(" ")
        return scheme.lower() == "bearer" and _same(given.strip(), policy.token)
    wanted, name = cookie_value(policy.token), cookie_name(host)
    pairs = (pair.strip().partition("=") for header in cookies for pair in header.split(";"))
    return any(key == name and _same(value, wanted) for key, _, value in pairs)


def _same(given: str, wanted: str) -> bool:
    """In a time that does not tell how much of it was right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode("utf-8", "replace"))


def _name(host: str) -> str | None:
    """The name or address in a Host header, without its port; None where it is none."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket or (port and not (port[0] == ":" and port[1:].isdecimal())):
            return None
        return name if ":" in name else None
    name, colon, port = host.partition(":")
    if not name or (colon and not port.isdecimal()):
        return None
    return name.removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


# -- the middleware ----------------------------------------------------------------------------------------------------


class Guard:
    """An ASGI application before another one, which gets only requests that the policy lets through.

    Bodies come whole: a request is handed on when its body has arrived, within the limits of size and time.

    Args:
        open_paths: paths that need no token besides the sign-in and its style sheet; they must hold nothing of a run.
    """

    def __init__(self, app: App, policy: Policy, open_paths: Iterable[str] = ()) -> None:
        self._app = app
        self._policy = policy
        self._open = {SIGN_IN, BASE_CSS, *open_paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Websockets are refused; what starts and ends the application is its own affair.
            await (self._app(scope, receive, send) if scope["type"] == "lifespan" else _close(send))
            return
        send = _with_headers(send)
        try:
            host = self._check(scope)
            signed_in = has_token(self._policy, _all(scope, "authorization"), _all(scope, "cookie"), host)
            if not signed_in and scope["path"] not in self._open:
                if _is_page(scope):
                    await _respond(send, 401, _HTML, _page())
                    return
                raise Refused(
                    401, f"this server needs its token ({TOKEN})", "authentication_error", code="invalid_api_key"
                )
            body = await self._body(scope, receive)
            if scope["path"] == SIGN_IN:
                await self._sign_in(scope, body, host, send)
            elif scope["path"] == BASE_CSS:
                await _respond(send, 200, [(b"content-type", b"text/css; charset=utf-8")], part("base.css"))
            else:
                await self._app(scope, _replay(body, receive), send)
        except Refused as refused:
            await _respond(send, refused.status, refused.headers(), refused.body())
        except _Gone:
            return

    def _check(self, scope: Scope) -> str:
        hosts = _all(scope, "host")
        check_host(self._policy, hosts)
        site, mode = (next(iter(_all(scope, f"sec-fetch-{n}")), "") for n in ("site", "mode"))
        check_origin(scope["method"], hosts[0].strip(), _all(scope, "origin"), site, mode)
        if scope["method"] not in self._policy.methods:
            raise Refused(405, f"the method {scope['method'][:20]} is not answered here")
        return hosts[0].strip().lower()

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        too_large = Refused(413, f"the request is larger than {self._policy.max_body:,} bytes", code="too_large")
        if any(
            not n.isdecimal() or len(n) > 15 or int(n) > self._policy.max_body for n in _all(scope, "content-length")
        ):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._policy.body_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._policy.max_body:
                        raise too_large
        except TimeoutError:
            raise Refused(408, f"the request's body did not come within {self._policy.body_s:g} s") from None
        return bytes(body)

    async def _sign_in(self, scope: Scope, body: bytes, host: str, send: Send) -> None:
        """The form's token becomes a cookie, which scripts cannot read and other sites cannot send."""
        if scope["method"] != "POST":
            await _respond(send, 200, _HTML, _page())
            return
        given = parse_qs(body.decode("utf-8", "replace"), max_num_fields=4) if body.count(b"&") < 4 else {}
        token = self._policy.token
        if token is None or not _same(given.get("token", [""])[0].strip(), token):
            await _respond(send, 401, _HTML, _page("This is not the server's token."))
            return
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f"{cookie_name(host)}={cookie_value(token)}; Path=/; HttpOnly; SameSite=Strict{secure}"
        place = _place(next(iter(_all(scope, "referer")), ""), host)
        await _respond(send, 303, [(b"location", place.encode()), (b"set-cookie", cookie.encode())], b"")


class _Gone(Exception):
    """The client left before its request was whole."""


_HTML = [(b"content-type", b"text/html; charset=utf-8")]


def part(name: str) -> bytes:
    """A file of the pages (web/static), which no request names by a path of its own."""
    return (resources.files("selfalign") / "web" / "static" / name).read_bytes()


def _page(note: str = "") -> bytes:
    return part("sign_in.html").replace(b"{note}", note.encode())


def _all(scope: Scope, name: str) -> list[str]:
    wanted = name.encode()
    return [value.decode("latin-1") for key, value in scope["headers"] if key == wanted]


def _place(referer: str, host: str) -> str:
    """Where a page of ours asked for the token: what is shown there stands in its address."""
    with contextlib.suppress(ValueError):
        found = urlsplit(referer)
        place = found._replace(scheme="", netloc="", fragment="").geturl()
        ours = found.netloc.lower() == host and found.path.startswith("/") and found.path != SIGN_IN
        if ours and place.isascii() and not place.startswith("//") and "\\" not in place:
            return place
    return "/"


def _is_page(scope: Scope) -> bool:
    """Whether a person's browser asks, who can sign in."""
    return scope["method"] == "GET" and any("text/html" in value for value in _all(scope, "accept"))


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            names = {key.lower() for key, _ in given}
            more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in names]
            message = {**message, "headers": [*given, *more]}
        await send(message)

    return sending


async def _respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    sized = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": sized})
    await send({"type": "http.response.body", "body": body})


async def _close(send: Send) -> None:
    await send({"type": "websocket.close", "code": 1008})
