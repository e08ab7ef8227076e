"""Decide which slot gets the next request: the slot with room that will likely answer first.

Slots are the servers of `engines.fleet` and the workers of `ray.supervision`. This module starts no thread, makes no
call and reads no clock; its users hold a lock around each call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar


class Slot(ABC):
    """A server or a worker that holds requests."""

    def __init__(self) -> None:
        self.load = 0
        """Number of requests that it holds."""
        self.rest_until = 0.0
        """Time before which it gets no request."""
        self.exclusive = False
        """Whether it holds an exclusive request; it then gets no other."""
        self.reserved = False
        """Whether it is being emptied for an exclusive request; it gets no other until then."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Maximum number of requests that it may hold; 0 while it is out of service."""

    @abstractmethod
    def cost(self) -> float:
        """Return the cost of one more request; the slot with the lowest gets it."""

    def has_room(self, now: float) -> bool:
        """Return whether it may get a request that is not exclusive."""
        return not self.exclusive and not self.reserved and now >= self.rest_until and self.load < self.capacity

    def release(self) -> None:
        """Record that it no longer holds one of its requests."""
        self.load -= 1
        self.exclusive = self.exclusive and self.load > 0


@dataclass(eq=False)
class Job:
    """A request in progress."""

    preferred: Any = None
    """The slot that the request waits for while that is in service."""
    excluded: set[Any] = field(default_factory=set)
    """Slots on which it failed. When it has failed on all, every slot may get it again."""
    exclusive: bool = False
    """Whether it must be the only request in its slot."""


J = TypeVar("J", bound=Job)
S = TypeVar("S", bound=Slot)


class Queue(Generic[J, S]):
    """Requests that wait for a slot.

    Urgent requests come first and may overtake each other. The others keep their order; they are never exclusive, and
    have no preferred or excluded slots.
    """

    def __init__(self, slots: list[S]) -> None:
        self.slots = slots
        self.urgent: deque[J] = deque()
        self.waiting: deque[J] = deque()

    def assign(self, now: float = 0.0, urgent_only: bool = False) -> list[tuple[J, S]]:
        """Move waiting requests to slots with room; return the (request, slot) pairs."""
        pairs: list[tuple[J, S]] = []
        self.urgent = deque(job for job in self.urgent if not self._assign(job, now, pairs))
        while self.waiting and not urgent_only and self._assign(self.waiting[0], now, pairs):
            self.waiting.popleft()
        return pairs

    def _assign(self, job: J, now: float, pairs: list[tuple[J, S]]) -> bool:
        slot = self._empty_slot() if job.exclusive else self._cheapest_slot(job, now)
        if slot is None:
            return False
        slot.exclusive = job.exclusive
        slot.reserved = False
        slot.load += 1
        pairs.append((job, slot))
        return True

    def _cheapest_slot(self, job: J, now: float) -> S | None:
        in_service = [slot for slot in self.slots if slot.capacity]
        if not any(slot not in job.excluded for slot in in_service):
            job.excluded.clear()
        allowed = [slot for slot in in_service if slot not in job.excluded]
        if job.preferred in allowed and now >= job.preferred.rest_until:
            allowed = [job.preferred]
        return min((slot for slot in allowed if slot.has_room(now)), key=lambda slot: slot.cost(), default=None)

    def _empty_slot(self) -> S | None:
        """Return an empty slot, or reserve the least loaded one. Only one request at a time is exclusive."""
        in_service = [slot for slot in self.slots if slot.capacity]
        if not in_service or any(slot.exclusive for slot in in_service):
            return None
        slot = min(in_service, key=lambda slot: (not slot.reserved, slot.load))
        slot.reserved = slot.load > 0
        return None if slot.reserved else slot

    def remove(self, matches: Callable[[J], bool]) -> list[J]:
        """Remove the matching requests from the queue and return them, urgent ones first."""
        removed = [job for job in (*self.urgent, *self.waiting) if matches(job)]
        self.urgent = deque(job for job in self.urgent if not matches(job))
        self.waiting = deque(job for job in self.waiting if not matches(job))
        if not any(job.exclusive for job in self.urgent):
            for slot in self.slots:
                slot.reserved = False
        return removed
