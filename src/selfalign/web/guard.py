"""Guard an ASGI application: check host, origin, token, method and size of every request.

Loopback needs no token, but a page of another site could reach it through a name that resolves to 127.0.0.1 (DNS
rebinding), so only known host names and the server's own origin are accepted. With a token every route but the sign-in
needs it, as a bearer token or as the cookie that the sign-in sets; new routes are guarded by default.
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
MIN_TOKEN_LENGTH = 16
SIGN_IN = "/sign-in"
BASE_CSS = "/static/base.css"
OPEN_PATHS = {SIGN_IN, BASE_CSS}
"""Paths that need no token."""

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
"""Added to every response, unless the application sets them itself."""


@dataclass(eq=False)
class Refused(Exception):
    """An error response (status 400 or higher) in the format of OpenAI's API."""

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
        headers = [(b"content-type", b"application/json")]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.status == 405:
            headers.append((b"allow", b"GET, HEAD, POST"))
        return headers


@dataclass(frozen=True, slots=True)
class Policy:
    """The requests that are accepted."""

    names: frozenset[str] = frozenset({"localhost"})
    """Accepted host names, in lower case. Loopback addresses are always accepted."""
    loopback: bool = True
    """Accept only loopback addresses as hosts. Otherwise any address: DNS rebinding needs a name."""
    token: str | None = field(default=None, repr=False)
    methods: frozenset[str] = frozenset({"GET", "HEAD", "POST"})
    max_body: int = 1 << 20
    """Maximum bytes of a request's body."""
    body_s: float = 30.0
    """Seconds within which a body must arrive."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on this host."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def policy(host: str, allowed: Iterable[str] = ()) -> Policy:
    """Return the policy of a server that listens on `host`, with the token from the environment.

    Args:
        allowed: host names to accept in addition to the machine's own.

    Raises:
        UserError: other machines can reach the host and there is no token, the token is too short, or an allowed name
            is not a host.
    """
    import socket

    token = os.environ.get(TOKEN) or None
    if token is not None and (len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"{TOKEN} must be at least {MIN_TOKEN_LENGTH} printable ASCII characters, such as `openssl rand -hex 24`"
        )
    if not is_loopback(host) and token is None:
        raise UserError(
            f"--host {host} can be reached from other machines, which needs a token: set "
            f"{TOKEN}=$(openssl rand -hex 24), or omit --host"
        )
    machine = socket.gethostname()
    own = () if is_loopback(host) else (host, machine, f"{machine}.local")
    names = {name.lower().rstrip(".") for name in ("localhost", *own) if _address(name) is None}
    for name in allowed:
        bare = name.strip("[]").lower().rstrip(".")
        if _address(bare) is None and not re.fullmatch(r"[a-z0-9._-]+", bare):
            raise UserError(f"--allow-host {name!r} is not a host name or address (without scheme, port, path)")
        names.add(bare)
    return Policy(frozenset(names), is_loopback(host), token)


# -- checks ------------------------------------------------------------------------------------------------------------


def check_host(policy: Policy, hosts: list[str]) -> None:
    """Raise Refused unless there is one Host header and it names this server, with any port (it may be forwarded)."""
    name = _name(hosts[0]) if len(hosts) == 1 else None
    if name is not None:
        address = _address(name)
        if name in policy.names or (address is not None and (address.is_loopback or not policy.loopback)):
            return
    raise Refused(421, "unknown host name: start the server with --allow-host NAME to accept it", code="wrong_host")


def check_origin(method: str, host: str, origins: list[str], site: str, mode: str) -> None:
    """Raise Refused if the request comes from a page of another origin.

    Args:
        origins: the Origin headers; programs send none, nor do browsers that fetch from the page's own origin.
        site, mode: Sec-Fetch-Site and Sec-Fetch-Mode; empty if the client does not send them.
    """
    own = {f"http://{host.lower()}", f"https://{host.lower()}"}
    foreign = any(origin.lower() not in own for origin in origins)
    elsewhere = site in ("cross-site", "same-site") and not (mode == "navigate" and method in ("GET", "HEAD"))
    if foreign or elsewhere:
        raise Refused(403, "requests from pages of other sites are refused", code="wrong_origin")


def cookie_name(host: str) -> str:
    """Return the cookie's name; it contains the port, because browsers share cookies among the ports of a host."""
    port = host.rpartition(":")[2]
    return f"selfalign-{port if port.isdigit() else 0}"


def cookie_value(token: str) -> str:
    """Return the value of the cookie, which is derived from the token."""
    return hmac.new(token.encode(), b"selfalign browser session", hashlib.sha256).hexdigest()


def has_token(policy: Policy, authorization: list[str], cookies: list[str], host: str) -> bool:
    """Return whether a request has the policy's token, as a bearer token or as a cookie; true if none is needed."""
    if policy.token is None:
        return True
    if len(authorization) == 1:
        scheme, _, token = authorization[0].partition(" ")
        return scheme.lower() == "bearer" and _equal(token.strip(), policy.token)
    expected, name = cookie_value(policy.token), cookie_name(host)
    pairs = (pair.strip().partition("=") for header in cookies for pair in header.split(";"))
    return any(key == name and _equal(value, expected) for key, _, value in pairs)


def _equal(value: str, expected: str) -> bool:
    """Compare secrets in constant time."""
    return hmac.compare_digest(value.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))


def _name(host: str) -> str | None:
    """Return the name or address in a Host header without its port; None if it is malformed."""
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
    """ASGI middleware that passes on only requests that the policy accepts.

    A request is passed on when its whole body has arrived, within the limits of size and time.
    """

    def __init__(self, app: App, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send)
        try:
            host = self._check(scope)
            signed_in = has_token(self._policy, _all(scope, "authorization"), _all(scope, "cookie"), host)
            if not signed_in and scope["path"] not in OPEN_PATHS:
                if _is_page(scope):
                    await _respond(send, 401, _HTML, _sign_in_page())
                    return
                raise Refused(
                    401, f"this server needs its token ({TOKEN})", "authentication_error", code="invalid_api_key"
                )
            body = await self._body(scope, receive)
            if scope["path"] == SIGN_IN:
                await self._sign_in(scope, body, host, send)
            elif scope["path"] == BASE_CSS:
                await _respond(send, 200, [(b"content-type", b"text/css; charset=utf-8")], static_file("base.css"))
            else:
                await self._app(scope, _replay(body, receive), send)
        except Refused as refused:
            await _respond(send, refused.status, refused.headers(), refused.body())
        except _Disconnected:
            return

    def _check(self, scope: Scope) -> str:
        hosts = _all(scope, "host")
        check_host(self._policy, hosts)
        site, mode = (next(iter(_all(scope, f"sec-fetch-{n}")), "") for n in ("site", "mode"))
        check_origin(scope["method"], hosts[0].strip(), _all(scope, "origin"), site, mode)
        if scope["method"] not in self._policy.methods:
            raise Refused(405, f"the method {scope['method'][:20]} is not supported")
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
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Disconnected
                    body += message.get("body", b"")
                    if len(body) > self._policy.max_body:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refused(408, f"the request's body did not arrive within {self._policy.body_s:g} s") from None

    async def _sign_in(self, scope: Scope, body: bytes, host: str, send: Send) -> None:
        """Exchange the form's token for a cookie, which scripts cannot read and other sites cannot send."""
        if scope["method"] != "POST":
            await _respond(send, 200, _HTML, _sign_in_page())
            return
        form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=4) if body.count(b"&") < 4 else {}
        token = self._policy.token
        if token is None or not _equal(form.get("token", [""])[0].strip(), token):
            await _respond(send, 401, _HTML, _sign_in_page("Wrong token."))
            return
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f"{cookie_name(host)}={cookie_value(token)}; Path=/; HttpOnly; SameSite=Strict{secure}"
        target = _target(next(iter(_all(scope, "referer")), ""), host)
        await _respond(send, 303, [(b"location", target.encode()), (b"set-cookie", cookie.encode())], b"")


class _Disconnected(Exception):
    """The client disconnected before its request was complete."""


_HTML = [(b"content-type", b"text/html; charset=utf-8")]


def static_file(name: str) -> bytes:
    """Read a file of web/static. Names come from the code, never from a request."""
    return (resources.files("selfalign") / "web" / "static" / name).read_bytes()


def _sign_in_page(note: str = "") -> bytes:
    return static_file("sign_in.html").replace(b"{note}", note.encode())


def _all(scope: Scope, name: str) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()]


def _target(referer: str, host: str) -> str:
    """Return the path to go to after signing in: the page that asked for the token, if it is the server's own."""
    with contextlib.suppress(ValueError):
        url = urlsplit(referer)
        target = url._replace(scheme="", netloc="", fragment="").geturl()
        is_own = url.netloc.lower() == host and url.path.startswith("/") and url.path != SIGN_IN
        if is_own and target.isascii() and not target.startswith("//") and "\\" not in target:
            return target
    return "/"


def _is_page(scope: Scope) -> bool:
    """Return whether a browser requests a page, so that a person can sign in."""
    return scope["method"] == "GET" and any("text/html" in value for value in _all(scope, "accept"))


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first gives the body that was already read."""
    is_replayed = False

    async def receive_again() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            names = {key.lower() for key, _ in headers}
            added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in names]
            message = {**message, "headers": [*headers, *added]}
        await send(message)

    return send_with_headers


async def _respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    sized = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": sized})
    await send({"type": "http.response.body", "body": body})
