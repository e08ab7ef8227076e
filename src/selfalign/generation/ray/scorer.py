"""Score texts by a run's own models on the workers of a Ray cluster.

Workers receive chunks of texts and return log-probabilities; each has one scorer and computes one chunk at a time.
`supervision` handles the death of a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from queue import Empty
from typing import Any, Literal

from selfalign.data.prompt_text import Pieces
from selfalign.errors import Resumable
from selfalign.generation import scoring
from selfalign.generation.engines.base import RowError
from selfalign.generation.local import LocalExecutor
from selfalign.generation.ray.pool import Pool, RayExecutor
from selfalign.generation.ray.worker import Ready, Worker, WorkerSettings
from selfalign.generation.scoring.base import LossScorer, Scored, Text
from selfalign.generation.settings import EngineSettings, ExecutorSettings
from selfalign.model.base_model import Model
from selfalign.model.dialogue import Encoded
from selfalign.system.environment import share_processor
from selfalign.system.signals import STOP

_CHUNKS = 4
"""Chunks per worker, so that a fast worker can take more of them than a slow one."""
_ROWS = 8
"""Batch size of `forward.token_losses`. Padding, and so the last digits of a loss, depend on the batch; a chunk holds
whole batches, the same as without Ray."""
_CHECK_SECONDS = 0.2

Unit = tuple[Sequence[int], int]
"""(indices of texts or rows that stay together, approximate cost)"""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The texts or rows that a worker computes in one request."""

    kind: Literal["texts", "rows"]
    """texts: for log-likelihoods; rows: for losses."""
    items: tuple[Any, ...]
    """(context, continuation) pairs, or `Encoded` rows."""
    adapter: str | None


Numbers = tuple[list[Any], tuple[int, int]]
"""(the results of a chunk in its order, (its tokens, the tokens that were computed)).

A result is a `Scored`, None for a text that is too long, or a row's losses."""


class ScoringWorker(Worker):
    """A worker whose engine is a scorer, which `WorkerSettings.start` loads."""

    ahead = 1

    def _load(
        self, settings: WorkerSettings, config: EngineSettings, model: Model, adapters: Mapping[str, Path]
    ) -> Ready:
        share_processor()
        scorer: LossScorer = settings.start(model, adapters)
        self._loaded = [scorer]
        self._executor = LocalExecutor[Chunk, Numbers](lambda chunk: _compute(scorer, chunk), 1)
        return 1, scorer.name


def _compute(scorer: LossScorer, chunk: Chunk) -> Numbers:
    total, computed = scorer.tokens
    compute: Callable[..., list[Any]] = scorer.score if chunk.kind == "rows" else scorer.loglikelihoods
    return compute(chunk.items, chunk.adapter), (scorer.tokens[0] - total, scorer.tokens[1] - computed)


class RayScorer:
    """A scorer on the workers of a Ray cluster. See `Scorer` and `LossScorer`.

    With one worker every call is one chunk, and its numbers equal those of a process without Ray to the last bit. With
    more workers, losses still do; log-likelihoods differ by rounding, since other texts share a matrix.

    The arguments and the errors are those of `Pool`. A scorer of kind torch takes no accelerator.
    """

    def __init__(
        self,
        executor: ExecutorSettings,
        config: EngineSettings,
        model: Model,
        adapters: Mapping[str, Path],
        kind: scoring.ScorerKind,
        start: Callable[..., Any],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        if kind == "torch":
            executor = executor.model_copy(update={"gpus": 0.0})
        self._pool = Pool(executor, config, model, adapters, say, ScoringWorker, kind, start)
        self.name = self._pool.note
        self.workers = self._pool.allocation.workers
        """Number of workers; a caller may pass this many times the texts that it would pass to one scorer."""
        self._total = self._computed = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """See `Scorer`. The sums over the chunks that all workers computed."""
        return self._total, self._computed

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """See `Scorer`.

        Raises:
            Resumable: no worker is left, or a chunk killed every worker that computed it.
            Interrupted: a signal came.
        """
        return self._compute("texts", requests, by_context(requests), adapter)

    def score(self, rows: Sequence[Encoded], adapter: str | None) -> list[list[float]]:
        """See `LossScorer`. Raises as `loglikelihoods`."""
        return self._compute("rows", rows, in_batches(rows), adapter)

    def _compute(
        self, kind: Literal["texts", "rows"], items: Sequence[Any], units: Sequence[Unit], adapter: str | None
    ) -> list[Any]:
        """Return the results in the order of `items`."""
        # A single worker gets the items in their order, since the numbers of a scorer depend on it.
        chunks = in_chunks(units, _CHUNKS * self.workers) if self.workers > 1 else [range(len(items))]
        executor = self._pool.executor()
        for number, indices in enumerate(chunks):
            executor.give(str(number), Chunk(kind, tuple(items[i] for i in indices), adapter))
        values: list[Any] = [None] * len(items)
        for _ in chunks:
            key, result = self._next(executor)
            indices = chunks[int(key)]
            if isinstance(result, RowError):
                raise Resumable(
                    f"scoring stopped at {len(indices)} {kind}: {result}. Check the workers' memory and logs, then run "
                    "the same command again"
                )
            if isinstance(result, BaseException):
                raise result
            results, (total, computed) = result
            for index, value in zip(indices, results, strict=True):
                values[index] = value
            self._total += total
            self._computed += computed
        return values

    @staticmethod
    def _next(executor: RayExecutor) -> tuple[str, Any]:
        """Return the number and result of the next finished chunk. Raises Interrupted at a signal."""
        while True:
            STOP.check()
            with suppress(Empty):
                key, result, _ = executor.done.get(timeout=_CHECK_SECONDS)
                return key, result

    def close(self) -> None:
        """End the workers, and the cluster if it is our own."""
        self._pool.close()


def by_context(texts: Sequence[Text]) -> list[Unit]:
    """Group texts with the same context, and sort the groups so that contexts with a shared beginning are neighbours.

    A unit's cost is the characters of its continuations, and of the context's pieces that its neighbour does not share.
    """
    contexts = ["".join(context) for context, _ in texts]
    units: list[Unit] = []
    previous: Pieces = ()
    order = sorted(range(len(texts)), key=lambda i: (contexts[i], texts[i][1]))
    for _, group in groupby(order, key=contexts.__getitem__):
        indices = list(group)
        context = texts[indices[0]][0]
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(context, previous, strict=False))))
        cost = sum(map(len, context[shared:])) + sum(len(texts[i][1]) + 1 for i in indices)
        units.append((indices, cost))
        previous = context
    return units


def in_batches(rows: Sequence[Encoded]) -> list[Unit]:
    """Return the batches into which `forward.token_losses` divides the rows."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    batches = [order[at : at + _ROWS] for at in range(0, len(order), _ROWS)]
    return [(batch, len(batch) * len(rows[batch[-1]].ids)) for batch in batches]


def in_chunks(units: Sequence[Unit], most: int) -> list[Sequence[int]]:
    """Join neighbouring units into at most `most` chunks of similar cost; return the indices of each chunk."""
    target = sum(cost for _, cost in units) / most
    chunks: dict[int, list[int]] = {}
    done = 0
    for indices, cost in units:
        chunks.setdefault(int((done + cost / 2) / target), []).extend(indices)
        done += cost
    return list(chunks.values())
