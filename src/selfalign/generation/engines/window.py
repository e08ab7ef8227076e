"""Adapt the number of concurrent calls to what a server can take.

The window grows by addition and shrinks by multiplication (Chiu and Jain 1989), with a slow start as in TCP (Jacobson
1988). Growth that brings no throughput is undone.
"""

from __future__ import annotations

import math

_START = 2
_GAIN = 1.05
"""Minimum factor by which a larger window must raise the tokens per second."""
_HOLD_ROUNDS = 8
"""Rounds in which the window does not grow after a larger one brought no gain."""
_DECAY = 0.9
"""Factor on the best throughput after a larger window brought no gain."""


class Window:
    """The number of calls that one server gets concurrently, from 1 to `limit`; it depends on recorded answers only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = float(min(_START, limit))
        self._threshold = float(limit)
        """Below this size, each answer adds one call; above it, each full window of answers does."""
        self._hold = 0
        self._best: tuple[float, float] | None = None
        """(tokens per second, concurrent calls) of the best round."""
        self._round = 4
        """Answers in the current round: the window's size when the round began, at least 4."""
        self._calls, self._seconds, self._tokens, self._concurrent = 0, 0.0, 0, 0

    def record_answer(self, seconds: float, tokens: int, concurrent: int) -> None:
        """Record an answered call, and the calls that were in flight when it began, including itself."""
        self._calls += 1
        self._seconds += seconds
        self._tokens += tokens + 1  # a prompt takes time, too
        self._concurrent += concurrent
        if not self._hold and concurrent >= int(self.size):
            self.size = min(self.limit, self.size + (1 if self.size < self._threshold else 1 / self.size))
        if self._calls >= self._round:
            self._judge()

    def _judge(self) -> None:
        """Compare the round's throughput with the best; shrink the window if it grew without a gain."""
        concurrent = self._concurrent / self._calls
        rate = concurrent * self._tokens / max(self._seconds, 1e-9)
        self._calls, self._seconds, self._tokens, self._concurrent = 0, 0.0, 0, 0
        self._round = max(4, int(self.size))
        self._hold = max(0, self._hold - 1)
        if self._best is None or rate >= self._best[0] * _GAIN:
            self._best = (rate, concurrent)
        elif concurrent <= self._best[1] * 1.1:
            self._best = (0.8 * self._best[0] + 0.2 * rate, self._best[1])
        else:
            self.size = self._threshold = max(1.0, min(self.size, math.ceil(self._best[1])))
            self._best = (_DECAY * self._best[0], self._best[1])
            self._hold = _HOLD_ROUNDS

    def halve(self) -> None:
        """Halve the window after the server was overloaded."""
        self.size = self._threshold = max(1.0, self.size / 2)
        self._best, self._hold = None, 0

    def restart(self) -> None:
        """Restart with one call after the server was out of service."""
        self._threshold = max(1.0, self.size)
        self.size, self._best, self._hold = 1.0, None, 0
