"""Requests answered by threads of this process; and what any executor offers the loop of `generate`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from selfalign.generation.engines.base import Completion, Engine, Request, answer

Done: TypeAlias = "SimpleQueue[tuple[str, Completion | BaseException, float]]"
"""Finished requests: key, result, the engine's seconds."""

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class Crew(Protocol):
    """Answers one pass's requests, several at once, in whatever order they finish."""

    done: Done
    """Every key that was given and not taken back comes here, once."""

    def give(self, key: str, request: Request) -> None:
        """Take a request; returns at once."""
        ...

    def take_back(self) -> list[str]:
        """Keys of requests that no engine has begun; none will."""
        ...

    def close(self) -> list[str]:
        """Wait for what is with an engine; returns the keys that were not begun."""
        ...


@runtime_checkable
class Crewed(Protocol):
    """An engine that answers requests by more than the threads of this process."""

    def crew(self) -> Crew:
        """A crew for one pass; the engines behind it live on."""
        ...


def crew_of(engine: Engine) -> Crew:
    """What answers the requests of one pass on this engine."""
    if isinstance(engine, Crewed):
        return engine.crew()
    return LocalCrew[Request, Completion](lambda request: answer(engine, request), engine.parallel)


class LocalCrew(Generic[Asked, Answered]):
    """One thread for each request that is answered at once; two queues. Threads start with the first request."""

    def __init__(self, answer: Callable[[Asked], Answered], parallel: int) -> None:
        self._answer, self._parallel = answer, parallel
        self._threads: list[threading.Thread] = []
        self._todo: SimpleQueue[tuple[str, Asked] | None] = SimpleQueue()
        self.done: SimpleQueue[tuple[str, Answered | BaseException, float]] = SimpleQueue()

    def give(self, key: str, request: Asked) -> None:
        """See `Crew`."""
        if not self._threads:
            for number in range(self._parallel):
                thread = threading.Thread(target=self._work, name=f"generate-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        self._todo.put((key, request))

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            start = time.monotonic()
            result: Answered | BaseException
            try:
                result = self._answer(item[1])
            except BaseException as error:  # a panic of a library, too: a key without a result would be waited for
                result = error
            self.done.put((item[0], result, time.monotonic() - start))

    def take_back(self) -> list[str]:
        """See `Crew`."""
        keys: list[str] = []
        while True:
            try:
                item = self._todo.get_nowait()
            except Empty:
                return keys
            if item is not None:
                keys.append(item[0])

    def close(self) -> list[str]:
        """See `Crew`."""
        never = self.take_back()
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        return never
