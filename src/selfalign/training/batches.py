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
    together: int = 1
    """Number of neighbouring rows that cannot be in different micro-batches: 2 for pairs, in the order chosen,
    rejected."""


@dataclass(frozen=True, slots=True)
class PairRow(Encoded):
    """A training row, the chosen response, with the rejected response to the same prompt."""

    rejected: Encoded
    number: int = 0
    """The row's index among all rows."""

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two."""
        return max(len(self.ids), len(self.rejected.ids))


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
        prefix = _worthwhile_prefix(group) if share else 0
        current: list[Encoded] = []
        for row in sorted(group, key=lambda r: len(r.ids)):
            if current and (len(row.ids) - prefix) * (len(current) + 1) + prefix > max_tokens:
                result.append(MicroBatch(current, prefix))
                current = []
            current.append(row)
        result.append(MicroBatch(current, prefix))
    return result


def pair_micro_batches(batch: Sequence[Encoded], max_tokens: int, share: bool = True) -> list[MicroBatch]:
    """Split a batch into micro-batches of whole pairs and, after them, of rows without a rejected response.

    Arguments: see `micro_batches`. A pair counts as two rows; a longer pair goes alone.
    """
    pairs = sorted((row for row in batch if isinstance(row, PairRow)), key=lambda p: p.longest)
    others = [row for row in batch if not isinstance(row, PairRow)]
    common = _worthwhile_prefix(_both(pairs)) if share and pairs else 0
    parts: list[list[PairRow]] = []
    for pair in pairs:
        if not parts or (pair.longest - common) * 2 * (len(parts[-1]) + 1) + common > max_tokens:
            parts.append([])
        parts[-1].append(pair)
    # The pairs of one micro-batch may share more than all of them do; a pair alone shares its whole prompt.
    result = [MicroBatch(rows, max(common, _worthwhile_prefix(rows)) if share else 0, 2) for rows in map(_both, parts)]
    return result + (micro_batches(others, max_tokens, share) if others else [])


def _both(pairs: Sequence[PairRow]) -> list[Encoded]:
    """Return the rows of pairs in the order chosen, rejected, chosen, rejected..."""
    return [row for pair in pairs for row in (pair, pair.rejected)]


def _worthwhile_prefix(rows: Sequence[Encoded]) -> int:
    """Return the length of the rows' shared prefix; 0 if computing it once saves too little."""
    prefix = _shared_prefix(sorted(rows, key=lambda r: r.ids))
    return prefix if prefix * (len(rows) - 1) >= _MIN_SAVED_TOKENS else 0


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
