"""Intervals: what may be called a difference and what may not. Pure; the random draws are seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

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


def bootstrap_mean(values: Sequence[float], seed: int = 0, draws: int = 10_000) -> Interval:
    """The mean with its percentile bootstrap interval; give paired differences to compare two models.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to average")
    n = len(values)
    rng = random.Random(seed)  # noqa: S311
    means = sorted(math.fsum(rng.choices(values, k=n)) / n for _ in range(draws))
    return Interval(math.fsum(values) / n, means[int(draws * 0.025)], means[min(draws - 1, int(draws * 0.975))])


def median(values: Sequence[float]) -> float:
    """The median; nan of nothing."""
    if not values:
        return math.nan
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
