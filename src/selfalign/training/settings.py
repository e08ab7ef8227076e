"""Settings of training in the recipe: LoRA, optimiser, memory, device."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from selfalign.system.strict_yaml import Strict


class TrainingSettings(Strict):
    rank: int = Field(16, ge=1, le=256)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj"], min_length=1
    )
    learning_rate: float = Field(4.0e-4, gt=0)
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(8, ge=1)
    """Examples per optimiser step."""
    warmup_steps: int = Field(5, ge=0)
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    validation: float = Field(0.0, ge=0, le=0.5)
    """The share of the examples that is not trained on: the loss on them is measured while training."""
    validate_every: int | None = Field(None, ge=1)
    """Steps between two measurements; null: once an epoch."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many measurements without a better one, and keep the best adapter; null: never."""
    micro_batch_tokens: int = Field(1024, ge=1)
    """Tokens computed at once, padding counted: it decides the memory. Halved where memory runs out."""
    gradient_checkpointing: bool = False
    """Compute each layer again on the way back instead of keeping it: less memory, a third slower."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """Seconds between two checkpoints, at most; a stop by a signal writes one too. 0: after each step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type of the frozen weights. auto: bfloat16 where this machine is really faster in it."""
    max_length: int = Field(512, ge=16)
    """Tokens of one example; a longer one is a drop, never cut."""
    preflight: Literal["refuse", "warn"] = "refuse"
    """What is done about rows that cannot be learnt as they should: training is refused, or they are named only."""
    elsewhere: bool = False
    """Stages 3 and 4 stop once their examples are written: `selfalign export RUN launch` makes a folder to train in,
    and `selfalign engrave|clone RUN --adapter DIR` takes what it made."""

    @model_validator(mode="after")
    def _measured(self) -> TrainingSettings:
        if self.patience is not None and not self.validation:
            raise ValueError("patience needs rows to measure the loss on: set validation, as 0.05")
        return self

    def deciding(self) -> dict[str, Any]:
        """The settings that the trained adapter follows from."""
        return self.model_dump(
            mode="json", exclude={"preflight", "checkpoint_seconds", "micro_batch_tokens", "elsewhere"}
        )
