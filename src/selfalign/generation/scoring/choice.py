"""What scores a run's own models, by its name: the same wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfalign.generation.scoring.base import Scorer

if TYPE_CHECKING:
    from selfalign.model.sources import Model

Kind = Literal["torch", "vllm"]


def start(
    kind: Kind,
    context: int,
    dtype: str,
    model: Model,
    adapters: Mapping[str, Path],
    say: Callable[[str], None] = lambda _: None,
    tensor_parallel_size: int = 1,
) -> Scorer:
    """Load the base model and adapters that a call may name.

    Args:
        kind: torch computes in float32 on the processor, and has losses, too (`LossScorer`).
        context: vllm: tokens of a text, at most.
        dtype: vllm: auto, float32, bfloat16 or float16.
        adapters: name -> PEFT folder.
        say: told of what takes long.
        tensor_parallel_size: vllm: accelerators that the model is tensor_parallel_size over.

    Raises:
        UserError: it cannot be loaded.
    """
    if kind == "vllm":
        from selfalign.generation.scoring.vllm_scorer import VllmScorer

        return VllmScorer(model.folder(say), model.tokenizer(), adapters, context, dtype, tensor_parallel_size)
    from selfalign.generation.scoring.torch_scorer import TorchScorer

    return TorchScorer(model.folder(say), adapters, model.tokenizer())
