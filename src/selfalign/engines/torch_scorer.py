"""Scoring by torch: how likely given texts are under the base and its adapters. It generates nothing."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign.dialogue import Encoded
from selfalign.training import forward, lora


class TorchScorer:
    """The base model in memory once, with adapters that a call switches on.

    In float32: differences between models are smaller than the rounding of the shorter types.

    Args:
        folder: the base model's Hugging Face folder.
        adapters: name -> PEFT folder.

    Raises:
        UserError: torch cannot load the model.
    """

    def __init__(self, folder: Path, adapters: Mapping[str, Path]) -> None:
        self._model: Any = lora.load_base(folder)
        for name, path in adapters.items():
            self._model = lora.add_adapter(self._model, path, name)

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
        gc.collect()
