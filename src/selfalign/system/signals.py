"""Stop gracefully on the first Ctrl-C or SIGTERM, and immediately on the second."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from selfalign.errors import Interrupted


class StopFlag:
    """A flag that the first signal sets. Loops call `check` where they can stop without losing work."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self.message = b"\nstopping after the requests in flight; press Ctrl-C again to end at once\n"
        """The message that is printed on the first signal."""

    def install(self) -> None:
        """Handle SIGINT and SIGTERM of this process. Outside the main thread, nothing is changed."""
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
        """Raise Interrupted if SIGTERM was received; the caller handles Ctrl-C."""
        if self._signum == signal.SIGTERM:
            raise Interrupted(self._signum)

    def clear(self) -> None:
        """Reset the flag after a signal was handled, for example when Ctrl-C ended one response of a dialogue."""
        self._signum = None

    @property
    def is_set(self) -> bool:
        """Whether a signal was received."""
        return self._signum is not None

    def check(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self._signum is not None:
            raise Interrupted(self._signum)


STOP = StopFlag()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the block, which waits for the user."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
