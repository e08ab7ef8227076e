"""Track which Ray worker holds which requests, and move a dead worker's requests to others.

Like `scheduling`, it uses no threads and no network. A worker gets a new request when it finishes one, so that a fast
worker gets more than a slow one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from selfalign.generation.engines.base import RowError
from selfalign.generation.scheduling import Job, Queue, Slot

MAX_DEATHS = 3
"""A request that this many workers died on is a poison request, and fails."""
AHEAD = 2
"""Requests that a worker holds per slot of its engine, so that it never waits for the next one."""

Sink = Callable[[str, Any, float], None]
"""Receives a request's key, its result (or an exception) and the engine's seconds."""


@dataclass(eq=False, kw_only=True)
class WorkerJob(Job):
    """A request to a worker."""

    key: str
    request: Any
    """A `Request` for an engine, or a `Chunk` for a scorer."""
    sink: Sink
    deaths: int = 0
    """Number of workers that died while answering it."""


class WorkerSlot(Slot):
    """A worker and the requests that it holds."""

    def __init__(self, ahead: int = AHEAD, parallel: int = 0) -> None:
        super().__init__()
        self._ahead = ahead
        self.parallel = parallel
        """Number of requests that it answers concurrently; 0 while no worker runs."""
        self.in_flight: dict[int, WorkerJob] = {}
        """Ticket -> request, in the order in which the worker begins them."""

    @property
    def capacity(self) -> int:
        """See `Slot`."""
        return self.parallel * self._ahead

    def cost(self) -> float:
        """Return the load per concurrent request: a worker with an idle engine comes first."""
        return self.load / self.parallel


W = TypeVar("W", bound=WorkerSlot)


class WorkerQueue(Queue[WorkerJob, W], Generic[W]):
    """The requests that wait for a worker, and those that workers hold."""

    def __init__(self, slots: list[W]) -> None:
        super().__init__(slots)
        self._last_ticket = 0

    def add(self, job: WorkerJob) -> None:
        """Queue a request."""
        (self.urgent if job.exclusive else self.waiting).append(job)

    def assign_tickets(self) -> dict[W, list[tuple[int, Any]]]:
        """Move waiting requests to workers with room; return each worker's (ticket, request) pairs."""
        batches: dict[W, list[tuple[int, Any]]] = {}
        for job, slot in self.assign():
            self._last_ticket += 1
            slot.in_flight[self._last_ticket] = job
            batches.setdefault(slot, []).append((self._last_ticket, job.request))
        return batches

    def finish(self, slot: W, ticket: int) -> WorkerJob | None:
        """Return the request that a worker finished or gave back; None if it no longer holds it."""
        job = slot.in_flight.pop(ticket, None)
        if job:
            slot.release()
        return job

    def reassign(self, slot: W, reason: str) -> int:
        """Queue a dead worker's requests again; return how many fail as poison requests.

        Any request that the worker had begun may have killed it. A request that two workers died on is tried
        exclusively, so that no other request fails with it.
        """
        jobs = list(slot.in_flight.values())
        begun, again, poison = jobs[: slot.parallel], jobs[slot.parallel :], 0
        slot.in_flight.clear()
        slot.load = slot.parallel = 0
        slot.exclusive = slot.reserved = False
        for job in reversed(begun):
            job.deaths += 1
            job.exclusive = job.deaths == MAX_DEATHS - 1
            if job.deaths == MAX_DEATHS:
                poison += 1
                job.sink(job.key, RowError(f"{MAX_DEATHS} workers died on it ({reason})"), 0.0)
            elif job.exclusive:
                self.urgent.append(job)
            else:
                again.insert(0, job)
        self.waiting.extendleft(reversed(again))
        return poison

    def clear(self) -> list[WorkerJob]:
        """Remove and return all unfinished requests."""
        jobs = self.remove(lambda _: True)
        for slot in self.slots:
            jobs += slot.in_flight.values()
            slot.in_flight.clear()
            slot.load = 0
        return jobs
