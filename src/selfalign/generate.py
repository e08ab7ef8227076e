"""The only loop that talks to an engine: journal -> engine -> journal.

A request's key is the hash of everything its output depends on. What the journal holds under a key is never asked
again; what is asked is committed raw before anyone reads it. Results come back in the order of the requests, whatever
the order of arrival, so that stages decide the same on every run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

from selfalign.engines.base import TOO_LONG, Completion, Engine, Request, RowError, answer
from selfalign.errors import SelfAlignError
from selfalign.journal import Journal
from selfalign.records import content_hash
from selfalign.signals import STOP

SCHEMA_VERSION = 1
"""Raise it where the meaning of a raw output changes: the journal then never answers for the old code."""


@dataclass(frozen=True, slots=True)
class Work:
    """A request for a row of a stage."""

    row_id: str
    request: Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: a completion, or the reason why there is none."""

    row_id: str
    completion: Completion | None
    reason: str = ""

    @property
    def fate(self) -> Literal["dropped", "failed"]:
        """What a row without a completion is: dropped where its prompt is too long, else failed."""
        return "dropped" if self.reason == TOO_LONG else "failed"


def row_seed(run_seed: int, *parts: object) -> int:
    """A request's seed: it depends on what the row is, not on when its turn comes."""
    return int(content_hash(run_seed, *parts)[:8], 16)


def generate(
    works: Sequence[Work],
    engine: Engine,
    journal: Journal,
    *,
    stage: str,
    identities: Mapping[str | None, str],
    on_done: Callable[[int, int], None] = lambda rows, tokens: None,
) -> list[Outcome]:
    """Answer every request, from the journal or by the engine.

    Args:
        identities: a hash of the weights for the base (None) and each adapter that requests name.
        on_done: gets (rows, generated tokens) as they finish.

    Raises:
        Interrupted: a signal came; requests in flight were finished and saved first.
    """
    keys = [
        content_hash(SCHEMA_VERSION, stage, identities[w.request.adapter], w.row_id, w.request.identity())
        for w in works
    ]
    outcomes: dict[str, Outcome] = {}
    for key, raw in journal.saved(keys).items():
        outcomes[key] = Outcome("", Completion.from_json(json.loads(raw)))
    on_done(len(outcomes), 0)
    todo = [(key, work) for key, work in dict(zip(keys, works, strict=True)).items() if key not in outcomes]
    if todo:
        journal.begin(stage, ((key, work.row_id) for key, work in todo))
        _run(todo, engine, journal, outcomes, on_done)
    return [
        Outcome(work.row_id, outcomes[key].completion, outcomes[key].reason)
        for key, work in zip(keys, works, strict=True)
    ]


def _run(
    todo: list[tuple[str, Work]],
    engine: Engine,
    journal: Journal,
    outcomes: dict[str, Outcome],
    on_done: Callable[[int, int], None],
) -> None:
    waiting = iter(todo)
    flying: dict[Future[tuple[Completion, float]], str] = {}
    with ThreadPoolExecutor(engine.parallel, thread_name_prefix="generate") as pool:
        while True:
            started = []
            # Two waiting requests per thread: an idle slot finds work while the journal commits.
            while not STOP.is_set and len(flying) < engine.parallel * 2 and (item := next(waiting, None)):
                flying[pool.submit(_timed, engine, item[1].request)] = item[0]
                started.append(item[0])
            if started:
                journal.running(started)
            if not flying:
                break
            done, _ = wait(flying, timeout=0.5, return_when=FIRST_COMPLETED)
            if STOP.is_set:
                for future in [f for f in flying if f.cancel()]:
                    del flying[future]
                    done.discard(future)
            _commit([(flying.pop(f), f) for f in done], journal, outcomes, on_done)
    STOP.check()


def _timed(engine: Engine, request: Request) -> tuple[Completion, float]:
    start = time.monotonic()
    return answer(engine, request), time.monotonic() - start


def _commit(
    done: Iterable[tuple[str, Future[tuple[Completion, float]]]],
    journal: Journal,
    outcomes: dict[str, Outcome],
    on_done: Callable[[int, int], None],
) -> None:
    saved = []
    broken: SelfAlignError | None = None
    for key, future in done:
        try:
            completion, seconds = future.result()
        except SelfAlignError as error:  # the engine is gone; what others finished is saved first
            broken = error
            continue
        except RowError as error:
            journal.fail(key, str(error))
            outcomes[key] = Outcome("", None, str(error))
            on_done(1, 0)
            continue
        parts = completion.parts
        saved.append(
            (
                key,
                json.dumps(completion.to_json(), ensure_ascii=False),
                sum(p.prompt_tokens for p in parts),
                sum(p.cached_tokens for p in parts),
                sum(p.generated_tokens for p in parts),
                seconds,
            )
        )
        outcomes[key] = Outcome("", completion)
    if saved:
        journal.save_raw(saved)
        for row in saved:
            on_done(1, row[4])
    if broken:
        raise broken
