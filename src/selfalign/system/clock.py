"""Measure the duration of a stage."""

from __future__ import annotations

import time


class Clock:
    """A stopwatch that starts when it is created."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def add(self, seconds: float) -> None:
        """Add the time of earlier sessions."""
        self._start -= seconds

    def seconds(self) -> float:
        """Return the seconds so far."""
        return time.monotonic() - self._start
