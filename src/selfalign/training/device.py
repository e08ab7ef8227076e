"""Where training computes, and in which floating-point type."""

from __future__ import annotations

from dataclasses import dataclass

from selfalign.errors import UserError
from selfalign.system import environment
from selfalign.training.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class Placement:
    """A device and a type, as torch names them."""

    device: str
    dtype: str


CPU = Placement("cpu", "float32")


def choose(config: TrainingSettings, begun: str | None = None) -> Placement:
    """What the recipe says, or what this machine does best.

    An accelerator if there is one. In bfloat16 where it is really faster: a processor without such arithmetic emulates
    it, hundreds of times slower than float32 (`environment.processor_dtype` measures it).

    Args:
        begun: the type of a training that goes on: it stays, unless the recipe names one.

    Raises:
        UserError: the recipe asks for an accelerator and there is none.
    """
    import torch

    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise UserError("engrave.device is cuda, and torch sees no such accelerator here: set it to auto or cpu")
    device = "cuda" if there and config.device != "cpu" else "cpu"
    if config.dtype != "auto" or begun:
        return Placement(device, config.dtype if config.dtype != "auto" else str(begun))
    if device == "cuda":
        return Placement(device, "bfloat16" if torch.cuda.is_bf16_supported() else "float32")
    return Placement(device, environment.processor_dtype())
