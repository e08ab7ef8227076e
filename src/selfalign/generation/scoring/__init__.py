"""Compute log-probabilities of given texts by torch, vLLM or a server. `base` defines the interface.

`start` chooses the scorer of a run's own models; `server_scorer` is for models behind a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfalign.generation.scoring.base import Scorer

if TYPE_CHECKING:
    from selfalign.model.base_model import Model

ScorerKind = Literal["torch", "vllm"]


def start(
    kind: ScorerKind,
    context: int,
    dtype: str,
    model: Model,
    adapters: Mapping[str, Path],
    say: Callable[[str], None] = lambda _: None,
    tensor_parallel_size: int = 1,
) -> Scorer:
    """Load the base model and the adapters that a call may select.

    Args:
        kind: torch computes in float32, and returns a `LossScorer`.
        context: maximum tokens of a text; vllm only.
        dtype: auto, float32, bfloat16 or float16; vllm only.
        tensor_parallel_size: number of accelerators that hold the model; vllm only.

    Raises:
        UserError: the model or an adapter cannot be loaded.
    """
    if kind == "vllm":
        from selfalign.generation.scoring.vllm_scorer import VllmScorer

        return VllmScorer(model.folder(say), model.tokenizer(), adapters, context, dtype, tensor_parallel_size)
    from selfalign.generation.scoring.torch_scorer import TorchScorer

    return TorchScorer(model.folder(say), adapters, model.tokenizer())
