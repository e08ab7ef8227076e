"""The first Ctrl-C or SIGTERM asks the work to end soon; the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from selfalign.errors import Interrupted


class StopFlag:
    """Set by the first signal; loops call `check` where they can stop without losing anything."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self.message = b"\nstopping after the requests in flight; once more ends at once\n"

    def install(self) -> None:
        """Take over SIGINT and SIGTERM of this process (main thread only)."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._receive)
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
            os._exit(128 + signum)
        self._signum = signum
        os.write(2, self.message)

    def check_terminated(self) -> None:
        """Raises Interrupted if the signal was SIGTERM; Ctrl-C is left to the caller."""
        if self._signum == signal.SIGTERM:
            raise Interrupted(self._signum)

    def clear(self) -> None:
        """Forget a signal that was answered already, as when Ctrl-C ends one answer of a dialogue."""
        self._signum = None

    @property
    def is_set(self) -> bool:
        return self._signum is not None

    def check(self) -> None:
        """Raises Interrupted once a signal came."""
        if self._signum is not None:
            raise Interrupted(self._signum)


STOP = StopFlag()
