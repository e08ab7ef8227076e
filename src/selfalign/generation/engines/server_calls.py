"""HTTP calls to a server: its address, the key, connections that are kept open, limits in bytes and in time."""

from __future__ import annotations

import http.client
import os
import queue
import re
import socket
import ssl
import time
import urllib.parse

from selfalign.errors import Resumable, UserError
from selfalign.generation.retries import Transient
from selfalign.generation.settings import EngineSettings

_MAX_BODY = 4 << 20
"""Bytes of a reply that are read at most."""
_PORTS = {"http": 80, "https": 443}


def address(url: str | None, setting: str = "engine.url") -> urllib.parse.SplitResult:
    """A server's address, taken apart.

    Raises:
        UserError: there is none, or it is not an http address, or it holds a password.
    """
    if not url and setting == "engine.url":
        raise UserError(
            "engine.kind openai needs engine.url, for example http://127.0.0.1:8080/v1, or several in engine.urls"
        )
    try:
        parts = urllib.parse.urlsplit(url or "")
        known = parts.scheme in ("http", "https") and parts.port != 0
        host = (parts.hostname or "").encode("idna").decode()
        known = known and bool(host) and f"{host}{parts.path}".isascii() and not re.search(r"[\s\0-\x1f]", url or "")
    except ValueError:  # a port that is no number, a bracket that is not closed, a host that none can be
        known = False
    if not known:
        raise UserError(f"{setting} must begin with http:// or https:// and name a host, without spaces or accents")
    if parts.query or parts.fragment:
        raise UserError(f"{setting} goes on after ? or #, which no completions server has there: leave it out")
    if parts.username or parts.password:
        raise UserError(f"{setting} holds a user or password: put the key into a variable, named by engine.key_env")
    return parts


def addresses(config: EngineSettings) -> list[urllib.parse.SplitResult]:
    """The addresses of the recipe's server, or of all its servers.

    Raises:
        UserError: as `address`, or one is given twice.
    """
    if config.urls is None:
        return [address(config.url)]
    found: dict[tuple[str, str | None, int | None, str], str] = {}
    parted = [address(s.url, f"engine.urls.{number}") for number, s in enumerate(config.urls)]
    for number, parts in enumerate(parted):
        key = (parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme], _root(parts))
        if key in found:
            raise UserError(f"engine.urls.{number} is the same server as {found[key]}: each stands there once")
        found[key] = f"engine.urls.{number}"
    return parted


def _root(parts: urllib.parse.SplitResult) -> str:
    return parts.path.rstrip("/").removesuffix("/v1")


def title(parts: urllib.parse.SplitResult) -> str:
    """A server's address as messages have it."""
    return f"{parts.scheme}://{parts.netloc}{_root(parts)}"


class _Stale(Transient):
    """The connection was closed before a reply began: on one that was kept open, that is no failure yet."""


class Calls:
    """One server's. Threads may call at once.

    Args:
        config: address, the key's variable, time limit.
        name: what messages call the server.

    Raises:
        UserError: the address, or the variable with the key, is wrong or missing.
    """

    def __init__(self, config: EngineSettings, name: str) -> None:
        self.parts = address(config.url)
        self._who, self._path = name, _root(self.parts)
        self._key = _key(config.key_env)
        self._read_timeout, self._connect_timeout = config.timeout, min(10.0, config.timeout)
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def call(self, method: str, path: str, data: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body) of one HTTP call.

        Raises:
            Transient: there is no whole reply.
            Resumable: nobody knows the host.
            UserError: its certificate is not trusted.
        """
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            return self._call(self._connect(), method, path, data)
        try:
            return self._call(connection, method, path, data)
        except _Stale:
            self.close()  # what the server closed while nobody used it says nothing of the server
            return self._call(self._connect(), method, path, data)

    def _call(
        self, connection: http.client.HTTPConnection, method: str, path: str, data: bytes | None
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, self._path + path, data, headers)
            reply = connection.getresponse()
            raw = _bounded(reply, self._read_timeout, self._who)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            kind = _Stale if isinstance(error, ConnectionError) else Transient
            # Not str(error): it may quote what the server sent.
            raise kind(f"no reply from {self._who} ({type(error).__name__})") from None
        except BaseException:
            connection.close()
            raise
        if reply.will_close:
            connection.close()
        else:
            self._idle.put(connection)
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, raw

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        host, port = str(self.parts.hostname), self.parts.port
        made = kind(host, port, timeout=self._connect_timeout)
        try:
            made.connect()
        except socket.gaierror:
            raise Resumable(f"the server's host {host!r} is not known: see to it, then run again") from None
        except ssl.SSLCertVerificationError:
            raise UserError(f"the certificate of {host!r} is not trusted") from None
        except OSError as error:
            raise Transient(
                f"no connection to {host}:{port or ''} ({type(error).__name__})", trouble="absent"
            ) from None
        made.sock.settimeout(self._read_timeout)
        return made

    def close(self) -> None:
        """Close the connections that are kept open."""
        while not self._idle.empty():
            self._idle.get_nowait().close()


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"the variable {variable} (engine.key_env) is empty: export the server's key in it")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the variable {variable} (engine.key_env) holds characters that no key has")
    return key


def _bounded(reply: http.client.HTTPResponse, seconds: float, who: str) -> bytes:
    """The body, up to a limit in bytes and in time: a server may send for ever."""
    chunks, size, end = [], 0, time.monotonic() + max(seconds, 1.0) * 10
    while chunk := reply.read1(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > _MAX_BODY or time.monotonic() > end:
            raise Transient(f"{who}'s reply does not end")
    if reply.length:
        raise Transient(f"{who}'s reply was cut off")
    # Or the connection takes the reply for unfinished and cannot be used again.
    reply.close()
    return b"".join(chunks)
