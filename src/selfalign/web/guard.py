"""Guard an ASGI application: check host, origin, token, method and size of every request.

A server on loopback needs no token, but pages of other sites could reach it through a name that resolves to 127.0.0.1
(DNS rebinding). So only known host names and requests from the server's own origin are accepted. If a token is set,
every route except the sign-in page requires it, as a bearer token or as the cookie that the sign-in page sets. New
routes are guarded by default.
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
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfalign.errors import UserError

TOKEN = "SELFALIGN_TOKEN"  # noqa: S105  (the variable's name)
MIN_TOKEN_LENGTH = 16
SIGN_IN = "/sign-in"
BASE_CSS = "/static/base.css"
_HOST = re.compile(r"(?:\[([^\]]*:[^\]]*)\]|([^\[:][^:]*))(?::\d+)?")
"""A Host header: an IPv6 address in brackets or a name, and a port."""
OPEN_PATHS = {SIGN_IN, BASE_CSS, "/health"}
"""Paths that do not require the token; probes of a server's health send none."""

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
"""Headers of every response, unless the application sets them itself."""


@dataclass(eq=False)
class RequestError(Exception):
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

    def response(self) -> Response:
        """Return the response with the headers of its status."""
        headers = {401: {"www-authenticate": "Bearer"}, 405: {"allow": "GET, HEAD, POST"}}.get(self.status, {})
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        return Response(self.body(), self.status, headers, media_type="application/json")


@dataclass(frozen=True, slots=True)
class Policy:
    """The conditions under which a request is accepted."""

    names: frozenset[str] = frozenset({"localhost"})
    """Accepted host names, in lower case. Loopback addresses are always accepted."""
    loopback: bool = True
    """Whether an IP address in the Host header must be loopback. If not, any is safe: DNS rebinding needs a name."""
    token: str | None = field(default=None, repr=False)
    max_body: int = 1 << 20
    """Maximum bytes of a request's body."""
    body_s: float = 30.0
    """Seconds within which a request's body must arrive."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on this host."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def policy(host: str, allowed: Iterable[str] = ()) -> Policy:
    """Return the policy of a server that listens on `host`, with the token from the environment.

    Args:
        allowed: host names to accept in addition to the machine's own.

    Raises:
        UserError: other machines can reach the host but no token is set, the token is too short, or an allowed name is
            not a host name.
    """
    token = os.environ.get(TOKEN) or None
    if token is not None and (len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"{TOKEN} must be at least {MIN_TOKEN_LENGTH} printable ASCII characters, such as `openssl rand -hex 24`"
        )
    if not is_loopback(host) and token is None:
        raise UserError(
            f"other machines can reach --host {host}, so a token is required: set {TOKEN}=$(openssl rand -hex 24), or "
            "omit --host"
        )
    machine = socket.gethostname()
    machine_names = () if is_loopback(host) else (host, machine, f"{machine}.local")
    names = {name.lower().rstrip(".") for name in ("localhost", *machine_names) if _address(name) is None}
    for name in allowed:
        bare = name.strip("[]").lower().rstrip(".")
        if _address(bare) is None and not re.fullmatch(r"[a-z0-9._-]+", bare):
            raise UserError(f"--allow-host {name!r} is not a host name or address: omit scheme, port and path")
        names.add(bare)
    return Policy(frozenset(names), is_loopback(host), token)


# -- checks ------------------------------------------------------------------------------------------------------------


def check_host(policy: Policy, hosts: list[str]) -> None:
    """Raise RequestError unless exactly one Host header names this server; ports may be forwarded and are ignored."""
    name = _name(hosts[0]) if len(hosts) == 1 else None
    if name is not None:
        address = _address(name)
        if name in policy.names or (address is not None and (address.is_loopback or not policy.loopback)):
            return
    raise RequestError(421, "unknown host name: start the server with --allow-host NAME", code="wrong_host")


def check_origin(method: str, host: str, origins: list[str], site: str, mode: str) -> None:
    """Raise RequestError if the request comes from a page of another origin.

    Args:
        origins: the Origin headers. Programs send none; browsers may omit it for requests to the page's own origin.
        site, mode: Sec-Fetch-Site and Sec-Fetch-Mode; empty if the client does not send them.
    """
    own_origins = {f"http://{host.lower()}", f"https://{host.lower()}"}
    is_link = mode == "navigate" and method in ("GET", "HEAD")
    is_cross_site = site in ("cross-site", "same-site") and not is_link
    if is_cross_site or any(origin.lower() not in own_origins for origin in origins):
        raise RequestError(403, "requests from pages of other sites are refused", code="wrong_origin")


def cookie_name(host: str) -> str:
    """Return the cookie's name. It contains the port, because all ports of a host share their cookies."""
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
    match = _HOST.fullmatch(host.strip().lower())
    return (match[1] or match[2].removesuffix(".")) if match else None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


# -- the middleware ----------------------------------------------------------------------------------------------------


class Guard:
    """ASGI middleware that forwards only the requests that the policy accepts.

    A request is forwarded once its whole body has arrived, within the limits of size and time.
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            send = _with_security_headers(send)
            try:
                await self._handle(Request(scope, receive), send)
            except RequestError as error:
                await error.response()(scope, receive, send)
            except ClientDisconnect:
                return

    async def _handle(self, request: Request, send: Send) -> None:
        scope, receive, headers = request.scope, request.receive, request.headers
        hosts, path = headers.getlist("host"), scope["path"]
        check_host(self._policy, hosts)
        host = hosts[0].strip().lower()
        site, mode = headers.get("sec-fetch-site", ""), headers.get("sec-fetch-mode", "")
        check_origin(request.method, host, headers.getlist("origin"), site, mode)
        if request.method not in ("GET", "HEAD", "POST"):
            raise RequestError(405, f"the method {request.method[:20]} is not supported")
        signed_in = has_token(self._policy, headers.getlist("authorization"), headers.getlist("cookie"), host)
        if not signed_in and path not in OPEN_PATHS:
            if request.method == "GET" and "text/html" in ",".join(headers.getlist("accept")):
                await _sign_in_page(401)(scope, receive, send)
                return
            message = f"this server requires its token, the value of {TOKEN}"
            raise RequestError(401, message, "authentication_error", code="invalid_api_key")
        body = await self._read_body(request)
        if path == SIGN_IN:
            await self._sign_in(request, body, host)(scope, receive, send)
        elif path == BASE_CSS:
            await Response(static_file("base.css"), media_type="text/css")(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _read_body(self, request: Request) -> bytes:
        limit, seconds = self._policy.max_body, self._policy.body_s
        too_large = RequestError(413, f"the request is larger than {limit:,} bytes", code="too_large")
        lengths = request.headers.getlist("content-length")
        if any(not n.isdecimal() or len(n) > 15 or int(n) > limit for n in lengths):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise RequestError(408, f"the request's body did not arrive within {seconds:g} s") from None
        return bytes(body)

    def _sign_in(self, request: Request, body: bytes, host: str) -> Response:
        """Exchange the form's token for a cookie, which scripts cannot read and other sites cannot send."""
        if request.method != "POST":
            return _sign_in_page(200)
        form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=4) if body.count(b"&") < 4 else {}
        token = self._policy.token
        if token is None or not _equal(form.get("token", [""])[0].strip(), token):
            return _sign_in_page(401, "Wrong token.")
        secure = "; Secure" if request.scope.get("scheme") == "https" else ""
        cookie = f"{cookie_name(host)}={cookie_value(token)}; Path=/; HttpOnly; SameSite=Strict{secure}"
        target = _target(request.headers.get("referer", ""), host)
        return Response(status_code=303, headers={"location": target, "set-cookie": cookie})


def static_file(name: str) -> bytes:
    """Read a file of web/static. The name never comes from a request."""
    return (resources.files("selfalign") / "web" / "static" / name).read_bytes()


def _sign_in_page(status: int, note: str = "") -> Response:
    return HTMLResponse(static_file("sign_in.html").replace(b"{note}", note.encode()), status)


def _target(referer: str, host: str) -> str:
    """Return the path to go to after signing in: the page that asked for the token, if it is the server's own."""
    with contextlib.suppress(ValueError):
        url = urlsplit(referer)
        target = url._replace(scheme="", netloc="", fragment="").geturl()
        is_own = url.netloc.lower() == host and url.path.startswith("/") and url.path != SIGN_IN
        if is_own and target.isascii() and not target.startswith("//") and "\\" not in target:
            return target
    return "/"


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first gives the body that was already read."""
    unread = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Message:
        return next(unread, None) or await receive()

    return receive_again


def _with_security_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
