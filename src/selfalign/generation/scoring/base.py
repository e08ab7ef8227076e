"""What is asked of a scorer, and how requests that begin alike are laid out so that nothing is computed twice.

Pure: token ids in, trees out. Requests that share a beginning share its nodes: a common system prompt, a question with
several candidate answers, one context with several next tokens. A node is computed once, whatever hangs below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from selfalign.data.prompt_text import Control, Pieces
from selfalign.model.dialogue import Encoded, Tokenizer

BUDGET = 512
"""Tokens of a tree: larger ones make the matrices no faster, and each token is weighed against all others."""
_MIN_PREFIX = 24
"""A beginning that all requests share is kept as keys and values from this length on; a shorter one is computed with
each tree."""
_MIN_SHARED = 24
"""A tree grows past its budget (to twice of it) for a request that shares so many tokens with the one before."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely is `continuation` after `context`? Both are token ids, neither may be empty."""

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
    """Says how likely texts are. `adapter` None is the base."""

    name: str
    """What it is, for people: "torch, float32"."""

    @property
    def tokens(self) -> tuple[int, int]:
        """(tokens asked for, tokens computed) so far: the difference was shared."""
        ...

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        """One result a request, in their order; None where a request is longer than the model can take.

        Raises:
            SelfAlignError: this scorer cannot score.
        """
        ...

    def close(self) -> None: ...


class LossScorer(Scorer, Protocol):
    """A scorer that has the losses of encoded rows, too."""

    def score(self, rows: Sequence[Encoded], adapter: str | None) -> list[list[float]]:
        """The loss (nats) of each token that a row's mask marks, row by row."""
        ...


Text = tuple[Pieces, str]
"""(context, continuation) as text; the continuation begins with its own space where the turns' form has one."""


def encode_all(tokenizer: Tokenizer, texts: Sequence[Text]) -> list[ScoreRequest]:
    """The token ids of texts and of what follows them, encoded as one: a word is cut as it would be in a whole text.

    Where a token spans the border, the context keeps its own number of tokens (as lm-evaluation-harness does it); where
    nothing would be left to score, the two are encoded apart.

    Raises:
        ValueError: one of a pair is empty.
    """
    contexts: dict[tuple[Pieces, tuple[bool, ...]], list[int]] = {}
    found = []
    for context, continuation in texts:
        # A control token and text that spells it are equal strings: which of them is meant belongs to the key.
        key = context, tuple(isinstance(piece, Control) for piece in context)
        if key not in contexts:
            contexts[key] = tokenizer.encode(context)
        before, whole = contexts[key], tokenizer.encode((*context, continuation))
        if len(whole) <= len(before):
            whole = [*before, *tokenizer.ids(continuation)]
        found.append(ScoreRequest(tuple(whole[: len(before)]), tuple(whole[len(before) :])))
    return found


@dataclass(slots=True)
class Tree:
    """Token ids with a parent each: what requests share stands there once. Parents come before their children."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """The node before each node; -1: the end of the common prefix."""
    positions: list[int] = field(default_factory=list)
    """The place of each node in its own text, counted from the text's first token."""
    wanted: list[tuple[int, list[int]]] = field(default_factory=list)
    """(request, the node before each token of its continuation)."""

    def rows(self) -> list[int]:
        """The nodes after which some token is wanted, each once, in order."""
        return sorted({node for _, nodes in self.wanted for node in nodes})


@dataclass(frozen=True, slots=True)
class Layout:
    """All requests of a call: what they all begin with, and the trees of the rest."""

    prefix: tuple[int, ...]
    trees: list[Tree]

    @property
    def computed(self) -> int:
        """Tokens that go through the model."""
        return len(self.prefix) + sum(len(t.ids) for t in self.trees)


def lay_out(
    requests: Sequence[ScoreRequest], budget: int = BUDGET, kept: tuple[int, ...] = (), shared: bool = True
) -> Layout:
    """Lay requests out as trees of about `budget` tokens; the last token of a continuation is never an input.

    Args:
        kept: a prefix whose keys and values are there already; it is taken if all requests begin with it.
        shared: False gives each request a tree of its own and no prefix: the plain way, to compare with.
    """
    texts = [r.ids[:-1] for r in requests]
    if not shared:
        return Layout((), [_grow([(i, texts[i])], requests, ()) for i in range(len(requests))])
    order = sorted(range(len(requests)), key=lambda i: texts[i])
    prefix = _prefix(requests, [texts[i] for i in (order[0], order[-1])] if order else [], kept)
    return Layout(prefix, [_grow(part, requests, prefix) for part in _parts(texts, order, len(prefix), budget)])


def _prefix(requests: Sequence[ScoreRequest], ends: list[tuple[int, ...]], kept: tuple[int, ...]) -> tuple[int, ...]:
    """What all texts begin with: sorted, the first and the last differ the soonest. Each context keeps its last token
    for its tree, since the first wanted token follows it."""
    if len(requests) < 2:
        return ()
    length = min(_common(*ends), min(len(r.context) for r in requests) - 1)
    common = ends[0][:length]
    if kept and common[: len(kept)] == kept and 2 * len(kept) >= length:
        return kept
    return common if length >= _MIN_PREFIX else ()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    number = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        number += 1
    return number


def _parts(
    texts: Sequence[tuple[int, ...]], order: Sequence[int], prefix: int, budget: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """The sorted texts in stretches that become trees."""
    part: list[tuple[int, tuple[int, ...]]] = []
    size = 0
    for i in order:
        text = texts[i]
        shared = _common(part[-1][1], text) - prefix if part else 0
        grown = size + len(text) - prefix - shared
        if part and grown > (2 * budget if shared >= _MIN_SHARED else budget):
            yield part
            part, grown = [], len(text) - prefix
        part.append((i, text))
        size = grown
    if part:
        yield part


def _grow(
    part: Sequence[tuple[int, tuple[int, ...]]], requests: Sequence[ScoreRequest], prefix: tuple[int, ...]
) -> Tree:
    tree, start = Tree(), len(prefix)
    path: list[int] = []
    before: tuple[int, ...] = prefix
    for i, text in part:
        path = path[: _common(before, text) - start]
        for position in range(start + len(path), len(text)):
            tree.parents.append(path[-1] if path else -1)
            path.append(len(tree.ids))
            tree.ids.append(text[position])
            tree.positions.append(position)
        first = len(requests[i].context) - 1 - start
        tree.wanted.append((i, path[first : first + len(requests[i].continuation)]))
        before = text
    return tree
