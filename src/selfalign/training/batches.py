"""Rows -> batches of similar length -> parts that fit the memory and begin alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from selfalign.data.records import content_hash
from selfalign.model.dialogue import Encoded

_WORTH = 64
"""Tokens that sharing a prefix must save: it is a pass of its own through the layers."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that are computed at once."""

    rows: list[Encoded]
    prefix: int
    """So many first tokens are the same in all of them and have no loss."""


def batches(rows: Sequence[Encoded], size: int, rng: random.Random) -> list[list[Encoded]]:
    """Batches of rows of similar length, in random order: little padding, no order by length."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), rng.random()))
    groups = [[rows[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    rng.shuffle(groups)
    return groups


def held_out(ids: Sequence[str], share: float) -> set[str]:
    """Ids of the examples that are not trained on: by their content, so that an edit elsewhere moves none.

    Args:
        share: of all, one at least; none where it is 0 or there is one example only.
    """
    wanted = max(1, int(share * len(ids))) if share and len(ids) > 1 else 0
    return set(sorted(ids, key=lambda i: content_hash("validation", i))[:wanted])


def all_steps(rows: Sequence[Encoded], size: int, epochs: int, seed: int) -> list[list[Encoded]]:
    """The batch of every optimiser step, epoch after epoch; the same for the same rows and seed."""
    rng = random.Random(seed)  # noqa: S311
    return [batch for _ in range(epochs) for batch in batches(rows, size, rng)]


def parts(batch: Sequence[Encoded], tokens: int, share: bool = True) -> list[Part]:
    """Split a batch into parts of at most `tokens` tokens, padding counted; a longer row stands alone.

    Args:
        share: rows that begin alike (the same system prompt) share the computation of their beginning.
    """
    found = []
    for alike in _alike(sorted(batch, key=lambda r: r.ids)) if share else [list(batch)]:
        prefix = _prefix(alike) if share else 0
        if prefix * (len(alike) - 1) < _WORTH:
            prefix = 0
        waiting: list[Encoded] = []
        for row in sorted(alike, key=lambda r: len(r.ids)):
            if waiting and (len(row.ids) - prefix) * (len(waiting) + 1) + prefix > tokens:
                found.append(Part(waiting, prefix))
                waiting = []
            waiting.append(row)
        found.append(Part(waiting, prefix))
    return found


def _alike(rows: list[Encoded]) -> list[list[Encoded]]:
    """Sorted rows in groups, so that few tokens are computed if each group's common beginning is computed once."""
    if len(rows) < 2:
        return [rows]
    cut = min(range(1, len(rows)), key=lambda i: _common(rows[i - 1].ids, rows[i].ids))
    halves = [rows[:cut], rows[cut:]]
    if sum(_saved(half) for half in halves) < _saved(rows) + _WORTH:
        return [rows]
    return [group for half in halves for group in _alike(half)]


def _saved(rows: list[Encoded]) -> int:
    return _prefix(rows) * (len(rows) - 1)


def _prefix(rows: Sequence[Encoded]) -> int:
    """Tokens that all of these sorted rows begin with, up to where one's loss begins."""
    # The token before the first one with loss is the row's own: its hidden state predicts that one.
    own = min(r.mask.index(True) if True in r.mask else len(r.mask) for r in rows) - 1
    return max(0, min(own, _common(rows[0].ids, rows[-1].ids)))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
