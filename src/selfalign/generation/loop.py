"""Answer the requests of a stage from the journal if it has the output, otherwise by the engine.

A request's key is the hash of everything that its output depends on. A request whose output is in the journal is not
sent again; a new output is committed before anything reads it. Results have the order of the requests, so that a stage
makes the same decisions in every run. Only a window of requests and results is in memory. The engine runs in an
executor: threads of this process (`generation.local`) or workers of a Ray cluster (`generation.ray`).
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from queue import Empty
from typing import Any, Literal, NamedTuple, Protocol

from selfalign.data.records import content_hash, to_json
from selfalign.errors import SelfAlignError
from selfalign.generation.engines.base import TOO_LONG, Completion, Engine, Request, RowError
from selfalign.generation.local import executor_of
from selfalign.system.signals import STOP

SCHEMA_VERSION = 2
"""Increase this when the meaning of a raw output changes, so that outputs of earlier versions are not used."""

_LOOK_UP = 256
"""Number of requests that one query looks up in the journal."""
_WINDOW = 2048
"""Maximum requests read, from the first one without a result: beyond it, a slow request delays the others."""


class RawOutput(NamedTuple):
    """The raw output of an answered request, as the journal stores it."""

    key: str
    raw: str
    """JSON of the completion."""
    prompt_tokens: int
    """Prompt tokens that were computed."""
    cached_tokens: int
    generated_tokens: int
    seconds: float
    escaped: Sequence[str] = ()
    """Control tokens that were escaped in the request's text."""


class RequestLog(Protocol):
    """Stores requests and their raw outputs; `selfalign.run.journal.Journal` implements it."""

    def saved(self, keys: Iterable[str]) -> dict[str, str]: ...
    def begin(self, stage: str, items: Iterable[tuple[str, str]]) -> None: ...
    def begin_session(self, stage: str, parallel: int) -> int: ...
    def progress(
        self,
        started: Sequence[str] = (),
        saved: Sequence[RawOutput] = (),
        failed: Sequence[tuple[str, str]] = (),
        session: tuple[int, float, float] | None = None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class RowRequest:
    """A request for a row of a stage, with any object that the stage needs again with the result."""

    row_id: str
    request: Request
    item: Any = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The completion of a row's request, or the reason why there is none."""

    row_id: str
    completion: Completion | None
    reason: str = ""

    @property
    def state(self) -> Literal["kept", "dropped", "failed"]:
        """The state of the row: kept with a completion, dropped if its prompt is too long, otherwise failed."""
        if self.completion is not None:
            return "kept"
        return "dropped" if self.reason == TOO_LONG else "failed"


def row_seed(run_seed: int, *parts: object) -> int:
    """Return a request's seed, which depends on the content of its row and not on its order in the run."""
    return int(content_hash(run_seed, *parts)[:8], 16)


def request_key(stage: str, request: RowRequest, identities: Mapping[str | None, str]) -> str:
    """Return the request's key in the journal: a hash of everything that its output depends on."""
    weights = identities[request.request.adapter]
    return content_hash(SCHEMA_VERSION, stage, weights, request.row_id, request.request.identity())


@dataclass(frozen=True, slots=True)
class JournaledEngine:
    """An engine for one stage. The journal answers requests whose output it has, the engine answers the others."""

    engine: Engine
    journal: RequestLog
    stage: str
    identities: Mapping[str | None, str]
    """Hashes of the weights of the base (None) and of each adapter that requests name."""
    on_done: Callable[[int, int], None] = lambda rows, tokens: None
    """Receives (rows, generated tokens) as requests finish."""

    def generate(self, requests: Iterable[RowRequest]) -> list[GenerationResult]:
        """Return the results of a few requests in their order. Raises as `stream`."""
        with closing(self.stream(requests)) as results:
            return [result for _, result in results]

    def stream(
        self, requests: Iterable[RowRequest], prepare: Callable[[RowRequest], None] = lambda request: None
    ) -> Generator[tuple[RowRequest, GenerationResult], None, None]:
        """Yield every request with its result, in the order of the requests.

        Only a window of requests is in memory. An iterator that is not exhausted must be closed, which waits for
        the requests in flight.

        Args:
            prepare: called before a request that the journal cannot answer is given to the engine.

        Raises:
            Interrupted: a signal came; requests in flight were finished and saved first.
            SelfAlignError: the engine failed; its finished requests were saved first.
        """
        loop = _Loop(requests, self, prepare)
        try:
            yield from loop.run()
        finally:
            loop.close()


class _Loop:
    """One pass over a stage's requests.

    A request is in `_order` until its result is yielded, and meanwhile also in `_waiting`, `_in_flight` (submitted to
    the executor) or `_results`. Everything except generation happens in the calling thread.
    """

    def __init__(
        self, requests: Iterable[RowRequest], target: JournaledEngine, prepare: Callable[[RowRequest], None]
    ) -> None:
        self.executor = executor_of(target.engine)
        self._requests = iter(requests)
        self._prepare = prepare
        # Four requests per slot: an idle slot gets the next one while the journal commits and the stage filters rows.
        self._parallel = target.engine.parallel
        self._capacity = self._parallel * 4
        self._window = max(_WINDOW, 2 * self._capacity)
        self._journal, self._stage = target.journal, target.stage
        self._identities, self._on_done = target.identities, target.on_done
        self._order: deque[tuple[str, RowRequest]] = deque()
        self._waiting: dict[str, RowRequest] = {}
        self._in_flight: set[str] = set()
        self._results: dict[str, GenerationResult] = {}
        self._copies: Counter[str] = Counter()
        """How often a key is in `_order`: a request may occur twice."""
        self._exhausted = False
        self._session = 0
        self._start = 0.0
        self._busy = 0.0
        self._error: BaseException | None = None

    def run(self) -> Iterator[tuple[RowRequest, GenerationResult]]:
        while True:
            self._look_up()
            started = self._submit()
            saved, failed = self._collect()
            if started or saved or failed:
                self._commit(started, saved, failed)
            yield from self._ready()
            if self._stopping:
                for key in self.executor.take_back():
                    self._in_flight.discard(key)
            if not self._in_flight and (self._stopping or (self._exhausted and not self._order)):
                break
        if self._error is None or isinstance(self._error, SelfAlignError):
            STOP.check()  # after a signal, an engine that failed too is not reported
        if self._error:
            raise self._error

    def close(self) -> None:
        """Stop the executor and save the outputs that it finished since the last commit, if possible."""
        for key in self.executor.close():
            self._in_flight.discard(key)
        saved, failed = self._collect()
        if saved or failed:
            with suppress(SelfAlignError):
                self._commit([], saved, failed)

    @property
    def _stopping(self) -> bool:
        return STOP.is_set or self._error is not None

    def _look_up(self) -> None:
        """Read more requests: those in the journal have a result, the others wait."""
        while not self._exhausted and len(self._waiting) < self._capacity and len(self._order) < self._window:
            batch = list(islice(self._requests, _LOOK_UP))
            if not batch:
                self._exhausted = True
                return
            keyed = [(request_key(self._stage, request, self._identities), request) for request in batch]
            self._order.extend(keyed)
            self._copies.update(key for key, _ in keyed)
            outputs = self._journal.saved(key for key, _ in keyed)
            for key, raw in outputs.items():
                self._results[key] = GenerationResult("", Completion.from_json(json.loads(raw)))
            known = self._results.keys() | self._waiting.keys() | self._in_flight
            new = {key: request for key, request in keyed if key not in known}
            if new:
                self._journal.begin(self._stage, ((key, request.row_id) for key, request in new.items()))
                self._waiting |= new
            self._on_done(len(batch) - len(new), 0)
            if outputs:
                return  # yield them before more are read

    def _submit(self) -> list[str]:
        started: list[str] = []
        if self._waiting and not self._session and not self._stopping:
            self._session, self._start = self._journal.begin_session(self._stage, self._parallel), time.monotonic()
        while self._waiting and len(self._in_flight) < self._capacity and not self._stopping:
            key = next(iter(self._waiting))
            self._prepare(self._waiting[key])
            self.executor.give(key, self._waiting.pop(key).request)
            self._in_flight.add(key)
            started.append(key)
        return started

    def _collect(self) -> tuple[list[RawOutput], list[tuple[str, str]]]:
        """Return what the executor has finished; wait for the first output if there is nothing else to do."""
        saved: list[RawOutput] = []
        failed: list[tuple[str, str]] = []
        wait = bool(self._in_flight) and not self._has_ready()
        while self._in_flight:
            try:
                key, result, seconds = self.executor.done.get(timeout=0.5) if wait else self.executor.done.get_nowait()
            except Empty:
                break
            wait = False
            self._busy += seconds
            self._in_flight.discard(key)
            if isinstance(result, RowError):
                failed.append((key, str(result)))
                self._results[key] = GenerationResult("", None, str(result))
            elif isinstance(result, BaseException):
                # A SelfAlignError takes precedence: it may be the cause of the other error.
                if self._error is None or isinstance(result, SelfAlignError):
                    self._error = result
            else:
                saved.append(_saved(key, result, seconds))
                self._results[key] = GenerationResult("", result)
        return saved, failed

    def _commit(self, started: list[str], saved: list[RawOutput], failed: list[tuple[str, str]]) -> None:
        session = (self._session, time.monotonic() - self._start, self._busy)
        self._journal.progress(started, saved, failed, session)
        for row in saved:
            self._on_done(1, row.generated_tokens)
        if failed:
            self._on_done(len(failed), 0)

    def _has_ready(self) -> bool:
        return bool(self._order) and self._order[0][0] in self._results

    def _ready(self) -> Iterator[tuple[RowRequest, GenerationResult]]:
        """Yield the requests up to the first one without a result."""
        while self._has_ready():
            key, request = self._order.popleft()
            result = self._results[key]
            self._copies[key] -= 1
            if not self._copies[key]:
                del self._results[key], self._copies[key]
            yield request, replace(result, row_id=request.row_id)


def _saved(key: str, completion: Completion, seconds: float) -> RawOutput:
    parts = completion.parts
    return RawOutput(
        key,
        to_json(completion.to_json()),
        sum(p.prompt_tokens for p in parts),
        sum(p.cached_tokens for p in parts),
        sum(p.generated_tokens for p in parts),
        seconds,
        completion.escaped,
    )
