"""Track which Ray worker holds which requests, and move a dead worker's requests to others.

It uses no threads and no network. A worker gets a new request when it finishes one, so that a fast worker gets more
than a slow one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from selfalign.generation.engines.base import RowError

MAX_DEATHS = 3
"""A request that this many workers died on is a poison request, and fails."""
AHEAD = 2
"""Requests that a worker holds per slot of its engine, so that it never waits for the next one."""

Sink = Callable[[str, Any, float], None]
"""Receives a request's key, its result (or an exception) and the engine's seconds."""


@dataclass(eq=False)
class WorkerJob:
    """A request to a worker."""

    key: str
    request: Any
    """A `Request` for an engine, or a `Chunk` for a scorer."""
    sink: Sink
    deaths: int = 0
    """Number of workers that died while answering it."""

    @property
    def suspect(self) -> bool:
        """Whether it must be the only request of its worker, so that no other fails with it."""
        return self.deaths == MAX_DEATHS - 1


class WorkerSlot:
    """A worker and the requests that it holds."""

    def __init__(self, ahead: int = AHEAD, parallel: int = 0) -> None:
        self._ahead = ahead
        self.parallel = parallel
        """Number of requests that it answers concurrently; 0 while no worker runs."""
        self.in_flight: dict[int, WorkerJob] = {}
        """Ticket -> request, in the order in which the worker begins them."""

    def room(self, suspect: bool) -> int:
        """Return how many more requests it may get now."""
        if any(job.suspect for job in self.in_flight.values()) or (suspect and self.in_flight):
            return 0
        return self.parallel * self._ahead - len(self.in_flight)


W = TypeVar("W", bound=WorkerSlot)


class WorkerQueue(Generic[W]):
    """The requests that wait for a worker, and those that workers hold."""

    def __init__(self, slots: list[W]) -> None:
        self.slots = slots
        self.waiting: deque[WorkerJob] = deque()
        self.suspects: deque[WorkerJob] = deque()
        """Suspects that wait for a worker without other requests; until they have one, no other is handed out."""
        self._last_ticket = 0

    def assign(self) -> dict[W, list[tuple[int, Any]]]:
        """Move waiting requests to workers with room; return each worker's (ticket, request) pairs."""
        batches: dict[W, list[tuple[int, Any]]] = {}
        while queue := self.suspects or self.waiting:
            open_slots = [slot for slot in self.slots if slot.room(queue[0].suspect) > 0]
            if not open_slots:
                break
            # A worker with an idle engine comes first.
            slot = min(open_slots, key=lambda slot: len(slot.in_flight) / slot.parallel)
            job = queue.popleft()
            self._last_ticket += 1
            slot.in_flight[self._last_ticket] = job
            batches.setdefault(slot, []).append((self._last_ticket, job.request))
        return batches

    def finish(self, slot: W, ticket: int) -> WorkerJob | None:
        """Return the request that a worker finished or gave back; None if it no longer holds it."""
        return slot.in_flight.pop(ticket, None)

    def reassign(self, slot: W, reason: str) -> int:
        """Queue a dead worker's requests again; return how many fail as poison requests.

        Any request that the worker had begun may have killed it.
        """
        jobs = list(slot.in_flight.values())
        begun, again, poison = jobs[: slot.parallel], jobs[slot.parallel :], 0
        slot.in_flight.clear()
        slot.parallel = 0
        for job in reversed(begun):
            job.deaths += 1
            if job.deaths == MAX_DEATHS:
                poison += 1
                job.sink(job.key, RowError(f"{MAX_DEATHS} workers died on it ({reason})"), 0.0)
            elif job.suspect:
                self.suspects.append(job)
            else:
                again.insert(0, job)
        self.waiting.extendleft(reversed(again))
        return poison

    def withdraw(self) -> list[WorkerJob]:
        """Remove and return the requests that wait for a worker."""
        jobs = [*self.suspects, *self.waiting]
        self.suspects.clear()
        self.waiting.clear()
        return jobs

    def clear(self) -> list[WorkerJob]:
        """Remove and return all unfinished requests."""
        jobs = self.withdraw()
        for slot in self.slots:
            jobs += slot.in_flight.values()
            slot.in_flight.clear()
        return jobs
