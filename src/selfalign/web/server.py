"""Run an ASGI application with uvicorn: listen on a socket, serve, stop on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from selfalign.errors import UserError
from selfalign.system.signals import STOP

if TYPE_CHECKING:
    from starlette.types import ASGIApp

GRACE_S = 5
"""Seconds that requests in flight have to finish when the server stops."""
HEADER_S = 20.0
"""Seconds within which headers must arrive, from the start of the connection or from their first byte."""

BURST = 128
"""Connections that asyncio accepts at a time. When file descriptors run out, it logs an error for each of them."""
_DESCRIPTORS = 8192


def check_installed() -> None:
    """Raise UserError if starlette or uvicorn is missing."""
    from importlib.util import find_spec

    if not find_spec("starlette") or not find_spec("uvicorn"):
        raise UserError("the server needs starlette and uvicorn: pip install 'selfalign[serve]'")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 chooses a free one.

    Raises:
        UserError: this machine does not have the address, or the port is in use.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        dual_stack = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=256, dualstack_ipv6=dual_stack)
    except (OSError, UnicodeError) as error:
        why = str(getattr(error, "strerror", None) or error).partition(" (while attempting")[0]
        reason = f"cannot listen ({why})"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = "the port is in use: choose another with --port"
        raise UserError(f"--host {host} --port {port}: {reason}") from None


def address(listening: socket.socket) -> str:
    """Return the URL for a browser, such as http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  (all addresses: show one of them)
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: ASGIApp, listening: socket.socket, on_end: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        on_end: cancels requests in flight; called once, when the server begins to stop.

    Raises:
        Interrupted: always; it has the signal's exit code.
    """
    STOP.message = b"\nstopping; press Ctrl-C again to stop at once\n"
    uvicorn_server = build(app)

    async def run() -> None:
        task = asyncio.create_task(uvicorn_server._serve([listening]))
        while not task.done():
            if STOP.is_set and not uvicorn_server.should_exit:
                on_end()
                uvicorn_server.should_exit = True
            await asyncio.wait([task], timeout=0.1)
        await task

    asyncio.run(run())
    STOP.check()


def build(app: ASGIApp) -> Any:
    """Return a uvicorn server with limits on headers and time, without signal handlers and logging."""
    import uvicorn

    config = uvicorn.Config(
        app, http=_protocol(_max_connections()), backlog=BURST, ws="none", loop="asyncio", lifespan="off",
        log_config=None, log_level="critical", access_log=False, proxy_headers=False, server_header=False,
        timeout_keep_alive=10, timeout_graceful_shutdown=GRACE_S, h11_max_incomplete_event_size=16 << 10,
    )  # fmt: skip
    return uvicorn.Server(config)


def _max_connections() -> int:
    """Raise the limit of open files if possible, and return a quarter of it: the maximum number of open connections."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft) // 4


def _protocol(max_connections: int) -> Any:
    """Return an HTTP/1.1 protocol with a timeout for headers; uvicorn's own timeout stops at a request's first byte.

    Args:
        max_connections: if more connections are open, the one that has been idle longest is closed.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    idle: dict[Any, None] = {}

    class Protocol(H11Protocol):
        header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.header_timer = self.loop.call_later(HEADER_S, transport.abort)
            idle[self] = None
            if len(self.connections) > max_connections:
                first = next(iter(idle))
                first.stop_timer()
                first.transport.abort()

        def handle_events(self) -> None:
            super().handle_events()
            if self.conn.their_state is not h11.IDLE:
                self.stop_timer()
            elif self.header_timer is None and self.conn.trailing_data[0]:
                self.header_timer = self.loop.call_later(HEADER_S, self.transport.abort)
                idle[self] = None

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_timer()
            super().connection_lost(exc)

        def stop_timer(self) -> None:
            if self.header_timer is not None:
                self.header_timer.cancel()
            self.header_timer = None
            idle.pop(self, None)

    return Protocol
