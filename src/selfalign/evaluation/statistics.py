"""Intervals: what may be called a difference and what may not. Pure; the random draws are seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson(hits: int, n: int) -> Interval:
    """A rate with Wilson's score interval. n = 0 gives the whole range."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    p, z2 = hits / n, _Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap_mean(
    values: Sequence[float], seed: int = 0, draws: int = 10_000, clusters: Sequence[str] | None = None
) -> Interval:
    """The mean with its percentile bootstrap interval; give paired differences to compare two models.

    Args:
        clusters: values of the same cluster are drawn together: comparisons about the same text are no independent
            evidence, and an interval that takes them for it is too narrow. Unless given, each value is drawn alone.

    Raises:
        ValueError: there are no values.
    """
    import numpy as np

    if not values:
        raise ValueError("no values to average")
    n = len(values)
    names = clusters if clusters is not None else [str(i) for i in range(n)]
    of = {name: i for i, name in enumerate(dict.fromkeys(names))}
    sums, sizes = np.zeros(len(of)), np.zeros(len(of))
    for name, value in zip(names, values, strict=True):
        sums[of[name]] += value
        sizes[of[name]] += 1
    rng, means = np.random.default_rng(seed), []
    at_once = max(1, 2_000_000 // len(of))  # draws in one matrix of at most 16 MB
    for start in range(0, draws, at_once):
        drawn = rng.integers(0, len(of), (min(at_once, draws - start), len(of)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    ordered = np.sort(np.concatenate(means))
    low, high = ordered[int(draws * 0.025)], ordered[min(draws - 1, int(draws * 0.975))]
    return Interval(math.fsum(values) / n, float(low), float(high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p of McNemar's test: were it a coin's toss which of two models wins where they differ?

    (McNemar 1947; the exact form is the binomial test on the pairs that differ.)
    """
    wins = sum(b and not a for a, b in zip(first, second, strict=True))
    losses = sum(a and not b for a, b in zip(first, second, strict=True))
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << n) * 2)


def verdict(difference: Interval, more_is_better: bool = True) -> Literal["better", "worse", "no difference"]:
    """What a difference may be called: nothing is better or worse unless its interval excludes zero."""
    if not difference.excludes_zero:
        return "no difference"
    return "better" if (difference.value > 0) == more_is_better else "worse"


def median(values: Sequence[float]) -> float:
    """The median; nan of nothing."""
    if not values:
        return math.nan
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
