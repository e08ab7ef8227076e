"""Compute confidence intervals and tests. Pure; the random draws are seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy

    Vector: TypeAlias = numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson(hits: int, n: int) -> Interval:
    """Return a rate with Wilson's score interval; from 0 to 1 for n = 0."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    p, z2 = hits / n, _Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap_mean(
    values: Sequence[float], seed: int = 0, draws: int = 10_000, clusters: Sequence[str] | None = None
) -> Interval:
    """Return the mean with its percentile bootstrap interval. Pass paired differences to compare two models.

    Args:
        clusters: the cluster of each value; by default, each value is its own. Values of one cluster are resampled
            together: items about the same text are not independent and would make the interval too narrow.

    Raises:
        ValueError: there are no values.
    """
    import numpy as np

    if not values:
        raise ValueError("no values to average")
    means = _resampled_means(values, clusters, np.random.default_rng(seed), draws)
    return _interval(math.fsum(values) / len(values), means)


def hierarchical_mean(
    runs: Sequence[Sequence[float]],
    clusters: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    draws: int = 10_000,
) -> tuple[Interval, float]:
    """Return the mean of the runs' means, with its interval and two-sided p from a two-level bootstrap.

    Each draw resamples the runs, and then the clusters of values within each of them. With one run, the interval is
    that of `bootstrap_mean`.

    Args:
        runs: the values of each run, such as paired differences.
        clusters: the cluster of each value of each run, as in `bootstrap_mean`.

    Raises:
        ValueError: there are no runs, or a run has no values.
    """
    import numpy as np

    if not runs or not all(runs):
        raise ValueError("no values to average")
    names = clusters if clusters is not None else [None] * len(runs)
    chosen = np.random.default_rng([seed, 1]).integers(0, len(runs), (draws, len(runs)))
    rng, means = np.random.default_rng(seed), np.zeros(draws)
    for place in chosen.T:
        for number, values in enumerate(runs):
            is_run = place == number
            if count := int(is_run.sum()):
                means[is_run] += _resampled_means(values, names[number], rng, count)
    means /= len(runs)
    value = math.fsum(math.fsum(v) / len(v) for v in runs) / len(runs)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return _interval(value, means), min(1.0, 2 * (tail + 1) / (draws + 1))


def _resampled_means(
    values: Sequence[float], clusters: Sequence[str] | None, rng: numpy.random.Generator, draws: int
) -> Vector:
    """Return the mean of each draw of clusters with replacement."""
    import numpy as np

    names = clusters if clusters is not None else [str(i) for i in range(len(values))]
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    sums, sizes = np.zeros(len(index)), np.zeros(len(index))
    for name, value in zip(names, values, strict=True):
        sums[index[name]] += value
        sizes[index[name]] += 1
    means = []
    batch = max(1, 2_000_000 // len(index))  # a matrix of at most 16 MB
    for start in range(0, draws, batch):
        drawn = rng.integers(0, len(index), (min(batch, draws - start), len(index)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return np.concatenate(means)


def _interval(value: float, means: Vector) -> Interval:
    """Return the percentile interval of the means of all draws."""
    ordered, draws = sorted(means.tolist()), len(means)
    return Interval(value, ordered[int(draws * 0.025)], ordered[min(draws - 1, int(draws * 0.975))])


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the exact two-sided p of McNemar's test (1947), the binomial test on the pairs that differ."""
    wins = sum(b and not a for a, b in zip(first, second, strict=True))
    losses = sum(a and not b for a, b in zip(first, second, strict=True))
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << n) * 2)
