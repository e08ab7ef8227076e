"""Define the scorer interface: log-probabilities of continuations, each given its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from selfalign.data.prompt_text import Control, Pieces
from selfalign.model.dialogue import Encoded, Tokenizer

Text = tuple[Pieces, str]
"""(context, continuation). The continuation includes the space that separates it from the context, if there is one."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A `Text` as token ids. Neither part may be empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.context or not self.continuation:
            raise ValueError("a score needs a context and a continuation of at least one token")

    @property
    def ids(self) -> tuple[int, ...]:
        return self.context + self.continuation


@dataclass(frozen=True, slots=True)
class Scored:
    """The log-probability (nats) of each token of a continuation."""

    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.logprobs)

    @property
    def per_token(self) -> float:
        return self.total / len(self.logprobs)


class Scorer(Protocol):
    """A model that scores texts, with adapters that each call may select; adapter None is the base model."""

    name: str
    """The scorer in messages, such as "torch, float32"."""

    @property
    def tokens(self) -> tuple[int, int]:
        """(tokens requested, tokens computed) so far; the others were shared between requests."""
        ...

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """Return the score of each request in order; None for a request that exceeds the model's context.

        Raises:
            SelfAlignError: the scorer failed.
        """
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class LossScorer(Scorer, Protocol):
    """A scorer that also computes the losses of encoded rows."""

    def score(self, rows: Sequence[Encoded], adapter: str | None) -> list[list[float]]:
        """Return the loss (nats) of each token that a row's mask marks, row by row."""
        ...


def encode_all(tokenizer: Tokenizer, texts: Sequence[Text]) -> list[ScoreRequest]:
    """Encode each context together with its continuation, so that words are split as in running text.

    If a token spans the boundary, the context keeps as many tokens as it has when encoded alone, as in
    lm-evaluation-harness. If that leaves no token to score, the two parts are encoded separately.

    Raises:
        ValueError: a context or continuation is empty.
    """
    contexts: dict[tuple[Pieces, tuple[bool, ...]], list[int]] = {}
    requests = []
    for context, continuation in texts:
        # A control token equals the text that spells it, so the key records which pieces are control tokens.
        key = context, tuple(isinstance(piece, Control) for piece in context)
        if key not in contexts:
            contexts[key] = tokenizer.encode(context)
        before, ids = contexts[key], tokenizer.encode((*context, continuation))
        if len(ids) <= len(before):
            ids = [*before, *tokenizer.ids(continuation)]
        requests.append(ScoreRequest(tuple(ids[: len(before)]), tuple(ids[len(before) :])))
    return requests
