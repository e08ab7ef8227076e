"""The guard checks hosts, origins, tokens, methods and sizes of requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.errors import UserError
from selfalign.web import guard
from selfalign.web.guard import Guard, Policy, RequestError, check_host, check_origin, cookie_value, has_token, policy

TOKEN = "correct-horse-battery"
LOOPBACK = Policy()
OPEN = Policy(frozenset({"localhost", "box.example"}), loopback=False, token=TOKEN)


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """An application that responds with the path and the size of the body."""
    size = len((await receive()).get("body", b""))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"SAMEORIGIN")]})
    await send({"type": "http.response.body", "body": f"{scope['path']} {size}".encode()})


def ask(
    policy: Policy, path: str = "/", method: str = "GET", body: list[bytes] | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    """Send one request through the guard."""
    sent: list[Any] = []
    all_headers = {"host": "localhost:8000", **headers}
    scope = {
        "type": "http", "method": method, "path": path, "scheme": "http",
        "headers": [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in all_headers.items() if v],
    }  # fmt: skip
    parts = list(body or [b""])

    async def receive() -> Any:
        if not parts:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(inner, policy)(scope, receive, send))
    response_headers = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], response_headers, b"".join(m.get("body", b"") for m in sent[1:])


HOSTS = {
    # header: (loopback without token, open to the network with one)
    "localhost": (True, True), "localhost:8000": (True, True), "LOCALHOST:1": (True, True), "localhost.": (True, True),
    "127.0.0.1:8000": (True, True), "127.8.9.1": (True, True), "[::1]:8000": (True, True), "[::1]": (True, True),
    "192.168.1.7:8000": (False, True), "[2001:db8::1]:80": (False, True), "box.example:8000": (False, True),
    "box.example": (False, True), "evil.example": (False, False), "evil.example:8000": (False, False),
    "localhost.evil.example": (False, False), "evil.example/localhost": (False, False), 
    "localhost@evil.example": (False, False),
    "evil.example#localhost": (False, False), "localhost:80:80": (False, False), "localhost:": (False, False),
    "localhost:x": (False, False), "[localhost]": (False, False), "[::1": (False, False), "[::1]x": (False, False),
    "::1": (False, False), "0x7f.1": (False, False), "2130706433": (False, False), "127.1": (False, False),
    "0177.0.0.1": (False, False), "127.0.0.1.evil.example": (False, False), 
    "127.0.0.1:8000, evil.example": (False, False),
    "localhost evil.example": (False, False), "localhost\t": (True, True), "": (False, False), "*": (False, False),
    "0.0.0.0": (False, True), "10.0.0.1": (False, True), "169.254.169.254": (False, True), 
    "1.1.1.1.nip.io": (False, False),
    "127.0.0.1.nip.io:8000": (False, False),
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_only_known_hosts_are_accepted(host: str):
    for rules, fine in zip((LOOPBACK, OPEN), HOSTS[host], strict=True):
        try:
            check_host(rules, [host])
            assert fine, rules
        except RequestError as error:
            assert not fine, rules
            assert error.status == 421


def test_exactly_one_host_header_is_required():
    for hosts in ([], ["localhost", "localhost"], ["localhost", "evil.example"]):
        with pytest.raises(RequestError):
            check_host(LOOPBACK, hosts)
    assert ask(LOOPBACK, host="evil.example")[0] == 421
    assert ask(LOOPBACK, host="")[0] == 421


ORIGINS = [
    # method, origins, site, mode, fine
    ("POST", [], "", "", True),
    ("POST", ["http://localhost:8000"], "", "", True),
    ("POST", ["http://LOCALHOST:8000"], "same-origin", "cors", True),
    ("POST", ["https://localhost:8000"], "", "", True),  # a proxy with TLS in front
    ("POST", ["http://localhost:3000"], "same-site", "cors", False),
    ("POST", ["http://localhost"], "", "", False),
    ("POST", ["http://evil.example"], "", "", False),
    ("POST", ["http://evil.example:8000"], "cross-site", "cors", False),
    ("POST", ["null"], "", "", False),
    ("POST", [""], "", "", False),
    ("POST", ["http://localhost:8000.evil.example"], "", "", False),
    ("POST", ["http://localhost:8000", "http://evil.example"], "", "", False),
    ("POST", ["file://"], "", "", False),
    ("POST", [], "cross-site", "navigate", False),
    ("GET", [], "cross-site", "navigate", True),  # a link to the page
    ("GET", [], "cross-site", "no-cors", False),  # an image in a page of another site
    ("GET", [], "same-site", "cors", False),
    ("GET", [], "none", "navigate", True),
    ("GET", ["http://evil.example"], "cross-site", "cors", False),
]


@pytest.mark.parametrize(("method", "origins", "site", "mode", "fine"), ORIGINS)
def test_pages_of_other_origins_are_refused(method: str, origins: list[str], site: str, mode: str, fine: bool):
    try:
        check_origin(method, "localhost:8000", origins, site, mode)
        assert fine
    except RequestError as error:
        assert not fine
        assert error.status == 403


@given(st.text(max_size=40))
def test_arbitrary_headers_never_pass_the_checks(text: str):
    for rules in (LOOPBACK, OPEN):
        try:
            check_host(rules, [text])
        except RequestError:
            continue
        name = text.strip().lower()
        assert name.startswith(("localhost", "box.example", "[")) or name[0].isdigit()
    assert not has_token(OPEN, [text], [text], "localhost:8000")
    assert not has_token(OPEN, [], [f"selfalign-8000={text}"], "localhost:8000")


def test_token_is_sent_as_bearer_or_as_cookie_of_this_port():
    cookie = cookie_value(TOKEN)
    assert TOKEN not in cookie
    host = "box.example:8000"
    assert has_token(OPEN, [f"Bearer {TOKEN}"], [], host)
    assert has_token(OPEN, [f"bearer  {TOKEN}"], [], host)
    assert has_token(OPEN, [], [f"a=b; selfalign-8000={cookie}; c"], host)
    assert has_token(LOOPBACK, [], [], host)
    wrong: list[tuple[list[str], list[str]]] = [
        ([], []), (["Bearer"], []), ([f"Basic {TOKEN}"], []), ([TOKEN], []), ([f"Bearer {TOKEN}x"], []),
        ([f"Bearer {TOKEN[:-1]}"], []), ([f"Bearer {TOKEN}"] * 2, []), ([f"Bearer {cookie}"], []),
        ([], [f"selfalign-8001={cookie}"]), ([], [f"selfalign-8000={TOKEN}"]), ([], [f"selfalign-8000={cookie}0"]),
    ]  # fmt: skip
    for authorization, cookies in wrong:
        assert not has_token(OPEN, authorization, cookies, host), (authorization, cookies)


def test_every_path_except_the_sign_in_requires_the_token():
    good = f"Bearer {TOKEN}"
    for path in ("/", "/v1/models", "/new", "//", "/sign-in/", "/static/base.css/", "/static/../secret", "/SIGN-IN"):
        for method in ("GET", "POST"):
            assert ask(OPEN, path, method)[0] == 401, path
            assert ask(OPEN, path, method, authorization="Bearer wrong")[0] == 401, path
            assert ask(OPEN, path, method, authorization=good)[0] == 200, path
    assert ask(OPEN, "/static/base.css")[0] == ask(OPEN, "/sign-in")[0] == 200
    assert ask(LOOPBACK, "/v1/models")[0] == 200


def test_browsers_get_the_sign_in_page_and_programs_an_error():
    status, headers, body = ask(OPEN, "/", accept="text/html,*/*")
    assert (status, headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert b"<form" in body
    status, headers, body = ask(OPEN, "/v1/models")
    assert headers["www-authenticate"] == "Bearer"
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


def test_sign_in_sets_a_cookie_that_scripts_cannot_read():
    form = f"token={TOKEN}".encode()
    status, headers, _ = ask(OPEN, "/sign-in", "POST", [form])
    assert (status, headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(headers["set-cookie"].split("; "))
    assert ask(OPEN, "/", cookie=headers["set-cookie"].split(";")[0])[0] == 200
    for wrong in (b"", b"token=", b"token=wrong", b"x&" * 50, b"token=%ff", b"\xff\xfe", form + b"x"):
        status, headers, body = ask(OPEN, "/sign-in", "POST", [wrong])
        assert (status, "set-cookie" in headers) == (401, False)
        assert b"Wrong token" in body
    assert ask(LOOPBACK, "/sign-in", "POST", [form])[0] == 401
    assert ask(OPEN, "/sign-in", "POST", [form], origin="http://evil.example")[0] == 403


def test_bodies_are_limited_in_size_and_time():
    small = Policy(max_body=10, body_s=0.05)
    assert ask(small, "/", "POST", [b"12345", b"67890"])[2] == b"/ 10"
    assert ask(small, "/", "POST", [b"12345", b"678901"])[0] == 413
    for length in ("11", "9" * 40, "-1", "x", "1e3"):
        assert ask(small, "/", "POST", [b""], content_length=length)[0] == 413, length
    assert ask(small, "/", "POST", [b"12345", b""], content_length="5")[0] == 200

    async def stalls(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the application must not run")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.sleep(5)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(stalls, small)(scope, receive, send))
    assert sent[0]["status"] == 408


REFERERS = {
    "http://localhost:8000/?row=align.1&words=%22": "/?row=align.1&words=%22", "http://localhost:8000/": "/", "": "/",
    "http://localhost:8000/sign-in": "/", "http://evil.example/x": "/", "http://localhost:8000//evil.example": "/",
    "http://localhost:8000/\\evil.example": "/", "http://localhost:8000": "/", "http://[": "/", "/x": "/",
    "javascript:alert(1)": "/", "http://localhost:8000/\xe9": "/",
}  # fmt: skip


@pytest.mark.parametrize("referer", REFERERS)
def test_sign_in_redirects_only_to_own_pages(referer: str):
    headers = ask(OPEN, "/sign-in", "POST", [f"token={TOKEN}".encode()], referer=referer)[1]
    assert headers["location"] == REFERERS[referer]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "x" * 100])
def test_other_methods_are_refused(method: str):
    assert ask(LOOPBACK, method=method)[0] == 405


def test_every_response_has_the_security_headers():
    for answer in (ask(LOOPBACK), ask(LOOPBACK, host="evil.example"), ask(OPEN), ask(OPEN, "/sign-in")):
        headers = answer[1]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
    assert ask(LOOPBACK)[1]["x-frame-options"] == "SAMEORIGIN"  # the application's own header stays


def test_websockets_are_closed():
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(inner, LOOPBACK)({"type": "websocket"}, send, send))  # type: ignore[arg-type]
    assert [m["type"] for m in sent] == ["websocket.close"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "box.example", ""])
def test_token_is_required_beyond_loopback(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(guard.TOKEN, raising=False)
    with pytest.raises(UserError, match="SELFALIGN_TOKEN="):
        policy(host)
    monkeypatch.setenv(guard.TOKEN, "")
    with pytest.raises(UserError, match="a token is required"):
        policy(host)
    monkeypatch.setenv(guard.TOKEN, TOKEN)
    open_policy = policy(host, ["Example.ORG"])
    assert (open_policy.loopback, open_policy.token) == (False, TOKEN)
    assert {"localhost", "example.org"} <= open_policy.names
    assert TOKEN not in repr(open_policy)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_token_is_optional_on_loopback(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(guard.TOKEN, raising=False)
    assert policy(host) == Policy(frozenset({"localhost"}), True, None)
    monkeypatch.setenv(guard.TOKEN, TOKEN)
    assert policy(host).token == TOKEN


def test_allowed_hosts_are_names_without_scheme_or_port(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(guard.TOKEN, raising=False)
    rules = policy("127.0.0.1", ["Box.Example.", "192.168.1.7", "[2001:db8::1]"])
    for host in ("box.example:8000", "192.168.1.7:8000", "[2001:db8::1]:8000"):
        check_host(rules, [host])
    with pytest.raises(RequestError):
        check_host(rules, ["192.168.1.8"])
    for wrong in ("box.example:8000", "http://box.example", "box.example/", "", "*", "bücher.example"):
        with pytest.raises(UserError, match="is not a host name or address"):
            policy("127.0.0.1", [wrong])


@pytest.mark.parametrize("token", ["short", "x" * 15, "ü" * 20, "a" * 20 + "\n"])
def test_weak_token_is_refused(token: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(guard.TOKEN, token)
    with pytest.raises(UserError, match="at least 16 printable"):
        policy("127.0.0.1")
