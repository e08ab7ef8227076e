"""Define the executor interface, and answer requests by threads of this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
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
    """Threads of this process, one for each concurrent request. They start with the first request."""

    def __init__(self, answer: Callable[[Input], Output], parallel: int) -> None:
        self._answer = answer
        self._threads = ThreadPoolExecutor(parallel, "generate")
        self._futures: dict[str, Future[None]] = {}
        self.done: SimpleQueue[tuple[str, Output | BaseException, float]] = SimpleQueue()

    def give(self, key: str, request: Input) -> None:
        """See `Executor`."""
        self._futures[key] = self._threads.submit(self._work, key, request)

    def _work(self, key: str, request: Input) -> None:
        start = time.monotonic()
        result: Output | BaseException
        try:
            result = self._answer(request)
        except BaseException as error:  # or the loop would wait for this key forever
            result = error
        self._futures.pop(key, None)
        self.done.put((key, result, time.monotonic() - start))

    def take_back(self) -> list[str]:
        """See `Executor`."""
        keys = [key for key, future in list(self._futures.items()) if future.cancel()]
        for key in keys:
            del self._futures[key]
        return keys

    def close(self) -> list[str]:
        """See `Executor`."""
        never = self.take_back()
        self._threads.shutdown()
        return never
