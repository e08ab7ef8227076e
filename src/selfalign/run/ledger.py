"""What a stage's ledger adds up to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple


class RowOutcome(NamedTuple):
    """What became of one row of a stage: a line of its ledger."""

    id: str
    position: int
    state: Literal["kept", "dropped", "failed"]
    reason: str
    """Why the row was not kept; empty if it was."""
    text: str
    """What a person sees of the row in the list of drops."""


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


TITLES = {
    "self_instruct": "1a Self-Instruct",
    "topics": "1b topics",
    "red_team": "1b red-teaming",
    "align": "2 self-align",
    "engrave": "3 engrave",
    "verbose_responses": "4 verbose responses",
    "verbose_cloning": "4 verbose cloning",
    "evaluate": "5 evaluate",
    "probes": "5 probes",
}
"""What the ledgers are called in tables."""
