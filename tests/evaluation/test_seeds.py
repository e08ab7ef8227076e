"""Comparison of several runs with different seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import seed_runs
from selfalign.errors import UserError
from selfalign.evaluation import seeds
from selfalign.evaluation.seeds import RunResults, SeedScore
from selfalign.evaluation.statistics import bootstrap_mean


@pytest.fixture
def result(tmp_path: Path) -> Callable[..., RunResults]:
    """Makes the stored results of a run: `result(1, "align.temperature=0.9", rules="2")`."""
    return lambda seed, *settings, **made: seeds.read(
        seed_runs.write(tmp_path / f"run {seed} {len(list(tmp_path.iterdir()))}", seed, *settings, **made)
    )


def primary(scores: list[SeedScore]) -> list[SeedScore]:
    return [s for s in scores if s.holm is not None]


def test_primary_endpoints_have_intervals_over_runs(result: Callable[..., RunResults]):
    scores = seeds.compare([result(0), result(1), result(2)])
    found = primary(scores)
    assert [s.vs for s in found] == ["base", "prompted base"]
    for score in found:
        assert score.difference == pytest.approx(sum(d or 0 for d in score.differences) / 3)
        assert len(score.values) == 3 and score.n == 120
        assert score.difference_low is not None and score.difference_high is not None and score.difference is not None
        assert 0 < score.difference_low < score.difference < score.difference_high < 1
        assert score.p is not None and score.holm is not None and score.p <= score.holm < 0.05
    others = [s for s in scores if s.holm is None]
    assert all(s.p is None and s.difference_low is None for s in others)
    live = next(s for s in others if (s.benchmark, s.model) == ("behaviour/harmful twins", "final"))
    assert live.value == pytest.approx(sum(v or 0 for v in live.values) / 3)


def test_differences_of_one_run_are_its_own(result: Callable[..., RunResults]):
    run = result(3)
    for score in primary(seeds.compare([run])):
        own = next(s for s in run.scores if (s.benchmark, s.model, s.vs) == ("behaviour", "final", score.vs))
        assert score.difference == pytest.approx(own.difference)
        assert (score.difference_low, score.difference_high) == (own.difference_low, own.difference_high)


@pytest.mark.parametrize(
    ("settings", "made", "message"),
    [
        (["align.temperature=0.9"], {}, "the recipe differs in align.temperature: 0.5 -> 0.9"),
        ([], {"base": "c"}, "the base model differs: b -> c"),
        ([], {"rules": "2"}, "behaviour: the rules version differs: 1 -> 2"),
        (
            [],
            {"rows": seed_runs.answers(1, pairs=21), "rules": "2"},
            "the scenarios of behaviour differ: 0 are only in the first, 2 only in the second",
        ),
        (
            [],
            {"rows": seed_runs.answers(1, label="behaviour (test)")},
            "the scenarios differ: behaviour -> behaviour \\(test",
        ),
    ],
)
def test_runs_that_differ_are_refused(
    result: Callable[..., RunResults], settings: list[str], made: dict[str, object], message: str
):
    with pytest.raises(UserError, match=f"cannot be compared: {message}"):
        seeds.compare([result(0), result(1, *settings, **made)])


def test_engine_and_tasks_may_differ(result: Callable[..., RunResults]):
    assert seeds.compare([result(0), result(1, "engine.threads=2", "evaluate.tasks=[behaviour]")])


def test_equal_seeds_are_refused(result: Callable[..., RunResults]):
    with pytest.raises(UserError, match="the same seed"):
        seeds.compare([result(0), result(0)])


def test_runs_without_the_prompted_base_are_compared_with_the_base(result: Callable[..., RunResults]):
    rows = [[r for r in seed_runs.answers(seed) if r.model != "prompted base"] for seed in (0, 1)]
    scores = seeds.compare([result(seed, rows=rows[seed]) for seed in (0, 1)])
    assert {seeds._rival(s) for s in scores if seeds.is_primary(s)} == {"base"}


def test_runs_need_all_primary_endpoints(result: Callable[..., RunResults], tmp_path: Path):
    rows = [r for r in seed_runs.answers(1) if r.model != "prompted base"]
    with pytest.raises(UserError, match="not every run compares final with prompted base"):
        seeds.compare([result(0), result(1, rows=rows)])
    run = seed_runs.write(tmp_path / "other", 2)
    (run.evaluation / "behaviour.jsonl").unlink()
    with pytest.raises(UserError, match="no results to compare: run `selfalign evaluate"):
        seeds.read(run)


def test_half_of_one_run_only_is_skipped(result: Callable[..., RunResults]):
    both = [*seed_runs.answers(1), *seed_runs.answers(1, label="behaviour (test)")]
    runs = [result(0), result(1, rows=both)]
    scores = seeds.compare(runs)
    assert {s.benchmark for s in primary(scores)} == {"behaviour"}
    assert seeds.skipped(scores, runs) == ["behaviour (test)"]


def test_items_are_paired_and_clustered(result: Callable[..., RunResults]):
    """The interval is that of the differences of each scenario and twin, drawn together."""
    run = result(4)
    by_item = {(r.model, r.item): float(bool(r.appropriate)) for r in run.answers}  # twins: not evaded, the same here
    gaps = [by_item["final", i] - by_item["base", i] for i in range(40)]
    expected = bootstrap_mean(gaps, clusters=[str(i // 2) for i in range(40)])
    score = primary(seeds.compare([run]))[0]
    assert (score.difference_low, score.difference_high) == (expected.low, expected.high)
    shuffled = replace(run, answers=run.answers[::-1])
    assert primary(seeds.compare([shuffled]))[0] == score
