"""Define the executor interface, and answer requests by threads of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from selfalign.generation.engines.base import Completion, Engine, Request, answer

Done: TypeAlias = "SimpleQueue[tuple[str, Completion | BaseException, float]]"
"""Finished requests: (key, result, the engine's seconds)."""

Input = TypeVar("Input")
Output = TypeVar("Output")


class Executor(Protocol):
    """Answers the requests of one pass concurrently; they finish in any order."""

    done: Done
    """Receives each key that was given, once, unless it was taken back."""

    def give(self, key: str, request: Request) -> None:
        """Take a request; return at once."""
        ...

    def take_back(self) -> list[str]:
        """Return the keys of the requests that no engine has begun; they are never answered."""
        ...

    def close(self) -> list[str]:
        """Wait for the requests that an engine has begun; return the keys of the others."""
        ...


@runtime_checkable
class HasExecutor(Protocol):
    """An engine that runs outside the threads of this process."""

    def executor(self) -> Executor:
        """Return an executor for one pass. The engine outlives it."""
        ...


def executor_of(engine: Engine) -> Executor:
    """Return an executor for the requests of one pass on this engine."""
    if isinstance(engine, HasExecutor):
        return engine.executor()
    return LocalExecutor[Request, Completion](lambda request: answer(engine, request), engine.parallel)


class LocalExecutor(Generic[Input, Output]):
    """Threads between two queues, one for each concurrent request. They start with the first request."""

    def __init__(self, answer: Callable[[Input], Output], parallel: int) -> None:
        self._answer, self._parallel = answer, parallel
        self._threads: list[threading.Thread] = []
        self._todo: SimpleQueue[tuple[str, Input] | None] = SimpleQueue()
        self.done: SimpleQueue[tuple[str, Output | BaseException, float]] = SimpleQueue()

    def give(self, key: str, request: Input) -> None:
        """See `Executor`."""
        if not self._threads:
            for number in range(self._parallel):
                thread = threading.Thread(target=self._work, name=f"generate-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        self._todo.put((key, request))

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            start = time.monotonic()
            result: Output | BaseException
            try:
                result = self._answer(item[1])
            except BaseException as error:  # or the loop would wait for this key forever
                result = error
            self.done.put((item[0], result, time.monotonic() - start))

    def take_back(self) -> list[str]:
        """See `Executor`."""
        keys: list[str] = []
        while True:
            try:
                item = self._todo.get_nowait()
            except Empty:
                return keys
            if item is not None:
                keys.append(item[0])

    def close(self) -> list[str]:
        """See `Executor`."""
        never = self.take_back()
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        return never
