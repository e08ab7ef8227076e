"""Rows to scores, on values that can be checked by hand."""

from __future__ import annotations

import pytest

from selfalign.data.records import ItemScore
from selfalign.evaluation.tables import interval_of, scores


def rows(model: str, values: list[float], prompt: str = "standard", benchmark: str = "truthfulqa") -> list[ItemScore]:
    return [
        ItemScore(f"i{i}", benchmark, i, "s", f"c{i // 2}", "f", prompt, model, [], [], {"right": v})
        for i, v in enumerate(values)
    ]


def test_every_score_stands_beside_its_paired_difference_and_the_verbose_tax():
    base, engraved, final = [1.0, 0.0] * 20, [1.0, 1.0] * 20, [1.0, 1.0] * 16 + [0.0, 0.0] * 4
    found = {(s.model, s.vs): s for s in scores(rows("base", base) + rows("engraved", engraved) + rows("final", final))}
    assert set(found) == {("base", None), ("engraved", "base"), ("final", "base"), ("final", "engraved")}
    tax = found["final", "engraved"]
    assert (tax.value, tax.difference, tax.n) == (0.8, pytest.approx(-0.2), 40)
    assert tax.p == pytest.approx(2 / 2**8) and tax.difference_high is not None and tax.difference_high < 0
    gain = found["engraved", "base"]
    assert gain.difference == 0.5 and gain.p is not None and gain.p < 1e-4
    # Two items of a cluster are drawn together, and each cluster has the same difference here.
    assert (gain.difference_low, gain.difference_high) == (0.5, 0.5)
    assert interval_of(found["base", None]) is None and interval_of(gain) is not None


def test_shares_have_a_bootstrap_interval_and_no_p():
    found = scores(rows("base", [0.2, 0.4, 0.6, 0.8]) + rows("final", [0.3, 0.5, 0.7, 0.9]))
    assert found[0].value == pytest.approx(0.5) and found[0].low is not None and 0.2 < found[0].low < 0.5
    assert found[1].difference == pytest.approx(0.1) and found[1].p is None


def test_without_a_base_the_first_model_is_the_one_to_beat():
    found = [(s.model, s.vs) for s in scores(rows("a", [1.0]) + rows("b", [0.0]) + rows("final", [1.0]))]
    assert found == [("a", None), ("b", "a"), ("final", "a")]


def test_models_are_compared_under_the_same_prompt_where_there_is_one():
    given = rows("base", [0.0]) + rows("base", [1.0], "verbose") + rows("final", [1.0], "verbose")
    given += rows("prompted base", [1.0], "constitution")
    found = {(s.model, s.prompt): s.difference for s in scores(given) if s.vs}
    assert found == {("final", "verbose"): 0.0, ("prompted base", "constitution"): 1.0}


def test_items_that_one_model_lacks_are_left_out_of_the_difference():
    found = scores(rows("base", [1.0, 1.0, 0.0]) + rows("final", [1.0, 0.0]))
    assert [s.n for s in found] == [3, 2] and found[1].difference == -0.5


def test_only_some_benchmarks_are_told_by_subset():
    assert {s.benchmark for s in scores(rows("base", [1.0]))} == {"truthfulqa"}
    found = scores(rows("base", [1.0, 0.0], benchmark="hhh (fixture)"))
    assert {s.benchmark for s in found} == {"hhh (fixture)", "hhh (fixture)/s"}
