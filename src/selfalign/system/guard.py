"""Run a command that ends with its parent, however the parent ends: python guard.py PARENT COMMAND...

`ChildProcess` starts this file as a script, so it imports the standard library only. It holds the read end of a pipe
(its standard input). The parent's death closes the pipe, and the guard kills the command at once; if the parent wrote
a byte first, the command may end by itself. On Linux, processes that the command leaves behind become children of the
guard (PR_SET_CHILD_SUBREAPER) and are killed, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_SECONDS = 10.0
"""Seconds in which the command may end by itself after SIGTERM."""
_POLL_SECONDS = 0.2
_KILL_SECONDS = 60.0
"""Seconds to wait for killed processes; a driver may keep one longer."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(parent: int, command: list[str]) -> int:
    """Run the command; return its exit code, or 128 + SIGKILL if it was killed with its parent."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs the finally clause
    code, child = 128 + signal.SIGKILL, None
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_guard)  # noqa: S603
        while True:
            if os.getppid() != parent:
                return code
            if (ended := child.poll()) is not None:
                code = ended if ended >= 0 else 128 - ended
                return code
            if select.select([0], [], [], _POLL_SECONDS)[0]:
                if os.read(0, 1):
                    child.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(GRACE_SECONDS)
                return code
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if child is not None:
            child.kill()  # also where there is no /proc
        _kill_descendants()


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_with_guard() -> None:
    """In the command's process: let the kernel kill it if the guard is killed."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Return the processes below a process, as /proc lists them."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended in the meantime
            after_name = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            children.setdefault(int(after_name[1]), []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        new = children.pop(waiting.pop(), [])
        found += new
        waiting += new
    return found


def _kill_descendants() -> None:
    """Kill and reap every process below this one."""
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
