"""Intervals against known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.evaluation.statistics import Interval, bootstrap_mean, hierarchical_mean, mcnemar, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # R: prop.test(hits, n, correct = FALSE)$conf.int
        (5, 10, 0.2365931, 0.7634069),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (1, 100, 0.0017674, 0.0544862),
        (50, 100, 0.4038315, 0.5961685),
    ],
)
def test_wilson_against_known_values(hits: int, n: int, low: float, high: float):
    result = wilson(hits, n)
    assert result.value == hits / n
    assert result.low == pytest.approx(low, abs=1e-6)
    assert result.high == pytest.approx(high, abs=1e-6)


def test_wilson_without_values_is_the_whole_range():
    result = wilson(0, 0)
    assert math.isnan(result.value)
    assert (result.low, result.high) == (0.0, 1.0)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_rate_and_stays_in_range(pair: tuple[int, int]):
    result = wilson(*pair)
    assert 0.0 <= result.low <= result.value + 1e-12
    assert result.value - 1e-12 <= result.high <= 1.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
@settings(max_examples=50)
def test_bootstrap_interval_contains_the_mean(values: list[float]):
    result = bootstrap_mean(values, draws=400)
    slack = 1e-9 * max(1.0, *(abs(v) for v in values))
    assert result.value == pytest.approx(sum(values) / len(values), abs=slack)
    assert result.low - slack <= result.value <= result.high + slack
    assert min(values) - slack <= result.low
    assert result.high <= max(values) + slack


def test_bootstrap_is_seeded():
    values = [math.sqrt(i) for i in range(40)]
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_bootstrap_interval_has_the_normal_width():
    values = [float(i % 2) for i in range(400)]
    result = bootstrap_mean(values, draws=2000)
    assert result.value == 0.5
    assert result.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert result.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_equal_values_have_an_interval_without_width():
    assert bootstrap_mean([2.0] * 5, draws=50) == Interval(2.0, 2.0, 2.0)
    assert bootstrap_mean([2.0], draws=1) == Interval(2.0, 2.0, 2.0)


def test_bootstrap_without_values_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [
        (0.1, 0.2, True),
        (-0.2, -0.1, True),
        (-0.1, 0.1, False),
        (0.0, 0.1, False),
        (-0.1, 0.0, False),
        (0.0, 0.0, False),
    ],
)
def test_interval_that_touches_zero_is_no_difference(low: float, high: float, excludes: bool):
    assert Interval(0.0, low, high).excludes_zero is excludes


def test_bootstrap_resamples_clusters():
    values = [float(i // 5 % 2) for i in range(200)]  # forty clusters of five equal values
    apart = bootstrap_mean(values, draws=2000)
    together = bootstrap_mean(values, draws=2000, clusters=[str(i // 5) for i in range(200)])
    assert together.value == apart.value == 0.5
    # The width is that of forty values, not of two hundred: the square root of five times as much.
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(5**0.5, rel=0.1)
    alone = bootstrap_mean(values, draws=2000, clusters=[str(i) for i in range(200)])
    assert alone == apart
    uneven = bootstrap_mean([1.0, 1.0, 1.0, 0.0], draws=500, clusters=["a", "a", "a", "b"])
    assert (uneven.value, uneven.low, uneven.high) == (0.75, 0.0, 1.0)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        # scipy: binomtest(wins, wins + losses).pvalue
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (10, 2, 0.03857422),
        (2, 10, 0.03857422),
        (20, 5, 0.004077315),
        (300, 250, 0.03657875),
    ],
)
def test_mcnemar_against_known_values(wins: int, losses: int, p: float):
    first = [False] * wins + [True] * losses + [True] * 7 + [False] * 9
    second = [True] * wins + [False] * losses + [True] * 7 + [False] * 9
    assert mcnemar(first, second) == pytest.approx(p, rel=1e-4)


values = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20)


@given(values, st.integers(1, 4))
@settings(max_examples=50)
def test_one_run_has_the_interval_of_the_ordinary_bootstrap(numbers: list[float], size: int):
    clusters = [str(i // size) for i in range(len(numbers))]
    interval, _ = hierarchical_mean([numbers], [clusters], draws=300)
    assert interval == bootstrap_mean(numbers, draws=300, clusters=clusters)


@given(st.lists(values, min_size=1, max_size=4))
@settings(max_examples=50)
def test_interval_over_runs_contains_the_mean_of_their_means(runs: list[list[float]]):
    interval, p = hierarchical_mean(runs, draws=300)
    means = [sum(r) / len(r) for r in runs]
    assert interval.value == pytest.approx(sum(means) / len(means), abs=1e-6)
    assert min(map(min, runs)) - 1e-6 <= interval.low <= interval.high <= max(map(max, runs)) + 1e-6
    assert 0 < p <= 1


def test_interval_over_runs_is_wide_where_runs_differ():
    runs = [[0.0] * 50, [1.0] * 50, [0.5] * 50]
    interval, p = hierarchical_mean(runs, draws=2000)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)
    assert p > 0.05
    assert hierarchical_mean([[1.0] * 5] * 3, draws=99) == (Interval(1.0, 1.0, 1.0), 0.02)


def test_interval_over_runs_covers_the_true_mean_of_seeds():
    """Differences of -1, 0 and 1 whose mean varies by seed; without the seeds, the interval is far too narrow."""
    rng, trials, covered, ordinary = np.random.default_rng(5), 150, 0, 0
    for trial in range(trials):
        shifts = 0.2 + 0.06 * rng.standard_normal(5)
        runs = [rng.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.8 - s, 0.1 + s]).tolist() for s in shifts.clip(0, 0.7)]
        interval, _ = hierarchical_mean(runs, seed=trial, draws=400)
        pooled = bootstrap_mean([v for r in runs for v in r], seed=trial, draws=400)
        covered += interval.low <= 0.2 <= interval.high
        ordinary += pooled.low <= 0.2 <= pooled.high
    assert covered / trials >= 0.9 > 0.8 > ordinary / trials


@pytest.mark.parametrize("runs", [[], [[1.0], []]])
def test_interval_over_runs_without_values_is_an_error(runs: list[list[float]]):
    with pytest.raises(ValueError, match="no values"):
        hierarchical_mean(runs)
