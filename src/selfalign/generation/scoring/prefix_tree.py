"""Lay out requests as prefix trees, so that tokens they share are computed once.

Requests share a common system prompt, a question with several candidate answers, or a context with several next
tokens. Each node is one token, and requests that begin alike share a path. The module handles token ids only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from selfalign.generation.scoring.base import ScoreRequest
from selfalign.training.batches import common_prefix_length

BUDGET = 512
"""Tokens of a tree. Larger trees are no more efficient, and each token attends to all others of its tree."""
_MIN_PREFIX = 24
"""Minimum tokens of a prefix shared by all requests whose keys and values are kept; a shorter one is computed with
each tree."""
_MIN_SHARED = 24
"""A tree may grow to twice its budget for a request that shares at least this many tokens with the one before it."""


@dataclass(slots=True)
class Tree:
    """Token ids, each with a parent. Parents come before their children."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """The parent of each node; -1 is the end of the shared prefix."""
    positions: list[int] = field(default_factory=list)
    """The position of each node in its text, counted from the text's first token."""
    targets: list[tuple[int, list[int]]] = field(default_factory=list)
    """(index of a request, the nodes that predict the tokens of its continuation)."""

    def rows(self) -> list[int]:
        """Return the nodes that predict a continuation token, each once, in order."""
        return sorted({node for _, nodes in self.targets for node in nodes})


@dataclass(frozen=True, slots=True)
class Layout:
    """The requests of a call: the prefix that all of them share, and trees of the rest."""

    prefix: tuple[int, ...]
    trees: list[Tree]

    @property
    def computed(self) -> int:
        """Number of tokens that go through the model."""
        return len(self.prefix) + sum(len(t.ids) for t in self.trees)


def lay_out(requests: Sequence[ScoreRequest], budget: int = BUDGET, cached: tuple[int, ...] = ()) -> Layout:
    """Lay out requests as trees of about `budget` tokens. The last token of a continuation is never an input.

    Args:
        cached: a prefix whose keys and values are already computed; it is used if all requests begin with it.
    """
    texts = [r.ids[:-1] for r in requests]
    order = sorted(range(len(requests)), key=lambda i: texts[i])
    prefix = _prefix(requests, [texts[i] for i in (order[0], order[-1])] if order else [], cached)
    return Layout(prefix, [_tree(group, requests, prefix) for group in _groups(texts, order, len(prefix), budget)])


def _prefix(requests: Sequence[ScoreRequest], ends: list[tuple[int, ...]], cached: tuple[int, ...]) -> tuple[int, ...]:
    """Return the prefix of all texts, given the first and last in sorted order.

    Each context keeps its last token for its tree, because the first continuation token follows it.
    """
    if len(requests) < 2:
        return ()
    length = min(common_prefix_length(*ends), min(len(r.context) for r in requests) - 1)
    common = ends[0][:length]
    if cached and common[: len(cached)] == cached and 2 * len(cached) >= length:
        return cached
    return common if length >= _MIN_PREFIX else ()


def _groups(
    texts: Sequence[tuple[int, ...]], order: Sequence[int], prefix: int, budget: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Yield consecutive texts, in sorted order, that become a tree each."""
    group: list[tuple[int, tuple[int, ...]]] = []
    size = 0
    for i in order:
        text = texts[i]
        shared = common_prefix_length(group[-1][1], text) - prefix if group else 0
        new_size = size + len(text) - prefix - shared
        if group and new_size > (2 * budget if shared >= _MIN_SHARED else budget):
            yield group
            group, new_size = [], len(text) - prefix
        group.append((i, text))
        size = new_size
    if group:
        yield group


def _tree(
    group: Sequence[tuple[int, tuple[int, ...]]], requests: Sequence[ScoreRequest], prefix: tuple[int, ...]
) -> Tree:
    tree, start = Tree(), len(prefix)
    path: list[int] = []
    before: tuple[int, ...] = prefix
    for i, text in group:
        path = path[: common_prefix_length(before, text) - start]
        for position in range(start + len(path), len(text)):
            tree.parents.append(path[-1] if path else -1)
            path.append(len(tree.ids))
            tree.ids.append(text[position])
            tree.positions.append(position)
        first = len(requests[i].context) - 1 - start
        tree.targets.append((i, path[first : first + len(requests[i].continuation)]))
        before = text
    return tree
