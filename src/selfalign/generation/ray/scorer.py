"""The scorer of a run's own models on the workers of a Ray cluster: chunks of texts out, log-probabilities back.

The pool is that of generation (ray.py): who dies, what becomes of its chunk, and when the run ends are decided there. A
worker holds one scorer, and works on one chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from selfalign.data.prompt_text import Pieces
from selfalign.errors import Resumable, UserError
from selfalign.generation import scoring
from selfalign.generation.engines.base import RowError
from selfalign.generation.local import LocalCrew
from selfalign.generation.ray.pool import Pool
from selfalign.generation.ray.sharing import Item
from selfalign.generation.ray.worker import Failure, Order, Worker
from selfalign.generation.scoring.base import LossScorer, Scored, Text
from selfalign.generation.settings import EngineSettings, ExecutorSettings
from selfalign.model.base_model import Model
from selfalign.model.dialogue import Encoded
from selfalign.system.environment import share_processor
from selfalign.system.signals import STOP

_CHUNKS = 4
"""Chunks for each worker: a fast one takes more of them than a slow one."""
_ROWS = 8
"""Rows that `forward.token_losses` computes at once, which padding and so the last digits of a loss depend on: a chunk
holds whole batches, those of one process."""
_LOOK_SECONDS = 0.2

Unit = tuple[Sequence[int], int]
"""(places of what stays together, about how much work it is)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a worker is asked at a time."""

    what: Literal["texts", "rows"]
    """For log-likelihoods or for losses."""
    asked: tuple[Any, ...]
    """(context, continuation) each, or `Encoded`."""
    adapter: str | None


@dataclass(frozen=True, slots=True)
class Numbers:
    """A chunk's results, in its order."""

    found: list[Any]
    """`Scored`, None for a text that is too long; or a row's losses."""
    tokens: tuple[int, int]
    """(asked for, computed)."""


class ScoringWorker(Worker):
    """A worker whose engine is a scorer; its order's `start` makes it of the model and its adapters."""

    ahead = 1

    def _check(self, config: EngineSettings) -> None:
        """The engine is not needed here; what the scorer lacks it says as it starts."""

    def _load(
        self, order: Order, config: EngineSettings, model: Model | None, adapters: Mapping[str, Path]
    ) -> tuple[int, str]:
        share_processor()
        scorer: LossScorer = order.start(model, adapters)
        self._loaded = [scorer]
        self._crew = LocalCrew[Chunk, Numbers | Failure](lambda chunk: _computed(scorer, chunk), 1)
        return 1, scorer.name


def _computed(scorer: LossScorer, chunk: Chunk) -> Numbers | Failure:
    asked, computed = scorer.tokens
    try:
        compute: Callable[..., list[Any]] = scorer.score if chunk.what == "rows" else scorer.loglikelihoods
        found = compute(chunk.asked, chunk.adapter)
    except UserError as error:
        return Failure("user", str(error))
    return Numbers(found, (scorer.tokens[0] - asked, scorer.tokens[1] - computed))


class RayScorer:
    """See `Scorer` and `LossScorer`.

    With one worker every call is one chunk, and its numbers are those of a process without Ray to the last bit. With
    more, so are losses; log-likelihoods differ by rounding, since other texts share a matrix.

    Args:
        executor: the recipe's part; its kind is ray.
        model: as the workers find it, too.
        adapters: name -> PEFT folder; they travel.
        kind: of `start`, for the share of its machine that a worker takes. torch computes on the processors and takes
            no accelerator.
        start: what a worker makes of its model and adapters, see `scorers.start`.
        say: told of workers that died and came back.

    Raises:
        UserError: there is no such cluster, no room on it, or a worker cannot load the model.
        Interrupted: a signal came while they loaded.
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
        self.workers = self._pool.shape.workers
        """So many times more is asked at once than of one scorer."""
        self._asked = self._computed = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """See `Scorer`: over all workers, of chunks that came back."""
        return self._asked, self._computed

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """See `Scorer`.

        Raises:
            Resumable: no worker is left, or some texts ended every worker that they were given to.
            Interrupted: a signal came.
        """
        return self._all("texts", requests, by_beginning(requests), adapter)

    def score(self, rows: Sequence[Encoded], adapter: str | None) -> list[list[float]]:
        """See `LossScorer`. Raises as `loglikelihoods`."""
        return self._all("rows", rows, in_batches(rows), adapter)

    def _all(
        self, what: Literal["texts", "rows"], asked: Sequence[Any], units: Sequence[Unit], adapter: str | None
    ) -> list[Any]:
        """Results in the order of `asked`."""
        # Alone, a worker gets what a scorer of this process would: its trees follow from the order, too.
        chunks = in_chunks(units, _CHUNKS * self.workers) if self.workers > 1 else [range(len(asked))]
        done: SimpleQueue[tuple[str, Any]] = SimpleQueue()

        def sink(key: str, result: Any, seconds: float) -> None:
            done.put((key, result))

        for number, places in enumerate(chunks):
            self._pool.add(Item(str(number), Chunk(what, tuple(asked[i] for i in places), adapter), sink))
        found: list[Any] = [None] * len(asked)
        for _ in chunks:
            key, result = self._next(done)
            places = chunks[int(key)]
            if isinstance(result, RowError):
                raise Resumable(
                    f"scoring stopped at {len(places)} {what}: {result}. See to the workers' memory and logs, then run "
                    "the same command again"
                )
            if isinstance(result, BaseException):
                raise result
            for place, value in zip(places, result.found, strict=True):
                found[place] = value
            self._asked += result.tokens[0]
            self._computed += result.tokens[1]
        return found

    @staticmethod
    def _next(done: SimpleQueue[tuple[str, Any]]) -> tuple[str, Any]:
        """The next finished chunk; a signal is not made to wait for it."""
        while True:
            STOP.check()
            try:
                return done.get(timeout=_LOOK_SECONDS)
            except Empty:
                continue

    def close(self) -> None:
        """End the workers and, where it is our own, the cluster."""
        self._pool.close()


def by_beginning(texts: Sequence[Text]) -> list[Unit]:
    """Texts sorted, so that those that begin alike are neighbours; those with one context are not parted."""
    spelled = ["".join(context) for context, _ in texts]
    found: list[Unit] = []
    before: Pieces = ()
    order = sorted(range(len(texts)), key=lambda i: (spelled[i], texts[i][1]))
    for _, group in groupby(order, key=spelled.__getitem__):
        places = list(group)
        context = texts[places[0]][0]
        found.append((places, _new(context, before) + sum(len(texts[i][1]) + 1 for i in places)))
        before = context
    return found


def _new(context: Pieces, before: Pieces) -> int:
    """Characters of the pieces that do not begin the context before, too."""
    shared = 0
    for mine, theirs in zip(context, before, strict=False):
        if mine != theirs:
            break
        shared += 1
    return sum(map(len, context[shared:]))


def in_batches(rows: Sequence[Encoded]) -> list[Unit]:
    """The batches that `forward.token_losses` makes of all rows."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    parts = [order[at : at + _ROWS] for at in range(0, len(order), _ROWS)]
    return [(part, len(part) * len(rows[part[-1]].ids)) for part in parts]


def in_chunks(units: Sequence[Unit], wanted: int) -> list[Sequence[int]]:
    """Neighbouring units in at most so many chunks of about the same work; the places of each chunk."""
    goal = sum(cost for _, cost in units) / wanted
    found: dict[int, list[int]] = {}
    before = 0
    for places, cost in units:
        found.setdefault(int((before + cost / 2) / goal), []).extend(places)
        before += cost
    return list(found.values())
