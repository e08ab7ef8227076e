"""What is done about a failed call to a server: one table, full jitter, a budget per call, a circuit breaker.

The table is the OpenAI client's and the HTTP standard's (RFC 9110): what another try may mend is tried again; what the
request itself is to blame for fails the row; what would fail every row fails the run.
"""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from selfalign.errors import Resumable
from selfalign.generation.engines.base import RowError
from selfalign.system.signals import STOP

Decision = Literal["retry", "fail row", "fail run"]
Trouble = Literal["faulty", "busy", "silent", "absent"]
"""What a failed call says of the server: a reply that the request may be to blame for; too much to do for now; no reply
or half of one; nobody there."""
Result = TypeVar("Result")

STATUS: dict[int, Decision] = {
    400: "fail row", 404: "fail run", 413: "fail row", 414: "fail row", 422: "fail row",
    401: "fail run", 402: "fail run", 403: "fail run", 405: "fail run", 407: "fail run",
    408: "retry", 409: "retry", 425: "retry", 429: "retry",
    500: "retry", 502: "retry", 503: "retry", 504: "retry", 529: "retry",
}  # fmt: skip
"""HTTP status -> decision; other statuses of 500 and more are tried again, the rest fail the row."""


_BUSY = frozenset({408, 425, 429, 529})
_SILENT = frozenset({502, 503, 504})


def trouble(status: int, wait: float | None) -> Trouble:
    """What a reply with this status says of the server; `wait` is what it asks to wait."""
    if status in _BUSY or wait is not None:
        return "busy"
    return "silent" if status in _SILENT else "faulty"


def decision(status: int) -> Decision:
    """What to do about a reply with this status."""
    # A redirect (3xx) is never followed: a key must not travel to another host.
    return STATUS.get(status, "retry" if status >= 500 else "fail row")


class Transient(Exception):
    """This call failed, another may not.

    Args:
        retry_after: seconds that the server asks to wait, where it does.
        trouble: what it says of the server.
    """

    def __init__(self, reason: str, retry_after: float | None = None, trouble: Trouble = "silent") -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.trouble = trouble


class Elsewhere(Transient):
    """One server failed, another may take the call at once: none of its tries is spent, nothing is waited for."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how long."""

    attempts: int = 6
    seconds: float = 300.0
    """No new try begins after so long."""
    first: float = 0.5
    """The first wait is drawn between 0 and this; the bound doubles with each."""
    longest: float = 60.0
    trips: int = 20
    """After so many failures in a row, of whatever rows, the breaker opens: one call at a time probes."""
    probes: int = 5
    """After so many failed probes the run stops, resumable."""
    probe_wait: float = 2.0
    """Before the first probe; it doubles, up to 30 s: five probes take a minute."""


class Patience:
    """Calls with retries, shared by the threads of an engine.

    Raises (from `call`):
        RowError: the budget of the call is spent.
        Resumable: the server does not answer anyone.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] | None = None,
        seed: int | None = None,
    ) -> None:
        self.policy = policy
        self._clock, self._wait = clock, wait or _wait
        self._random = random.Random(seed)  # noqa: S311  (jitter)
        self._lock, self._probing = threading.Lock(), threading.Lock()
        self._failures = 0
        """In a row, over all threads."""
        self._probes = 0
        self._last = ""

    def call(self, attempt: Callable[[], Result]) -> Result:
        """The first result that is not Transient."""
        begun, number = self._clock(), 0
        while True:
            try:
                return self._guarded(attempt)
            except Transient as error:
                if isinstance(error, Elsewhere) and self._clock() - begun <= self.policy.seconds:
                    continue
                number += 1
                waiting = self.pause(number, error.retry_after)
                late = self._clock() - begun + waiting > self.policy.seconds
                if number == self.policy.attempts or late:
                    raise RowError(f"{error} ({number} {'try' if number == 1 else 'tries'})") from None
                if STOP.is_set:
                    raise RowError(f"{error} (stopped)") from None
                self._wait(waiting)

    def pause(self, number: int, retry_after: float | None) -> float:
        """Seconds to wait after the failed try of this number (from 1): full jitter, or what the server asks."""
        bound = min(self.policy.longest, self.policy.first * 2 ** (number - 1))
        drawn = self._random.uniform(0, bound)
        if retry_after is None:
            return drawn
        # A little of the jitter on top: all that were refused together must not come back together.
        return min(retry_after, self.policy.longest) + drawn

    def _guarded(self, attempt: Callable[[], Result]) -> Result:
        """One try. While the breaker is open only one thread tries at a time."""
        if self._failures < self.policy.trips:
            return self._counted(attempt)
        with self._probing:
            if self._failures >= self.policy.trips:
                with self._lock:
                    self._probes += 1
                    number = self._probes
                if number > self.policy.probes:
                    raise Resumable(
                        f"the server failed {self._failures} calls in a row ({self._last}): see to it, then run "
                        "the same command again"
                    )
                self._wait(min(30.0, self.policy.probe_wait * 2 ** (number - 1)))
            return self._counted(attempt)

    def _counted(self, attempt: Callable[[], Result]) -> Result:
        try:
            result = attempt()
        except Elsewhere:
            raise
        except Transient as error:
            with self._lock:
                self._failures += 1
                self._last = str(error)
            raise
        with self._lock:
            self._failures = self._probes = 0
        return result


def _wait(seconds: float) -> None:
    """Sleep, but wake soon where a signal stops the run."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not STOP.is_set:
        time.sleep(min(left, 0.2))


def retry_after(headers: dict[str, str], now: float | None = None) -> float | None:
    """Seconds that a reply asks to wait: `retry-after-ms`, `retry-after` in seconds or as a date; None without one."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        text = headers.get("retry-after")
        if text is None:
            return None
        if text.strip().replace(".", "", 1).isdigit():
            return float(text)
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, when - (time.time() if now is None else now))
