"""A guarded application on a socket: listen, serve, end by a signal."""

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
    from selfalign.web.guard import App

GRACE_S = 5
"""Seconds that requests in flight get when the server ends."""
HEADER_S = 20.0
"""Seconds in which a request's headers must have come, from the connection's beginning or their first byte."""

BURST = 128
"""Connections taken in one go: where descriptors run out, asyncio tries and complains once for each of them."""
_DESCRIPTORS = 8192


def check_installed() -> None:
    """Raises UserError where the libraries of the extra are missing."""
    from importlib.util import find_spec

    if not find_spec("starlette") or not find_spec("uvicorn"):
        raise UserError("the server needs starlette and uvicorn: pip install 'selfalign[serve]'")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UserError: the address is none of this machine, or the port is taken.
    """
    found: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(256)
    except (OSError, UnicodeError) as error:
        if found:
            found.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = getattr(error, "strerror", None) or error
        what = f"port {port} is taken: name another with --port" if taken else f"cannot listen ({why})"
        raise UserError(f"--host {host} --port {port}: {what}") from None
    return found


def address(listening: socket.socket) -> str:
    """Where a browser finds it: http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  (every address: one of them is shown)
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: App, listening: socket.socket, on_end: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        on_end: called once when the end begins, to cut short what is in flight.

    Raises:
        Interrupted: always in the end, with the signal's exit code.
    """
    STOP.message = b"\nending; once more ends at once\n"
    made = make(app)

    async def run() -> None:
        task = asyncio.create_task(made._serve([listening]))
        while not task.done():
            if STOP.is_set and not made.should_exit:
                on_end()
                made.should_exit = True
            await asyncio.wait([task], timeout=0.1)
        await task

    asyncio.run(run())
    STOP.check()


def make(app: App) -> Any:
    """uvicorn's server with bounds on headers and time, and without signal handlers and banners of its own."""
    import uvicorn

    config = uvicorn.Config(
        app, http=_patient(_room()), backlog=BURST, ws="none", loop="asyncio", lifespan="off", log_config=None,
        log_level="critical", access_log=False, proxy_headers=False, server_header=False, timeout_keep_alive=10,
        timeout_graceful_shutdown=GRACE_S, h11_max_incomplete_event_size=16 << 10,
    )  # fmt: skip
    return uvicorn.Server(config)


def _room() -> int:
    """Connections that may be open at once: a quarter of the files that may, for closing takes a while."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft) // 4


def _patient(room: int) -> Any:
    """HTTP/1.1 that does not wait for ever for headers: uvicorn's own patience ends with a request's first byte.

    Args:
        room: connections at once; of more, the one that has waited longest without asking makes place.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    waiting: dict[Any, None] = {}

    class Patient(H11Protocol):
        patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.patience = self.loop.call_later(HEADER_S, transport.abort)
            waiting[self] = None
            if len(self.connections) > room:
                first = next(iter(waiting))
                first.calm()
                first.transport.abort()

        def handle_events(self) -> None:
            super().handle_events()
            if self.conn.their_state is not h11.IDLE:
                self.calm()
            elif self.patience is None and self.conn.trailing_data[0]:
                self.patience = self.loop.call_later(HEADER_S, self.transport.abort)
                waiting[self] = None

        def connection_lost(self, exc: Exception | None) -> None:
            self.calm()
            super().connection_lost(exc)

        def calm(self) -> None:
            if self.patience is not None:
                self.patience.cancel()
            self.patience = None
            waiting.pop(self, None)

    return Patient
