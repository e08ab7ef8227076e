"""Which request goes to which worker, and what becomes of those that were with one that died. No thread, no network.

A worker gets more requests as it finishes some: a fast one gets more than a slow one. It holds at most twice as many as
it answers at once, so that none falls idle and none hoards; of what takes long no more than it works on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from selfalign.generation.engines.base import RowError

DEATHS = 3
"""A request is given up as the killer of workers after so many died on it."""
AHEAD = 2
"""Requests that a worker holds, for each that it answers at once."""

Sink = Callable[[str, Any, float], None]


@dataclass(eq=False, slots=True)
class Item:
    """A request on its way."""

    key: str
    request: Any
    """What the workers of this board are asked; nothing here looks into it."""
    sink: Sink
    """Gets key, result (or an exception) and the engine's seconds."""
    deaths: int = 0


@dataclass(eq=False, slots=True)
class Seat:
    """A worker's place: what it holds."""

    slots: int = 0
    """Requests that it answers at once; 0 while no worker sits here."""
    outbox: deque[Item] = field(default_factory=deque)
    """To be sent."""
    flying: dict[int, Item] = field(default_factory=dict)
    """Sent, by their tickets, in the order in which the worker begins them."""
    alone: bool = False
    """It tries a suspect, and nothing beside it."""
    held: bool = False
    """It gets nothing more until it is empty, to try a suspect then."""

    @property
    def load(self) -> int:
        return len(self.outbox) + len(self.flying)


class Board:
    """All requests and all seats.

    Args:
        ahead: requests that a worker holds, for each that it answers at once.
    """

    def __init__(self, ahead: int = AHEAD) -> None:
        self._ahead = ahead
        self.seats: list[Seat] = []
        self.todo: deque[Item] = deque()
        self.suspects: deque[Item] = deque()
        """Each was begun by workers that died, once less than it takes to be sure: it is tried alone."""
        self._tickets = 0

    def add(self, item: Item) -> None:
        """A request more."""
        self.todo.append(item)

    def share(self) -> list[Seat]:
        """Put what waits into the outboxes of workers with room; returns those that got something."""
        found: dict[int, Seat] = {}
        while self.suspects and (seat := self._for_suspect()):
            seat.alone, seat.held = True, False
            seat.outbox.append(self.suspects.popleft())
            found[id(seat)] = seat
        while self.todo and (seat := self._freest()):
            seat.outbox.append(self.todo.popleft())
            found[id(seat)] = seat
        return list(found.values())

    def _freest(self) -> Seat | None:
        """Whoever has an idle slot comes before those who would only hold more; of these, the least loaded."""
        open_ = [s for s in self.seats if s.slots and not s.alone and not s.held and s.load < s.slots * self._ahead]
        return min(open_, key=lambda s: s.load / s.slots, default=None)

    def _for_suspect(self) -> Seat | None:
        """An empty worker; where there is none, the least loaded is held back until it is empty."""
        seats = [s for s in self.seats if s.slots and not s.alone]
        if not seats or any(s.alone for s in self.seats):
            return None
        best = min(seats, key=lambda s: (not s.held, s.load))
        if not best.load:
            return best
        best.held = True
        return None

    def send(self, seat: Seat) -> list[tuple[int, Any]]:
        """What a worker gets now, with tickets; from here on it is with the worker."""
        batch = []
        while seat.outbox:
            item = seat.outbox.popleft()
            self._tickets += 1
            seat.flying[self._tickets] = item
            batch.append((self._tickets, item.request))
        return batch

    def finished(self, seat: Seat, ticket: int) -> Item | None:
        """The request that the worker has finished; None where it was taken back meanwhile."""
        item = seat.flying.pop(ticket, None)
        if item and not seat.load:
            seat.alone = False
        return item

    def died(self, seat: Seat, why: str) -> int:
        """Give the requests of a worker that died to the others; returns how many of them are given up.

        Of those that it held it had begun the first ones only, and one of them may have killed it: what was begun on
        two dead workers is tried alone, so that no innocent request is given up with the third.
        """
        begun = list(seat.flying.values())[: seat.slots]
        rest = [*list(seat.flying.values())[seat.slots :], *seat.outbox]
        seat.flying.clear()
        seat.outbox.clear()
        seat.slots, seat.alone, seat.held = 0, False, False
        given_up, again = 0, []
        for item in begun:
            item.deaths += 1
            if item.deaths >= DEATHS:
                given_up += 1
                item.sink(item.key, RowError(f"{DEATHS} workers died on it ({why})"), 0.0)
            elif item.deaths == DEATHS - 1:
                self.suspects.append(item)
            else:
                again.append(item)
        self.todo.extendleft(reversed([*again, *rest]))
        return given_up

    def waiting(self, mine: Callable[[Item], bool]) -> list[Item]:
        """Take back the requests that no worker has been sent."""
        found: list[Item] = []
        for queue in (self.suspects, self.todo, *(s.outbox for s in self.seats)):
            found += [item for item in queue if mine(item)]
            kept = [item for item in queue if not mine(item)]
            queue.clear()
            queue.extend(kept)
        for seat in self.seats:
            seat.alone = seat.alone and bool(seat.load)
        return found

    def all(self) -> list[Item]:
        """Everything that is not finished, taken off the board."""
        found = self.waiting(lambda _: True)
        for seat in self.seats:
            found += seat.flying.values()
            seat.flying.clear()
        return found
