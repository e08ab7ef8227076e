"""Track the requests of Ray workers: which worker holds which, and where they go when a worker dies.

Pure, as `scheduling`: no thread, no network. A worker gets a request as it finishes one, so that a fast worker gets
more than a slow one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from selfalign.generation.engines.base import RowError
from selfalign.generation.scheduling import Job, Queue, Slot

MAX_DEATHS = 3
"""A request on which this many workers died is poison: it fails."""
AHEAD = 2
"""Requests that a worker holds for each that it answers concurrently, so that it never waits for the next."""

Sink = Callable[[str, Any, float], None]
"""Receives a request's key, its result (or an exception) and the engine's seconds."""


@dataclass(eq=False, kw_only=True)
class WorkerJob(Job):
    """A request to a worker."""

    key: str
    request: Any
    """What the workers of this pool answer: a `Request`, or a scorer's chunk."""
    sink: Sink
    deaths: int = 0
    """Workers that died while they answered it."""


class WorkerSlot(Slot):
    """One worker: the requests that it holds."""

    def __init__(self, ahead: int = AHEAD, parallel: int = 0) -> None:
        super().__init__()
        self._ahead = ahead
        self.parallel = parallel
        """Requests that it answers concurrently; 0 while no worker runs."""
        self.in_flight: dict[int, WorkerJob] = {}
        """By ticket, in the order in which the worker begins them."""

    @property
    def capacity(self) -> int:
        """See `Slot`."""
        return self.parallel * self._ahead

    def cost(self) -> float:
        """Return the load per concurrent request: a worker with an idle engine comes first."""
        return self.load / self.parallel


W = TypeVar("W", bound=WorkerSlot)


class WorkerQueue(Queue[WorkerJob, W], Generic[W]):
    """The requests that wait for a worker or are with one."""

    def __init__(self, slots: list[W]) -> None:
        super().__init__(slots)
        self._last_ticket = 0

    def add(self, job: WorkerJob) -> None:
        """Let a request wait for a worker."""
        (self.urgent if job.exclusive else self.waiting).append(job)

    def assign_tickets(self) -> dict[W, list[tuple[int, Any]]]:
        """Take waiting requests for workers with room; return each worker's (ticket, request) pairs."""
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
        """Let the requests of a dead worker wait again; return how many fail as poison requests.

        Any of the requests that the worker had begun may have killed it. A request that two workers died on is tried
        exclusively, so that no other request fails together with it.
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
        """Take off all requests that are not finished."""
        jobs = self.remove(lambda _: True)
        for slot in self.slots:
            jobs += slot.in_flight.values()
            slot.in_flight.clear()
            slot.load = 0
        return jobs
