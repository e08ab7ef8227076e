"""Scoring by torch: how likely given texts are under the base and its adapters. It generates nothing."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign.generation.scoring.base import Scored, ScoreRequest, Text, encode_all
from selfalign.model.dialogue import Encoded, Tokenizer
from selfalign.training import forward, lora


class TorchScorer:
    """The base model in memory once, with adapters that a call switches on.

    In float32: differences between models are smaller than the rounding of the shorter types.

    Args:
        folder: the base model's Hugging Face folder.
        adapters: name -> PEFT folder.
        tokenizer: needed for `loglikelihoods` only.

    Raises:
        UserError: torch cannot load the model.
    """

    name = "torch, float32"

    def __init__(self, folder: Path, adapters: Mapping[str, Path], tokenizer: Tokenizer | None = None) -> None:
        from selfalign.generation.scoring.tree_scoring import TreeScoring

        self._model: Any = lora.load_base(folder)
        for name, path in adapters.items():
            self._model = lora.add_adapter(self._model, path, name)
        self._tokenizer = tokenizer
        self._trees = TreeScoring(self._model)

    def score(self, rows: Sequence[Encoded], adapter: str | None) -> list[list[float]]:
        """The loss (nats) of each token that a row's mask marks, row by row.

        Args:
            adapter: the one to switch on; None is the base.

        Raises:
            Interrupted: a signal came between two batches.
        """
        with self._switched(adapter):
            losses: list[list[float]] = forward.token_losses(self._model, rows)
            return losses

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """See `Scorer`. What requests begin with alike is computed once.

        Raises:
            Interrupted: a signal came between two batches.
        """
        if self._tokenizer is None:
            raise ValueError("a scorer of texts needs a tokenizer")
        encoded = encode_all(self._tokenizer, requests)
        fits = [r for r in encoded if len(r.ids) <= self._trees.longest]
        found = iter(self.score_ids(fits, adapter))
        return [next(found) if len(r.ids) <= self._trees.longest else None for r in encoded]

    def score_ids(self, requests: Sequence[ScoreRequest], adapter: str | None, shared: bool = True) -> list[Scored]:
        """The same for token ids.

        Args:
            shared: False computes each request by itself, to compare with.
        """
        with self._switched(adapter):
            found: list[Scored] = self._trees.score(requests, adapter, shared)
            return found

    @property
    def tokens(self) -> tuple[int, int]:
        """(tokens asked for, tokens computed) by `loglikelihoods` so far."""
        return self._trees.asked, self._trees.computed

    @contextlib.contextmanager
    def _switched(self, adapter: str | None) -> Iterator[None]:
        if adapter is not None:
            self._model.set_adapter(adapter)
            yield
        elif hasattr(self._model, "disable_adapter"):
            with self._model.disable_adapter():
                yield
        else:
            yield

    def close(self) -> None:
        """Free the memory."""
        self._model = None
        self._trees.close()
        gc.collect()
