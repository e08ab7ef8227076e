"""Call an OpenAI-compatible server over HTTP: its address, its key, a connection pool, limits in bytes and time."""

from __future__ import annotations

import ipaddress
import os
import queue
import re
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import TYPE_CHECKING

from selfalign.errors import Resumable, SelfAlignError, UserError
from selfalign.generation.retries import Transient
from selfalign.generation.settings import EngineSettings

if TYPE_CHECKING:
    import httpx2

_MAX_BODY_BYTES = 4 << 20
_CONNECT_SECONDS = 10.0
_DEFAULT_PORTS = {"http": 80, "https": 443}
_OTHER_VERSION = re.compile(r"/v\d+[a-z0-9]*(?:/openai)?/?")
"""The end of a path that names the API's version itself, such as /v4 or /v1beta/openai; /v1 is added to others."""
_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


def parse_address(url: str | None, setting: str = "engine.url") -> urllib.parse.SplitResult:
    """Split a server's address into its parts.

    Raises:
        UserError: it is missing, is not an HTTP address, or contains a password.
    """
    if not url and setting == "engine.url":
        raise UserError(
            "engine.kind openai needs engine.url, for example http://127.0.0.1:8080/v1, or several in engine.urls"
        )
    try:
        parts = urllib.parse.urlsplit(url or "")
        host = (parts.hostname or "").encode("idna").decode()
        valid = parts.scheme in ("http", "https") and parts.port != 0 and bool(host)
        valid = valid and f"{host}{parts.path}".isascii() and not re.search(r"[\s\0-\x1f]", url or "")
    except ValueError:  # the port is not a number, a bracket is not closed, or the host name cannot exist
        valid = False
    if not valid:
        raise UserError(f"{setting} must begin with http:// or https:// and name a host, without spaces or accents")
    if parts.query or parts.fragment:
        raise UserError(f"{setting} has a query (?) or a fragment (#), which such servers do not use: remove it")
    if parts.username or parts.password:
        raise UserError(
            f"{setting} contains a user or password: put the key into a variable and name that in engine.key_env"
        )
    return parts


def parse_addresses(config: EngineSettings) -> list[urllib.parse.SplitResult]:
    """Split the address of the recipe's server, or the addresses of all its servers.

    Raises:
        UserError: as `parse_address`, or two entries name the same server.
    """
    if config.urls is None:
        return [parse_address(config.url)]
    first_use: dict[tuple[str, str | None, int | None, str], str] = {}
    addresses = [parse_address(s.url, f"engine.urls.{number}") for number, s in enumerate(config.urls)]
    for number, parts in enumerate(addresses):
        key = (parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme], _root(parts))
        if key in first_use:
            raise UserError(f"engine.urls.{number} is the same server as {first_use[key]}: list each server once")
        first_use[key] = f"engine.urls.{number}"
    return addresses


def _root(parts: urllib.parse.SplitResult) -> str:
    return parts.path.rstrip("/").removesuffix("/v1")


def base_url(parts: urllib.parse.SplitResult) -> str:
    """Return the server's address without `/v1`; messages name the server by it."""
    return f"{parts.scheme}://{parts.netloc}{_root(parts)}"


class ServerClient:
    """An HTTP client of one server. Threads may share it.

    Each concurrent call uses its own `httpx2.Client`: a client checks all of its connections at every call, which takes
    2.4 ms of CPU time with 64 connections, and 0.6 ms with one.

    Args:
        config: address, the key's variable, timeout.
        name: the server's name in messages.
        key: the key, instead of the one in the environment.

    Raises:
        UserError: the address, the variable with the key, or the environment's proxy is invalid or missing.
    """

    def __init__(self, config: EngineSettings, name: str, key: str = "") -> None:
        self.address = parse_address(config.url)
        self._name, self._timeout = name, config.timeout
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if key := key or _read_key(config.key_env):
            self._headers["authorization"] = f"Bearer {key}"
        self._certificates = ssl.create_default_context()
        self._idle: queue.LifoQueue[httpx2.Client] = queue.LifoQueue()
        self._idle.put(self._new_client())

    def _new_client(self) -> httpx2.Client:
        import httpx2

        try:
            return httpx2.Client(
                base_url=base_url(self.address),
                headers=self._headers,
                timeout=httpx2.Timeout(self._timeout, connect=min(_CONNECT_SECONDS, self._timeout)),
                follow_redirects=False,  # the key must not travel to another host
                verify=self._certificates,
                trust_env=not _needs_no_proxy(str(self.address.hostname)),
            )
        except (ImportError, ValueError, httpx2.InvalidURL):
            # The message of the error may quote the proxy's password.
            raise UserError(
                "the environment sets a proxy that cannot be used: check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, "
                f"or exempt {self.address.hostname} in NO_PROXY"
            ) from None

    def call(self, method: str, path: str, data: bytes | None = None) -> tuple[int, Mapping[str, str], bytes]:
        """Return (status, headers, body) of one HTTP call.

        Args:
            path: an endpoint such as /v1/completions; the version is that of the address, if it names one.

        Raises:
            Transient: no complete reply arrived.
            Resumable: the host name cannot be resolved.
            UserError: the server's certificate is not trusted.
        """
        import httpx2

        try:
            client = self._idle.get_nowait()
        except queue.Empty:
            client = self._new_client()
        try:
            with client.stream(method, self._path(path), content=data) as response:
                return response.status_code, response.headers, self._read(response)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise self._connection_error(error) from None
        except httpx2.TransportError as error:
            # Not str(error): it may quote what the server sent.
            raise Transient(f"no reply from {self._name} ({type(error).__name__})") from None
        finally:
            self._idle.put(client)

    def _path(self, path: str) -> str:
        """Return the path of an endpoint at this address."""
        own = _OTHER_VERSION.search(self.address.path)
        has_version = own is not None and own.end() == len(self.address.path) and own[0].rstrip("/") != "/v1"
        return path.removeprefix("/v1") if has_version else path

    def _read(self, response: httpx2.Response) -> bytes:
        """Read the body, with limits on its size and duration: a server may never stop sending."""
        chunks, size, deadline = [], 0, time.monotonic() + max(self._timeout, 1.0) * 10
        for chunk in response.iter_raw():  # raw, so that no compressed body expands to a large one
            chunks.append(chunk)
            size += len(chunk)
            if size > _MAX_BODY_BYTES or time.monotonic() > deadline:
                raise Transient(f"{self._name}'s reply does not end")
        return b"".join(chunks)

    def _connection_error(self, error: httpx2.TransportError) -> Transient | SelfAlignError:
        cause: BaseException = error
        while inner := cause.__cause__ or cause.__context__:
            cause = inner
        host = self.address.hostname
        if isinstance(cause, socket.gaierror):
            return Resumable(f"the host {host!r} cannot be resolved: check its name and the network, then run again")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UserError(f"the certificate of {host!r} is not trusted")
        where = f"{host}:{self.address.port or _DEFAULT_PORTS[self.address.scheme]}"
        return Transient(f"no connection to {where} ({type(cause).__name__})", failure="unreachable")

    def close(self) -> None:
        """Close the idle connections."""
        while not self._idle.empty():
            self._idle.get_nowait().close()


def _needs_no_proxy(host: str) -> bool:
    """Return whether a host is this machine, whatever the environment says, or exempt by NO_PROXY.

    httpx builds all proxies of the environment, so that an unusable one would be an error for an exempt host, too.
    """
    return is_local(host) or bool(urllib.request.proxy_bypass(host))


def is_local(host: str) -> bool:
    """Return whether a host name or address in any notation (127.1, ::ffff:127.0.0.1, 0.0.0.0) is this machine."""
    host = host.lower().rstrip(".")
    if host in _LOCAL_NAMES or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or address.is_unspecified or (mapped is not None and mapped.is_loopback)


def _read_key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"the environment variable {variable} (engine.key_env) is empty: set it to the server's key")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the environment variable {variable} (engine.key_env) contains characters that no key has")
    return key
