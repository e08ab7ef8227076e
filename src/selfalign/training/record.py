"""Record what a training run did: losses, learning rates, tokens, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Point = TypeVar("Point")


@dataclass(slots=True)
class TrainingRecord:
    """The progress of a training run. Checkpoints store it under these field names."""

    losses: list[float] = field(default_factory=list)
    """Mean loss (nats) per loss token, of each optimiser step."""
    rates: list[float] = field(default_factory=list)
    """Learning rate of each optimiser step."""
    margins: list[float | None] = field(default_factory=list)
    """With pairs: mean of `beta` times the difference in log-ratio, of each step; None for a step without pairs."""
    accuracies: list[float | None] = field(default_factory=list)
    """With pairs: fraction of pairs whose difference is above 0, of each step."""
    divergences: list[float] = field(default_factory=list)
    """With anchors: mean KL divergence (nats) from the base on their tokens, of each step."""
    tokens: int = 0
    """Tokens of the rows trained on, padding not counted."""
    loss_tokens: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean loss per loss token of the held-out rows)."""
    seconds: float = 0.0
    """Time spent in steps, over all sessions."""
    resumed_at: int = 0
    """The last step of the session before this one; 0 if there was none."""
    seconds_before: float = 0.0
    """Time spent in the steps up to `resumed_at`."""
    best_step: int = 0
    """With `patience`: the step with the lowest held-out loss, whose adapter is kept; else 0."""
    micro_batch_tokens: int = 0
    """Tokens per micro-batch; lower than the recipe's value if memory ran out."""


def thin_curve(points: Sequence[Point], limit: int = 1000) -> list[Point]:
    """Return at most about `limit` evenly spaced points of a curve, including its last."""
    stride = -(-len(points) // limit)
    return [point for n, point in enumerate(points) if n % stride == 0 or n + 1 == len(points)]
