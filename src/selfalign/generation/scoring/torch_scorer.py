"""Score with torch: log-probabilities and losses under the base model and its adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign.generation.scoring.base import Scored, ScoreRequest, Text, encode_all
from selfalign.model.dialogue import Encoded, Tokenizer
from selfalign.training import device, forward, lora


class TorchScorer:
    """The base model in memory once, with adapters that each call may select.

    Computes in float32, because models differ by less than the rounding of shorter types; on the accelerator if the
    weights fit there, else on the CPU.

    Args:
        folder: the base model's Hugging Face folder.
        adapters: name -> PEFT folder.
        tokenizer: required for `loglikelihoods`.

    Raises:
        UserError: torch cannot load the model.
    """

    name = "torch, float32"

    def __init__(self, folder: Path, adapters: Mapping[str, Path], tokenizer: Tokenizer | None = None) -> None:
        from selfalign.generation.scoring.tree_scoring import TreeScoring

        self._model: Any = lora.load_base(folder, device.choose_float32(folder))
        for name, path in adapters.items():
            self._model = lora.add_adapter(self._model, path, name)
        self._tokenizer = tokenizer
        self._trees = TreeScoring(self._model)

    def score(self, rows: Sequence[Encoded], adapter: str | None) -> list[list[float]]:
        """See `LossScorer`.

        Raises:
            Interrupted: a signal arrived between two batches.
        """
        with self._selected(adapter):
            losses: list[list[float]] = forward.token_losses(self._model, rows)
            return losses

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """See `Scorer`. Prefixes that requests share are computed once.

        Raises:
            Interrupted: a signal arrived between two batches.
        """
        if self._tokenizer is None:
            raise ValueError("a scorer of texts needs a tokenizer")
        encoded = encode_all(self._tokenizer, requests)
        limit = self._trees.max_tokens
        scores = iter(self.score_ids([r for r in encoded if len(r.ids) <= limit], adapter))
        return [next(scores) if len(r.ids) <= limit else None for r in encoded]

    def score_ids(self, requests: Sequence[ScoreRequest], adapter: str | None) -> list[Scored]:
        """Score token ids."""
        with self._selected(adapter):
            scores: list[Scored] = self._trees.score(requests, adapter)
            return scores

    @property
    def tokens(self) -> tuple[int, int]:
        """(tokens requested, tokens computed) by `loglikelihoods` so far."""
        return self._trees.requested, self._trees.computed

    @contextlib.contextmanager
    def _selected(self, adapter: str | None) -> Iterator[None]:
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
        device.free_memory()
