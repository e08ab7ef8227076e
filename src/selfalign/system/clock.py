"""How long a stage takes."""

from __future__ import annotations

import time


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def add(self, seconds: float) -> None:
        """Count what earlier sittings took."""
        self._start -= seconds

    def seconds(self) -> float:
        return time.monotonic() - self._start
