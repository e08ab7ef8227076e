"""Which of several servers gets a call, how many it gets at once, and when it is left alone.

Each has a window of calls in flight that grows by addition and shrinks by multiplication (Chiu and Jain 1989; slow
start as TCP's, Jacobson 1988), and a circuit breaker. Who asks for a server waits until one has room, in the order of
asking; nothing here calls a server.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.retries import Transient
from selfalign.system.signals import STOP

_START = 2
"""Calls at once that a server gets at first."""
_TRIPS = 3
"""Failures in a row after which a server is left alone; where nobody listens, one is enough."""
_GAIN = 1.05
"""A larger window must bring so many times the tokens per second, or it is given back."""
_HOLD = 8
"""Rounds without growth after that."""
_MEMORY = 0.9
"""What is left of a call's weight in the averages with the next one."""
_CHECK_SECONDS = 0.2
"""Between two looks of a thread that waits: a rest that ends and a signal wake nobody."""


class Window:
    """How many calls at once one server gets, between 1 and `limit`: a function of the answers that are told to it."""

    def __init__(self, limit: int, start: int = _START) -> None:
        self.limit = limit
        self.size = float(min(start, limit))
        self._threshold = float(limit)
        """Below this every answer makes room for one more call, above it a whole window of answers does."""
        self._hold = 0
        self._best: tuple[float, float] | None = None
        """(tokens per second, calls at once) of the best round."""
        self._round = 4
        """Answers after which the round is judged: a window of them, as it was when the round began."""
        self._calls, self._seconds, self._tokens, self._at_once = 0, 0.0, 0, 0

    def answered(self, seconds: float, tokens: int, at_once: int) -> None:
        """A call was answered; `at_once` calls were in flight when it began, itself among them."""
        self._calls += 1
        self._seconds += seconds
        self._tokens += tokens + 1  # a prompt takes time, too
        self._at_once += at_once
        if not self._hold and at_once >= int(self.size):
            self.size = min(self.limit, self.size + (1 if self.size < self._threshold else 1 / self.size))
        if self._calls >= self._round:
            self._judge()

    def _judge(self) -> None:
        """Compare a round's tokens per second with the best: what has brought nothing, or harm, is given back."""
        many = self._at_once / self._calls
        rate = many * self._tokens / max(self._seconds, 1e-9)
        self._calls, self._seconds, self._tokens, self._at_once = 0, 0.0, 0, 0
        self._round = max(4, int(self.size))
        self._hold = max(0, self._hold - 1)
        if self._best is None or rate >= self._best[0] * _GAIN:
            self._best = (rate, many)
        elif many <= self._best[1] * 1.1:
            self._best = (0.8 * self._best[0] + 0.2 * rate, self._best[1])
        else:
            self.size = self._threshold = max(1.0, min(self.size, math.ceil(self._best[1])))
            self._best = (_MEMORY * self._best[0], self._best[1])
            self._hold = _HOLD

    def refused(self) -> None:
        """The server had too much to do: half as many."""
        self.size = self._threshold = max(1.0, self.size / 2)
        self._best, self._hold = None, 0

    def begin_again(self) -> None:
        """After a time away: one call, then more as they are answered."""
        self._threshold = max(1.0, self.size)
        self.size, self._best, self._hold = 1.0, None, 0


class Endpoint:
    """One server as the fleet sees it. Everything but `api`, `title` and `limit` is the fleet's, under its lock."""

    def __init__(self, api: OpenAiApi, title: str, limit: int) -> None:
        self.api, self.title = api, title
        self.window = Window(limit)
        self.flying = 0
        self.away = ""
        """Why it is left alone; empty while it is in service."""
        self.failures = self.busy = 0
        """In a row: failures, and replies that it has too much to do."""
        self.rest_until = 0.0
        self.requests = self.tokens = self.errors = 0
        self.seconds_away = 0.0
        self.left = 0.0
        self.begun = self.halved = 0
        """Calls begun so far, and when the window was last halved: all that were refused together halve it once."""
        self._seconds = self._produced = self._at_once = self._weight = 0.0

    def note_speed(self, seconds: float, tokens: int, at_once: int) -> None:
        self._seconds = _MEMORY * self._seconds + seconds
        self._produced = _MEMORY * self._produced + tokens + 1
        self._at_once = _MEMORY * self._at_once + at_once
        self._weight = _MEMORY * self._weight + 1

    @property
    def speed(self) -> float:
        """Tokens a second, as of late; 0 where nothing was measured."""
        return self._produced / self._seconds * self._at_once / self._weight if self._seconds else 0.0

    def expected(self) -> float:
        """Seconds per token that one call more would take; half of it grows with the calls in flight."""
        if not self._seconds:
            return 0.0  # what nobody has measured is tried
        return self._seconds / self._produced * (0.5 + 0.5 * (self.flying + 1) * self._weight / self._at_once)

    def room(self, now: float) -> bool:
        return not self.away and now >= self.rest_until and self.flying < int(self.window.size)


@dataclass(eq=False)
class Ticket:
    """One request on its way to an answer."""

    prefer: Endpoint | None = None
    """The server that answered the step before, and has its prompt cached."""
    tried: set[Endpoint] = field(default_factory=set)
    """Servers that failed it since its last counted try."""
    begun: bool = False
    """It has been with a server: it goes first, and to its end where a signal stops the run."""
    wake: threading.Event = field(default_factory=threading.Event)
    given: Endpoint | None = None
    number: int = 0
    """Of its call at the server, from 1."""
    at_once: int = 0


class Fleet:
    """Several servers, and the requests that wait for one. Threads may call at once.

    Args:
        on_leave: told of a server that is left alone from now on, under the lock.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        on_leave: Callable[[Endpoint], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoints = list(endpoints)
        self._on_leave, self._clock = on_leave, clock
        self._lock = threading.RLock()
        self._first: list[Ticket] = []
        self._waiting: list[Ticket] = []

    def take(self, ticket: Ticket) -> Endpoint | None:
        """A place at the server that will likely answer first; waits for one. None where no server is left to try.

        Raises:
            Interrupted: a signal came before the request was begun.
        """
        with self._lock:
            ticket.wake.clear()
            ticket.given = None
            (self._first if ticket.begun else self._waiting).append(ticket)
            self._assign()
        while not ticket.wake.wait(_CHECK_SECONDS):
            with self._lock:
                if STOP.is_set and not ticket.begun and ticket in self._waiting:
                    self._waiting.remove(ticket)
                    STOP.check()
                self._assign()
        return ticket.given

    def finished(self, endpoint: Endpoint, ticket: Ticket, seconds: float, tokens: int) -> None:
        """The server answered."""
        with self._lock:
            endpoint.requests += 1
            endpoint.tokens += tokens
            endpoint.failures = endpoint.busy = 0
            endpoint.note_speed(seconds, tokens, ticket.at_once)
            endpoint.window.answered(seconds, tokens, ticket.at_once)
            self._free(endpoint)

    def refused(self, endpoint: Endpoint) -> None:
        """The server is well, and the request is to blame."""
        with self._lock:
            endpoint.requests += 1
            endpoint.failures = endpoint.busy = 0
            self._free(endpoint)

    def failed(
        self, endpoint: Endpoint, ticket: Ticket, error: Transient, pause: Callable[[int, float | None], float]
    ) -> bool:
        """The server failed the request; says whether another one is left to try.

        Args:
            pause: seconds that a server which is busy for the nth time in a row, and asks for so many, is given.
        """
        with self._lock:
            endpoint.errors += 1
            if error.failure in ("busy", "no reply") and ticket.number > endpoint.halved:
                endpoint.window.refused()
                endpoint.halved = endpoint.begun
            if error.failure == "busy":
                endpoint.busy += 1
                rest = self._clock() + pause(endpoint.busy, error.retry_after)
                endpoint.rest_until = max(endpoint.rest_until, rest)
            else:
                endpoint.failures += 1
            if error.failure == "unreachable" or endpoint.failures >= _TRIPS:
                self._leave(endpoint, str(error))
            ticket.tried.add(endpoint)
            self._free(endpoint)
            return self._others(ticket)

    def lost(self, endpoint: Endpoint, ticket: Ticket, why: str) -> bool:
        """The server refuses everybody, as with a wrong key; says whether another one is left to try."""
        with self._lock:
            endpoint.errors += 1
            self._leave(endpoint, why)
            ticket.tried.add(endpoint)
            self._free(endpoint)
            return self._others(ticket)

    def dropped(self, endpoint: Endpoint) -> None:
        """A call ended without saying anything of the server."""
        with self._lock:
            self._free(endpoint)

    def leave(self, endpoint: Endpoint, why: str) -> None:
        """Leave the server alone, or say anew why."""
        with self._lock:
            self._leave(endpoint, why)
            self._assign()

    def back(self, endpoint: Endpoint) -> None:
        """The server is well again: it gets one call, then more; the first failure sends it away again."""
        with self._lock:
            endpoint.seconds_away += self._clock() - endpoint.left
            endpoint.away, endpoint.rest_until, endpoint.failures = "", 0.0, _TRIPS - 1
            endpoint.window.begin_again()
            self._assign()

    def troubles(self) -> str:
        """Why the servers that are away are."""
        with self._lock:
            return "; ".join(f"{e.title}: {e.away}" for e in self.endpoints if e.away)

    def lines(self) -> list[str]:
        """What became of each server's calls so far, a line each."""
        with self._lock:
            now = self._clock()
            found = []
            for e in self.endpoints:
                away = e.seconds_away + (now - e.left if e.away else 0.0)
                text = f"{e.title}: {e.requests:,} requests, {e.tokens:,} tokens"
                text += f", {e.errors:,} {'error' if e.errors == 1 else 'errors'}" if e.errors else ""
                text += f", away {away:.0f} s" if away else ""
                found.append(text + (f" (now: {e.away})" if e.away else ""))
            return found

    # -- under the lock ------------------------------------------------------------------------------------------

    def _others(self, ticket: Ticket) -> bool:
        left = any(not e.away and e not in ticket.tried for e in self.endpoints)
        if not left:
            ticket.tried.clear()
        return left

    def _leave(self, endpoint: Endpoint, why: str) -> None:
        new, endpoint.away = not endpoint.away, why
        if new:
            endpoint.left = self._clock()
            self._on_leave(endpoint)

    def _free(self, endpoint: Endpoint) -> None:
        endpoint.flying -= 1
        self._assign()

    def _assign(self) -> None:
        """Give places to those who wait, first those who were begun."""
        now = self._clock()
        self._first = [ticket for ticket in self._first if not self._served(ticket, now)]
        if self._waiting and not STOP.is_set:  # their threads see the signal, and begin nothing
            gone = all(e.away for e in self.endpoints)
            while self._waiting and (gone or any(e.room(now) for e in self.endpoints)):
                self._served(self._waiting.pop(0), now)

    def _served(self, ticket: Ticket, now: float) -> bool:
        able = [e for e in self.endpoints if not e.away and e not in ticket.tried]
        if not able:  # the last one that had not tried it has left
            ticket.tried.clear()
            able = [e for e in self.endpoints if not e.away]
        if not able:
            self._give(ticket, None)
            return True
        if ticket.prefer in able and ticket.prefer.rest_until <= now:
            able = [ticket.prefer]
        free = [e for e in able if e.room(now)]
        if free:
            self._give(ticket, min(free, key=Endpoint.expected))
        return bool(free)

    def _give(self, ticket: Ticket, endpoint: Endpoint | None) -> None:
        if endpoint is not None:
            endpoint.flying += 1
            endpoint.begun += 1
            ticket.number, ticket.at_once = endpoint.begun, endpoint.flying
        ticket.given = endpoint
        ticket.wake.set()
