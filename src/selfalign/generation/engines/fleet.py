"""Distribute calls among several servers, and take a failing server out of service.

Each server has a window of concurrent calls (`window`) and a circuit breaker. A thread that needs a server waits
until one has room. This module itself calls no server.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from selfalign.errors import SelfAlignError
from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.engines.window import Window
from selfalign.generation.retries import Transient
from selfalign.system.signals import STOP

_BREAKER_FAILURES = 3
"""Failures in a row that take a server out of service; for an unreachable server, one is enough."""
_DECAY = 0.9
"""Factor by which each new call reduces the weight of the calls before it."""
_CHECK_SECONDS = 0.2
"""Seconds between a waiting thread's checks for a signal and for servers whose rest has ended."""


class Endpoint:
    """One server. The fleet changes it under its lock."""

    def __init__(self, api: OpenAiApi, url: str, limit: int) -> None:
        self.api, self.url = api, url
        self.window = Window(limit)
        self.load = 0
        """Calls in flight."""
        self.rest_until = 0.0
        """Time before which it gets no call."""
        self.outage = ""
        """Why it is out of service; empty while it is in service."""
        self.failures_in_row = self.busy_in_row = 0
        self.requests = self.tokens = self.errors = 0
        self.seconds_out = 0.0
        self.out_since = 0.0
        self.calls = self.halved_at = 0
        """Calls begun, and their number when the window was last halved: calls that fail together halve it once."""
        self._seconds = self._tokens = self._concurrent = self._weight = 0.0

    def has_room(self, now: float) -> bool:
        """Return whether it may get a call."""
        return not self.outage and now >= self.rest_until and self.load < int(self.window.size)

    def cost(self) -> float:
        """Return the expected seconds per token of one more call; half of it grows with the calls in flight."""
        if not self._seconds:
            return 0.0  # a server without measurements is tried first
        return self._seconds / self._tokens * (0.5 + 0.5 * (self.load + 1) * self._weight / self._concurrent)

    def record_speed(self, seconds: float, tokens: int, concurrent: int) -> None:
        """Update the moving averages with an answered call."""
        self._seconds = _DECAY * self._seconds + seconds
        self._tokens = _DECAY * self._tokens + tokens + 1
        self._concurrent = _DECAY * self._concurrent + concurrent
        self._weight = _DECAY * self._weight + 1

    def summary(self, now: float) -> str:
        """Return one line with its requests, tokens, errors and outages."""
        seconds_out = self.seconds_out + (now - self.out_since if self.outage else 0.0)
        text = f"{self.url}: {self.requests:,} requests, {self.tokens:,} tokens"
        text += f", {self.errors:,} {'error' if self.errors == 1 else 'errors'}" if self.errors else ""
        text += f", out of service {seconds_out:.0f} s" if seconds_out else ""
        return text + (f" (now: {self.outage})" if self.outage else "")


@dataclass(eq=False)
class Call:
    """A request in progress."""

    preferred: Endpoint | None = None
    """The server that has the prompt of the previous step in its cache; the call waits for it while in service."""
    excluded: set[Endpoint] = field(default_factory=set)
    """Servers that failed it. When all have, every server may get it again."""

    begun: bool = False
    """Whether a server has received it: it then has priority, and is finished even if a signal stops the run."""
    assigned: threading.Event = field(default_factory=threading.Event)
    endpoint: Endpoint | None = None
    number: int = 0
    """The number of the call at its server, from 1."""
    waited: float = 0.0
    """Seconds that it has waited for servers."""
    concurrent: int = 0
    """Calls at the server when it began, including itself."""


class Fleet:
    """Several servers, and the calls that wait for one. Threads may share it.

    Args:
        on_outage: called with a server that goes out of service, under the lock.
        clock: returns seconds.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        on_outage: Callable[[Endpoint], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoints = list(endpoints)
        self._on_outage, self._clock = on_outage, clock
        self._lock = threading.RLock()
        self._begun: list[Call] = []
        """Waiting calls that a server has received before. They come first, and may overtake each other."""
        self._waiting: deque[Call] = deque()
        """The other waiting calls; they keep their order."""

    def acquire(self, call: Call) -> Endpoint | None:
        """Wait for a slot at the server that will likely answer first. Return None if no server is in service.

        Raises:
            Interrupted: a signal came before any server received the request.
        """
        start = self._clock()
        with self._lock:
            call.assigned.clear()
            (self._begun if call.begun else self._waiting).append(call)
            self._assign()
        while not call.assigned.wait(_CHECK_SECONDS):
            with self._lock:
                if STOP.is_set and call in self._waiting:
                    self._waiting.remove(call)
                    STOP.check()
                self._assign()
        call.waited += self._clock() - start
        return call.endpoint

    def record_answer(self, endpoint: Endpoint, call: Call, seconds: float, tokens: int) -> None:
        """Record that the server answered, and free the slot."""
        with self._lock:
            endpoint.tokens += tokens
            endpoint.record_speed(seconds, tokens, call.concurrent)
            endpoint.window.record_answer(seconds, tokens, call.concurrent)
            self.record_refusal(endpoint)

    def record_refusal(self, endpoint: Endpoint) -> None:
        """Record that the server works but refused this request, and free the slot."""
        with self._lock:
            endpoint.requests += 1
            endpoint.failures_in_row = endpoint.busy_in_row = 0
            self.release(endpoint)

    def record_failure(
        self,
        endpoint: Endpoint,
        call: Call,
        error: Transient | SelfAlignError,
        pause: Callable[[int, float | None], float],
    ) -> bool:
        """Record that the server failed the call; return whether another server is left to try.

        Args:
            error: a SelfAlignError if the server refuses all requests.
            pause: (busy replies in a row, seconds that the server asks for or None) -> seconds that the server rests.
        """
        with self._lock:
            if not isinstance(error, Transient):
                self.take_out(endpoint, str(error))
            else:
                if error.failure in ("busy", "no reply") and call.number > endpoint.halved_at:
                    endpoint.window.halve()
                    endpoint.halved_at = endpoint.calls
                if error.failure == "busy":
                    endpoint.busy_in_row += 1
                    rest = pause(endpoint.busy_in_row, error.retry_after)
                    endpoint.rest_until = max(endpoint.rest_until, self._clock() + rest)
                else:
                    endpoint.failures_in_row += 1
                if error.failure == "unreachable" or endpoint.failures_in_row >= _BREAKER_FAILURES:
                    self.take_out(endpoint, str(error))
            endpoint.errors += 1
            call.excluded.add(endpoint)
            self.release(endpoint)
            others_left = any(not e.outage and e not in call.excluded for e in self.endpoints)
            if not others_left:
                call.excluded.clear()
            return others_left

    def release(self, endpoint: Endpoint) -> None:
        """Free the slot of a call whose end says nothing about the server."""
        with self._lock:
            endpoint.load -= 1
            self._assign()

    def take_out(self, endpoint: Endpoint, reason: str) -> None:
        """Take a server out of service, or update the reason."""
        with self._lock:
            is_new, endpoint.outage = not endpoint.outage, reason
            if is_new:
                endpoint.out_since = self._clock()
                self._on_outage(endpoint)
            self._assign()

    def put_back(self, endpoint: Endpoint) -> None:
        """Return a server to service with a window of one call; its first failure takes it out again."""
        with self._lock:
            endpoint.seconds_out += self._clock() - endpoint.out_since
            endpoint.outage, endpoint.rest_until, endpoint.failures_in_row = "", 0.0, _BREAKER_FAILURES - 1
            endpoint.window.restart()
            self._assign()

    def outages(self) -> str:
        """Return the servers that are out of service, each with the reason."""
        with self._lock:
            return "; ".join(f"{e.url}: {e.outage}" for e in self.endpoints if e.outage)

    def summaries(self) -> list[str]:
        """Return one line about each server's calls so far."""
        with self._lock:
            return [endpoint.summary(self._clock()) for endpoint in self.endpoints]

    # -- under the lock ------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Give waiting calls to servers with room; calls that no server has received stay queued after a signal."""
        self._begun = [call for call in self._begun if not self._start(call)]
        while self._waiting and not STOP.is_set and self._start(self._waiting[0]):
            self._waiting.popleft()

    def _start(self, call: Call) -> bool:
        """Wake the call with the server that will likely answer first, or with None if no server is in service.

        Returns:
            Whether it was woken; otherwise no server that may get it has room.
        """
        in_service = [e for e in self.endpoints if not e.outage]
        allowed = [e for e in in_service if e not in call.excluded] or in_service
        now = self._clock()
        if call.preferred in allowed and now >= call.preferred.rest_until:
            allowed = [call.preferred]
        call.endpoint = min((e for e in allowed if e.has_room(now)), key=Endpoint.cost, default=None)
        if call.endpoint:
            call.endpoint.load += 1
            call.endpoint.calls += 1
            call.number, call.concurrent = call.endpoint.calls, call.endpoint.load
        elif in_service:
            return False
        call.assigned.set()
        return True
