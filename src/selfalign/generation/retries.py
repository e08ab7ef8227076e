"""Retry failed calls to a server: one table, full jitter, a budget per call, a circuit breaker.

The table follows the OpenAI client and the HTTP standard (RFC 9110). A temporary failure is retried, a failure that
the request causes fails its row, and a failure that every request would meet fails the run.
"""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from selfalign.errors import Resumable
from selfalign.generation.engines.base import RowError
from selfalign.system.signals import STOP

Decision = Literal["retry", "fail row", "fail run"]
Failure = Literal["bad reply", "busy", "no reply", "unreachable"]
"""How a call failed. bad reply: an error that the request itself may cause; busy: the server is overloaded; no reply:
the reply is missing or cut off; unreachable: no connection."""
Result = TypeVar("Result")

_RETRIED = frozenset({408, 409, 425, 429})
"""HTTP statuses below 500 that are retried."""
_FAIL_RUN = frozenset({401, 402, 403, 404, 405, 407})
_BUSY = frozenset({408, 425, 429, 529})
_NO_REPLY = frozenset({502, 503, 504})


def decision(status: int) -> Decision:
    """Return what to do about a reply with this status. A redirect (3xx) fails the row: it is never followed."""
    if status >= 500 or status in _RETRIED:
        return "retry"
    return "fail run" if status in _FAIL_RUN else "fail row"


def classify_failure(status: int, retry_after: float | None) -> Failure:
    """Return how a call with this status failed; `retry_after` is the value of `read_retry_after`."""
    if status in _BUSY or retry_after is not None:
        return "busy"
    return "no reply" if status in _NO_REPLY else "bad reply"


class Transient(Exception):
    """A failed call that may succeed when repeated.

    Args:
        retry_after: seconds that the server asks to wait.
        failure: how the call failed.
    """

    def __init__(self, reason: str, retry_after: float | None = None, failure: Failure = "no reply") -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.failure = failure


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits on how often and for how long a call is repeated."""

    attempts: int = 6
    max_seconds: float = 300.0
    """Seconds after the first attempt in which the others must begin."""
    first_wait: float = 0.5
    """Seconds. The first wait is drawn between 0 and this bound, which doubles with each attempt."""
    longest_wait: float = 60.0
    breaker_failures: int = 20
    """Failures in a row, over all calls, that open the circuit breaker: one call at a time then probes the server."""
    probes: int = 5
    """Failed probes after which the run stops; it can be resumed."""
    probe_wait: float = 2.0
    """Seconds before the first probe, doubled before each further one, up to 30: five probes take a minute."""


class Retrier:
    """Repeats failed calls. All threads of an engine share one, and so its circuit breaker.

    Args:
        wait: sleeps for the given seconds.
        seed: seed of the jitter.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        wait: Callable[[float], None] | None = None,
        seed: int | None = None,
    ) -> None:
        self.policy = policy
        self._wait = wait or _wait
        self._random = random.Random(seed)  # noqa: S311  (jitter)
        self._lock, self._probing = threading.Lock(), threading.Lock()
        self._failures = 0
        """Failures in a row, over all threads."""
        self._probes = 0
        self._last_error = ""

    def call(self, attempt: Callable[[], Result], clock: Callable[[], float] = time.monotonic) -> Result:
        """Return the first result of `attempt` that is not `Transient`.

        Args:
            clock: returns the seconds that count against the call.

        Raises:
            RowError: the call has used all its attempts or its time.
            Resumable: the circuit breaker is open, and no probe succeeded.
        """
        start, number = clock(), 0
        while True:
            try:
                return self._attempt(attempt)
            except Transient as error:
                number += 1
                pause = self.pause(number, error.retry_after)
                late = clock() - start + pause > self.policy.max_seconds
                if number == self.policy.attempts or late:
                    raise RowError(f"{error} ({number} {'try' if number == 1 else 'tries'})") from None
                if STOP.is_set:
                    raise RowError(f"{error} (stopped)") from None
                self._wait(pause)

    def pause(self, number: int, retry_after: float | None) -> float:
        """Return the seconds to wait after failed attempt `number` (from 1): full jitter, or what the server asks."""
        bound = min(self.policy.longest_wait, self.policy.first_wait * 2 ** (number - 1))
        jitter = self._random.uniform(0, bound)
        # Jitter also on top of retry_after: calls that were refused together must not come back together.
        return jitter if retry_after is None else min(retry_after, self.policy.longest_wait) + jitter

    def _attempt(self, attempt: Callable[[], Result]) -> Result:
        """Call once. While the breaker is open, only one thread at a time calls."""
        if self._failures < self.policy.breaker_failures:
            return self._count(attempt)
        with self._probing:
            if self._failures >= self.policy.breaker_failures:
                with self._lock:
                    self._probes += 1
                    number = self._probes
                if number > self.policy.probes:
                    raise Resumable(
                        f"the server failed {self._failures} calls in a row ({self._last_error}): check it, then run "
                        "the same command again"
                    )
                self._wait(min(30.0, self.policy.probe_wait * 2 ** (number - 1)))
            return self._count(attempt)

    def _count(self, attempt: Callable[[], Result]) -> Result:
        try:
            result = attempt()
        except Transient as error:
            with self._lock:
                self._failures += 1
                self._last_error = str(error)
            raise
        with self._lock:
            self._failures = self._probes = 0
        return result


def _wait(seconds: float) -> None:
    """Sleep, but not past a signal that stops the run."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not STOP.is_set:
        time.sleep(min(left, 0.2))


def read_retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds of `retry-after-ms` or of `retry-after` (seconds or a date); None without a valid one."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        text = headers.get("retry-after")
        if text is None:
            return None
        if text.strip().replace(".", "", 1).isdigit():
            return float(text)
        date = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, date - (time.time() if now is None else now))
