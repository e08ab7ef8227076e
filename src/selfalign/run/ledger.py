"""Define the outcome of a row, and the totals of a stage's ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

NOT_JUDGED = "not judged"


def not_judged_note(counts: Mapping[str, int]) -> dict[str, object]:
    """Return the ledger's note about filters that kept rows because they cannot judge them; empty if there are none.

    Args:
        counts: filter -> number of kept rows.
    """
    judged = {name: number for name, number in counts.items() if number}
    return {NOT_JUDGED: judged} if judged else {}


class RowOutcome(NamedTuple):
    """A line of a stage's ledger: whether a row was kept, dropped or failed."""

    id: str
    position: int
    state: Literal["kept", "dropped", "failed"]
    reason: str
    """Why the row was not kept; empty if it was."""
    text: str
    """The row's text for the list of drops."""

    @classmethod
    def judged(cls, row_id: str, position: int, reason: str, text: str) -> RowOutcome:
        """Return the outcome of a row that is dropped if there is a reason, and otherwise kept."""
        return cls(row_id, position, "dropped" if reason else "kept", reason, text)


class CandidateOutcome(NamedTuple):
    """The outcome of one of several candidates for a row."""

    id: str
    """The row's id."""
    sample: int
    state: Literal["kept", "dropped", "failed"]
    reason: str
    """Why the candidate was not kept; empty if it was."""
    score: float | None = None
    """The score by which candidates were ranked; None if it was not computed."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Totals of a stage's requests, over all sessions."""

    requests: int
    prompt_tokens: int
    """Prompt tokens that were computed."""
    cached_tokens: int
    """Prompt tokens that came from the cache."""
    generated_tokens: int
    seconds: float
    """Wall time of the sessions."""
    busy: float
    """Fraction of that time, over all slots, in which the engine worked on a request."""
    escaped_rows: int = 0
    """Rows with a control token in their text, which was escaped because the engine accepts only text."""

    @property
    def hit_rate(self) -> float:
        """Fraction of the prompt tokens that came from the cache."""
        return self.cached_tokens / max(1, self.cached_tokens + self.prompt_tokens)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, all slots together."""
        return self.generated_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class StageCounts:
    """Totals of a stage's ledger."""

    stage: str
    finished: bool
    rows_in: int
    kept: int
    dropped: dict[str, int]
    failed: dict[str, int]
    generation: Generation
    seconds: float
    """Wall time over all sessions."""
    notes: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON. Those of `generation` and its rates are on the top level."""
        value = asdict(self)
        generation = value.pop("generation")
        generation["generation_seconds"] = generation.pop("seconds")
        generation["neutralised"] = generation.pop("escaped_rows")  # old name
        rates = {"hit_rate": self.generation.hit_rate, "tokens_per_second": self.generation.tokens_per_second}
        return {**value, **generation, **rates}


TITLES = {
    "self_instruct": "1a Self-Instruct",
    "topics": "1b topics",
    "red_team": "1b red-teaming",
    "align": "2 self-align",
    "pairs": "3 preference pairs",
    "on_policy": "3 own responses",
    "engrave": "3 engrave",
    "verbose_responses": "4 verbose responses",
    "verbose_cloning": "4 verbose cloning",
    "evaluate": "5 evaluate",
    "probes": "5 probes",
}
"""The ledgers in the order of the pipeline -> their titles in tables."""
