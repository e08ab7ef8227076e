"""Choose the slot of a request by the cache that each slot holds, and remember prefixes that were saved to disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of tokens that two sequences have in common at their beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # binary search: comparing slices is much faster than comparing tokens
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(slots=True)
class Slot:
    """One of the engine's caches."""

    number: int
    adapter: str | None = None
    tokens: list[int] = field(default_factory=list)
    """The prompt that the cache holds; tokens that were generated after it are not recorded."""
    used: int = 0
    """When the slot was last in use, as a count of uses."""


class Slots:
    """The engine's slots. A slot is in use by one thread at a time."""

    def __init__(self, count: int) -> None:
        self._free = [Slot(number) for number in range(count)]
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        """The threads that wait, in their order."""
        self._uses = 0

    @contextmanager
    def use(self, tokens: list[int], adapter: str | None) -> Iterator[Slot]:
        """Wait for a free slot and give the one whose cache has most of these tokens, else the one unused longest."""
        with self._changed:
            ticket = object()
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._free and self._queue[0] is ticket)
            self._queue.popleft()
            slot = max(self._free, key=lambda s: (self.cached(s, tokens, adapter), -s.used))
            self._free.remove(slot)
            self._changed.notify_all()
        try:
            yield slot
        except BaseException:
            slot.tokens = []  # what the cache holds is unknown
            raise
        finally:
            with self._changed:
                self._uses += 1
                slot.used = self._uses
                self._free.append(slot)
                self._changed.notify_all()

    @staticmethod
    def cached(slot: Slot, tokens: list[int], adapter: str | None) -> int:
        """Return how many of the tokens the slot's cache holds: none with another adapter."""
        return common_length(slot.tokens, tokens) if slot.adapter == adapter else 0


@dataclass(frozen=True, slots=True)
class SavedPrefix:
    """A prefix whose cache is in a file."""

    tokens: list[int]
    adapter: str | None
    file: Path


class SavedPrefixes:
    """The prefixes on disk; the ones that were not used for longest are deleted beyond `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._prefixes: list[SavedPrefix] = []
        self._lock = threading.Lock()

    def find(self, tokens: list[int], adapter: str | None) -> tuple[SavedPrefix | None, int]:
        """Return the saved prefix that has most of these tokens, and how many it has."""
        with self._lock:
            lengths = [(common_length(p.tokens, tokens), p) for p in self._prefixes if p.adapter == adapter]
            length, found = max(lengths, key=lambda pair: pair[0], default=(0, None))
            if found is not None and length:
                self._prefixes.remove(found)
                self._prefixes.append(found)
            return found, length

    def add(self, prefix: SavedPrefix) -> None:
        """Add a prefix whose file was written."""
        with self._lock:
            self._prefixes.append(prefix)
            while len(self._prefixes) > 1 and sum(_size(p.file) for p in self._prefixes) > self._limit:
                self._prefixes.pop(0).file.unlink(missing_ok=True)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
