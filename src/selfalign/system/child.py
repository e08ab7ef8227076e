"""Start a process that leaves no process behind when this one ends, by SIGKILL too (`guard`)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from selfalign.system import guard

_CLOSE_SECONDS = guard.GRACE_SECONDS + 20


class ChildProcess:
    """A running command and all processes that it starts.

    Args:
        log: receives its standard output and standard error.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> None:
        self._closing = threading.Lock()
        # A session of its own: Ctrl-C in the terminal reaches this process only.
        self._guard = subprocess.Popen(  # noqa: S603  (no shell)
            [sys.executable, "-I", str(Path(guard.__file__)), str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process id of the guard, the ancestor of all these processes."""
        return self._guard.pid

    def exit_code(self) -> int | None:
        """Return the command's exit code; None while it runs. Once it has ended, none of its processes runs."""
        code = self._guard.poll()
        if code is not None and code < 0:  # a signal ended the guard before it could end the others
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._guard.pid, signal.SIGKILL)
        return code

    def close(self) -> None:
        """End the command, by SIGTERM and then by SIGKILL, and wait until all its processes are gone."""
        with self._closing:
            if self._guard.stdin is not None and not self._guard.stdin.closed:
                self._end(self._guard.stdin)

    def _end(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError):  # the guard has ended already
            pipe.write(b"q")
            pipe.flush()
        try:
            self._guard.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self.exit_code()
        with contextlib.suppress(OSError):
            pipe.close()
