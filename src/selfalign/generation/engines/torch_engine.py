"""Generate with torch: many requests in one batch, a shared prefix computed once, adapters in PEFT's format.

It needs no GGUF and no server, so it generates for every architecture of transformers with plain attention, on an
accelerator or a CPU. One thread owns the model; requests of other threads join the batch as places become free.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from selfalign.data.prompt_text import Control, Pieces
from selfalign.errors import Resumable
from selfalign.generation.engines import grammars, repetition
from selfalign.generation.engines.base import Finish, OnText, Part, RowError, Step, TooLong
from selfalign.generation.engines.batch_attention import Prefix
from selfalign.generation.engines.torch_batch import Batch, Text
from selfalign.generation.engines.torch_sampling import Draw, draw
from selfalign.model.dialogue import Tokenizer
from selfalign.training.device import Placement

_NEW_TEXTS = 8
"""Prompts that are computed at once."""
_MAX_PROMPT = 1024
"""Tokens, with padding, of the prompts that are computed at once, unless one alone is longer."""


@dataclass(eq=False)
class _Row:
    """A request in progress."""

    prompt: list[int]
    step: Step
    adapter: str | None
    generator: np.random.Generator
    bias: Mapping[int, float]
    limit: int
    streams: bool
    result: Future[Part] = field(default_factory=Future)
    pieces: SimpleQueue[str | None] = field(default_factory=SimpleQueue)
    """New text for a caller that streams; None at the end."""
    cancelled: bool = False
    text: str = ""
    sent: int = 0
    """Characters of the text that the caller has received."""
    out: list[int] = field(default_factory=list)
    """Generated tokens, without the end token."""
    place: Text = field(default_factory=lambda: Text(-1, Prefix()))
    """Its place in the batch."""
    matcher: grammars.Matcher | None = None
    cached: int = 0


class TorchEngine:
    """One base model and its adapters.

    Args:
        folder: the base model's Hugging Face folder.
        adapters: name -> PEFT folder; a request applies at most one.
        where: the device and the type to compute in.
        slots: number of texts in the batch.
        context: maximum number of tokens of a text.
        tokenizer: the tokenizer used in training.
        ends: control tokens that end a response.

    Raises:
        UserError: torch cannot load the model, or its attention is not one that batches here.
    """

    def __init__(
        self,
        folder: Path,
        adapters: Mapping[str, Path],
        where: Placement,
        slots: int,
        context: int,
        tokenizer: Tokenizer,
        ends: Sequence[str],
    ) -> None:
        self.parallel = slots
        self.note = ""
        self._tokenizer, self._context = tokenizer, context
        self._ends = frozenset(tokenizer.first(Control(end)) for end in ends)
        self._batch = Batch(folder, adapters, where, tokenizer)
        self._grammars = grammars.Grammars(folder / "tokenizer.json", self._batch.vocabulary, sorted(self._ends))
        self._breaks: dict[tuple[str, ...], dict[int, bool]] = {}
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="torch-engine", daemon=True)
        self._thread.start()

    # -- called by the threads of the requests -------------------------------------------------------------------

    def generate(self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: OnText = None) -> Part:
        """See `Engine.generate`."""
        ids = self._tokenizer.encode(prompt)
        room = min(self._context, self._batch.max_tokens) - len(ids)
        if room < 1:
            raise TooLong
        sampling = step.sampling
        bias = {self._tokenizer.first(text): value for text, value in sampling.bias}
        if sampling.ban_eos:
            bias |= dict.fromkeys(self._ends, float("-inf"))
        limit = min(sampling.max_new_tokens, room)
        row = _Row(ids, step, adapter, np.random.default_rng(seed % 2**64), bias, limit, on_text is not None)
        if step.grammar:
            if not self._grammars.available:
                self.note = grammars.MISSING
            try:
                row.matcher = self._grammars.start(step.grammar)
            except ValueError as error:
                raise RowError(str(error)) from None
        with self._changed:
            self._check_open()
            self._waiting.append(row)
            self._changed.notify()
        while on_text is not None and (piece := row.pieces.get()) is not None:
            if not on_text(piece):
                row.cancelled = True
        return row.result.result()

    def _check_open(self) -> None:
        if self._closed:
            raise Resumable(self._stopped())

    def _stopped(self) -> str:
        return f"engine torch stopped ({self._failure or 'it was closed'}): run the same command again"

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """Keep the prefix for the next requests; the first of them computes it."""
        self._batch.expect(self._tokenizer.encode(prefix), adapter)
        return "computed once, shared by all requests"

    def close(self) -> None:
        """End the thread and free the model."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._batch.close()

    # -- the thread that owns the model --------------------------------------------------------------------------

    def _work(self) -> None:
        """Run the batch until the engine is closed. An error of the model ends every request."""
        try:
            while self._wait():
                self._admit()
                self._advance(self._rows)
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._closed = True
                for row in (*self._rows, *self._waiting):
                    self._fail(row, Resumable(self._stopped()))
                self._rows, self._waiting = [], deque()

    def _wait(self) -> bool:
        """Wait for work; return False once the engine is closed."""
        with self._changed:
            while not (self._rows or self._waiting or self._closed):
                self._changed.wait()
            return not self._closed

    def _admit(self) -> None:
        """Move waiting requests into the batch, as many as it takes; the oldest first, and of one adapter."""
        while len(self._rows) < self.parallel and (new := self._next()):
            self._rows += new
            texts, logits = self._batch.begin([row.prompt for row in new], new[0].adapter)
            for row, text in zip(new, texts, strict=True):
                row.place, row.cached = text, len(text.prefix.tokens)
            self._receive(new, logits)

    def _next(self) -> list[_Row]:
        """Take the next requests whose prompts are computed together."""
        new: list[_Row] = []
        with self._changed:
            while self._waiting and len(new) < min(_NEW_TEXTS, self.parallel - len(self._rows)):
                row = self._waiting[0]
                beside = (new or self._rows)[:1]
                if beside and row.adapter != beside[0].adapter:
                    break
                lengths = [self._batch.rest(r.prompt, r.adapter) for r in (*new, row)]
                if new and max(lengths) * len(lengths) > _MAX_PROMPT:
                    break
                longest = max(self._batch.rest(r.prompt, r.adapter) + r.limit for r in (*self._rows, *new, row))
                if (self._rows or new) and not self._batch.fits(len(self._rows) + len(new) + 1, longest):
                    break
                new.append(self._waiting.popleft())
        return new

    def _advance(self, rows: list[_Row]) -> None:
        """Generate one token of every text in the batch."""
        if rows:
            self._receive(list(rows), self._batch.step([(row.place, row.out[-1]) for row in rows]))

    def _receive(self, rows: Sequence[_Row], logits: Any) -> None:
        """Draw the next token of each row, and take the finished rows out of the batch."""
        tokens = draw(logits, [self._spec(row) for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            if finish := self._append(row, token):
                self._batch.end(row.place)
                self._rows.remove(row)
                self._finish(row, finish)

    def _spec(self, row: _Row) -> Draw:
        sampling = row.step.sampling
        changes = row.bias
        if sampling.repetition:
            recent = (row.prompt + row.out)[-sampling.max_new_tokens :]
            found = repetition.penalties(
                recent, sampling.repetition, sampling.repetition_length, self._is_break(sampling.breaks)
            )
            changes = {**changes, **{token: changes.get(token, 0.0) - value for token, value in found.items()}}
        return Draw(sampling, row.generator, changes, row.matcher.allowed() if row.matcher else None)

    def _is_break(self, breaks: tuple[str, ...]) -> Any:
        """Return the function that says whether a token contains one of the texts."""
        known = self._breaks.setdefault(breaks, {})

        def is_break(token: int) -> bool:
            if token not in known:
                text = self._tokenizer.text([token])
                known[token] = any(mark in text for mark in breaks)
            return known[token]

        return is_break

    def _append(self, row: _Row, token: int) -> Finish | None:
        """Append a token; return how the text ended, or None."""
        if token in self._ends and not row.step.sampling.ban_eos:
            return "end"
        row.out.append(token)
        anchor = row.prompt[-1:]
        row.text = self._tokenizer.text([*anchor, *row.out]).removeprefix(self._tokenizer.text(anchor))
        found = [place for stop in row.step.stop if (place := row.text.find(stop)) >= 0]
        if found:
            row.text = row.text[: min(found)]
            return "stop"
        if row.matcher:
            row.matcher.add(token)
            if row.matcher.is_complete:
                return "end"
        if row.streams:
            self._send(row, _certain(row.text, row.step.stop))
        if row.cancelled:
            return "cancelled"
        return "length" if len(row.out) >= row.limit else None

    @staticmethod
    def _send(row: _Row, until: int) -> None:
        if until > row.sent:
            row.pieces.put(row.text[row.sent : until])
            row.sent = until

    def _finish(self, row: _Row, finish: Finish) -> None:
        if row.streams:
            if finish != "cancelled":
                self._send(row, len(row.text))
            row.pieces.put(None)
        row.result.set_result(Part(row.text, finish, len(row.prompt) - row.cached, row.cached, len(row.out)))

    @staticmethod
    def _fail(row: _Row, error: Exception) -> None:
        row.result.set_exception(error)
        row.pieces.put(None)


def _certain(text: str, stops: Sequence[str]) -> int:
    """Return how much of the text is certain: no stop string begins at its end, and no character is incomplete."""
    end = len(text.rstrip("\ufffd"))
    for stop in stops:
        for size in range(min(len(stop), end), 0, -1):
            if text.startswith(stop[:size], end - size):
                end -= size
                break
    return end
