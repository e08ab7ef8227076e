"""Group training rows into batches of similar length, and batches into micro-batches that share a prefix.

A batch is the rows of one optimiser step; a micro-batch is the rows of one forward pass.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from selfalign.data.records import content_hash
from selfalign.model.dialogue import Encoded

_MIN_SAVED_TOKENS = 64
"""Minimum tokens that a shared prefix must save, because it needs a forward pass of its own."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that go through the model together."""

    rows: list[Encoded]
    prefix: int
    """Number of leading tokens that all rows share and that have no loss; their keys and values are computed once."""


def length_grouped_batches(rows: Sequence[Encoded], size: int, rng: random.Random) -> list[list[Encoded]]:
    """Return batches of rows of similar length, which need little padding, in random order."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), rng.random()))
    groups = [[rows[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
    rng.shuffle(groups)
    return groups


def training_batches(rows: Sequence[Encoded], size: int, epochs: int, seed: int) -> list[list[Encoded]]:
    """Return the batch of each optimiser step, epoch after epoch. The same rows and seed give the same batches."""
    rng = random.Random(seed)  # noqa: S311
    return [batch for _ in range(epochs) for batch in length_grouped_batches(rows, size, rng)]


def held_out_ids(ids: Sequence[str], fraction: float) -> set[str]:
    """Choose the examples that are held out from training.

    The choice depends on each id alone, so that adding or removing other examples rarely changes it.

    Args:
        fraction: fraction of all examples, 0 to 1. Above 0, at least one is held out, unless there is only one.
    """
    count = max(1, int(fraction * len(ids))) if fraction and len(ids) > 1 else 0
    return set(sorted(ids, key=lambda i: content_hash("validation", i))[:count])


def micro_batches(batch: Sequence[Encoded], max_tokens: int, share: bool = True) -> list[MicroBatch]:
    """Split a batch into micro-batches of at most `max_tokens` tokens, padding included; a longer row goes alone.

    Args:
        share: group rows that begin alike (with the same system prompt), so that their prefix is computed once.
    """
    result = []
    for group in _prefix_groups(sorted(batch, key=lambda r: r.ids)) if share else [list(batch)]:
        prefix = _shared_prefix(group) if share else 0
        if prefix * (len(group) - 1) < _MIN_SAVED_TOKENS:
            prefix = 0
        current: list[Encoded] = []
        for row in sorted(group, key=lambda r: len(r.ids)):
            if current and (len(row.ids) - prefix) * (len(current) + 1) + prefix > max_tokens:
                result.append(MicroBatch(current, prefix))
                current = []
            current.append(row)
        result.append(MicroBatch(current, prefix))
    return result


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


def _prefix_groups(rows: list[Encoded]) -> list[list[Encoded]]:
    """Split sorted rows into groups where computing each group's shared prefix once saves tokens."""
    if len(rows) < 2:
        return [rows]
    cut = min(range(1, len(rows)), key=lambda i: common_prefix_length(rows[i - 1].ids, rows[i].ids))
    halves = [rows[:cut], rows[cut:]]
    if sum(_saved_tokens(half) for half in halves) < _saved_tokens(rows) + _MIN_SAVED_TOKENS:
        return [rows]
    return [group for half in halves for group in _prefix_groups(half)]


def _saved_tokens(rows: list[Encoded]) -> int:
    return _shared_prefix(rows) * (len(rows) - 1)


def _shared_prefix(rows: Sequence[Encoded]) -> int:
    """Return how many leading tokens these sorted rows share before the first loss token of any of them."""
    # The token before the first loss token belongs to the row: its hidden state predicts that loss token.
    limit = min(r.mask.index(True) if True in r.mask else len(r.mask) for r in rows) - 1
    return max(0, min(limit, common_prefix_length(rows[0].ids, rows[-1].ids)))
