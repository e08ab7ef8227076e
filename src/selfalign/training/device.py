"""Choose the device and dtype that training computes in."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from pathlib import Path

from selfalign.errors import UserError
from selfalign.system import environment
from selfalign.training.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and a dtype, as torch names them."""

    device: str
    dtype: str


CPU = Placement("cpu", "float32")
_SCORING_BYTES = 3e9
"""Memory for the activations and logits of a batch that is scored."""


def choose_float32(folder: Path) -> Placement:
    """Return the accelerator if a model fits in its free memory in float32, else the CPU."""
    import torch
    from safetensors import safe_open

    if not torch.cuda.is_available():
        return CPU
    needed = _SCORING_BYTES
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), "pt") as file:
            needed += sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return Placement("cuda", "float32") if needed <= torch.cuda.mem_get_info()[0] else CPU


def for_generation(dtype: str) -> Placement:
    """Return the accelerator or the CPU, with `auto` resolved to the fastest type there.

    Args:
        dtype: `engine.dtype`.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype != "auto":
        return Placement(device, dtype)
    if device == "cuda":
        return Placement(device, "bfloat16" if torch.cuda.is_bf16_supported() else "float16")
    return Placement(device, environment.processor_dtype())


def free_memory() -> None:
    """Return the memory of deleted models to the device, for vLLM to start in."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose(config: TrainingSettings, resumed_dtype: str | None = None) -> Placement:
    """Return the recipe's device and dtype, with `auto` resolved to the fastest on this machine.

    `auto` takes an accelerator if there is one, and bfloat16 if it is faster than float32: a CPU without bfloat16
    arithmetic emulates it hundreds of times slower (`environment.processor_dtype` measures it).

    Args:
        resumed_dtype: the dtype of the training to resume; `auto` keeps it.

    Raises:
        UserError: the recipe sets device to cuda, and torch finds no accelerator.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise UserError("engrave.device is cuda, but torch finds no such accelerator here: set it to auto or cpu")
    device = "cuda" if has_cuda and config.device != "cpu" else "cpu"
    if config.dtype != "auto":
        return Placement(device, config.dtype)
    if resumed_dtype:
        return Placement(device, resumed_dtype)
    if device == "cuda":
        return Placement(device, "bfloat16" if torch.cuda.is_bf16_supported() else "float32")
    return Placement(device, environment.processor_dtype())
