"""What a stage's ledger adds up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

Point = TypeVar("Point")


@dataclass(frozen=True, slots=True)
class Generation:
    """How a stage's requests went, over all sittings."""

    requests: int
    prompt_tokens: int
    """Prompt tokens that were computed."""
    cached_tokens: int
    """Prompt tokens that came from the cache."""
    generated_tokens: int
    seconds: float
    """Wall time in which requests were made."""
    busy: float
    """Share of that time, over all slots, in which a request was with the engine: 0 to 1."""
    neutralised: int = 0
    """Rows in whose prompt content spelled a control token, for an engine that takes nothing but text."""

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that came from the cache."""
        return self.cached_tokens / max(1, self.cached_tokens + self.prompt_tokens)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second, all slots together."""
        return self.generated_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class StageCounts:
    """The ledger of one stage."""

    stage: str
    finished: bool
    rows_in: int
    kept: int
    dropped: dict[str, int]
    failed: dict[str, int]
    generation: Generation
    seconds: float
    """Over all sittings."""
    notes: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; the generation's stand beside the others, with its rates."""
        value = asdict(self)
        made = value.pop("generation")
        made["generation_seconds"] = made.pop("seconds")
        rates = {"hit_rate": self.generation.hit_rate, "tokens_per_second": self.generation.tokens_per_second}
        return {**value, **made, **rates}


def thinned(points: Sequence[Point], most: int = 1000) -> list[Point]:
    """Evenly spaced points of a curve, the last one among them: what the ledger keeps of a long one."""
    every = -(-len(points) // most)
    return [point for n, point in enumerate(points) if n % every == 0 or n + 1 == len(points)]
