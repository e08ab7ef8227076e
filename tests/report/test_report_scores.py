"""Scores as text: units, signs, groups, and verdicts that an interval supports."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.evaluation import comparison
from selfalign.evaluation.records import OpenAnswer, Score
from selfalign.report.page import match
from selfalign.report.scores import folded, groups, p_text, score_text, verdict
from selfalign.system import strict_yaml


def score(measure: str, value: float, model: str = "final", prompt: str = "standard", **more: Any) -> dict[str, Any]:
    return asdict(Score(more.pop("benchmark", "heldout"), measure, model, prompt, more.pop("n", 40), value, **more))


def compared(measure: str, low: float, high: float, **more: Any) -> dict[str, Any]:
    middle = (low + high) / 2
    return score(measure, 0.5, vs="base", difference=middle, difference_low=low, difference_high=high, **more)


def test_rate_is_percent_and_difference_is_points():
    row = score(
        "run-on rate", 0.125, low=0.05, high=0.25, vs="base", difference=-0.5, difference_low=-0.6, difference_high=-0.4
    )
    assert score_text(row) == ("12%", "5% to 25%", "−50 points vs base (−60 to −40)")
    assert score_text(score("empty rate", 1.0))[0] == "100%"


def test_percent_of_many_rows_has_a_decimal():
    assert score_text(score("mc1", 0.3121, benchmark="truthfulqa", n=817, low=0.28, high=0.345))[:2] == (
        "31.2%",
        "28.0% to 34.5%",
    )


def test_words_are_integers_and_numbers_have_three_decimals():
    assert score_text(score("median words", 71.6, low=60.0, high=80.2)) == ("72", "60 to 80", "")
    assert score_text(score("loss", 1.23456)) == ("1.235", "", "")
    assert score_text(score("loss", 0.5))[0] == "0.500"


def test_differences_have_signs_except_zero():
    row = score("loss", 1.0, vs="base", difference=0.1, difference_low=0.0, difference_high=0.2)
    assert score_text(row)[2] == "+0.100 vs base (0.000 to +0.200)"
    none = score("loss", 1.0, vs="base", difference=-0.0001, difference_low=-0.1, difference_high=0.1)
    assert score_text(none)[2] == "0.000 vs base (−0.100 to +0.100)"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_missing_number_is_a_dash(value: Any):
    assert score_text(score("loss", value))[0] == "–"
    assert score_text(score("loss", 1.0, low=value or float("nan"), high=1.0))[1] == "– to 1.000"


@pytest.mark.parametrize(
    ("measure", "low", "high", "word"),
    [
        ("loss without constitution", -0.4, -0.1, "better"),
        ("loss without constitution", 0.1, 0.4, "worse"),
        ("run-on within 320 tokens", -0.4, 0.1, "no difference"),
        ("accuracy", 0.01, 0.2, "better"),
        ("MC1", -0.2, -0.01, "worse"),
        ("mean words", 3, 9, "higher"),
        ("something new", -2, -1, "lower"),
        ("accuracy", 0.0, 0.2, "no difference"),
    ],
)
def test_verdict_follows_from_the_interval(measure: str, low: float, high: float, word: str):
    assert verdict(compared(measure, low, high)) == word


def test_no_verdict_without_an_interval():
    assert verdict(score("accuracy", 0.9)) == ""
    assert verdict({**compared("accuracy", 0.1, 0.2), "difference_low": None}) == ""
    assert verdict({**compared("accuracy", 0.1, 0.2), "difference_high": float("nan")}) == ""


@given(st.floats(-1, 1), st.floats(-1, 1), st.text(max_size=20))
def test_interval_around_zero_is_no_difference(a: float, b: float, measure: str):
    low, high = sorted((a, b))
    assert (verdict(compared(measure, low, high)) == "no difference") == (low <= 0 <= high)


def test_groups_keep_the_pipelines_order_of_models():
    rows = [score("overall", 0.5, m, benchmark="hhh") for m in ("final", "base", "other")]
    rows += [score("loss", 2.0, "base"), score("overall", 0.5, "final", "verbose", benchmark="hhh")]
    grouped = groups(rows)
    assert [(g["benchmark"], g["title"]) for g in grouped] == [("hhh", "HHH Eval"), ("heldout", "Held-out prompts")]
    [overall] = grouped[0]["measures"]
    assert [r["label"] for r in overall["rows"]] == ["base", "final · standard", "final · verbose", "other"]
    assert overall["unit"] == "percent"
    assert [r["label"] for r in grouped[1]["measures"][0]["rows"]] == ["base"]


def test_measure_has_one_unit():
    rows = [score("ratio", value, model) for model, value in (("base", 0.5), ("final", 1.5))]
    assert groups(rows)[0]["measures"][0]["unit"] == "number"


def test_subsets_are_grouped_and_second_comparison_is_a_repeat():
    rows = [score("accuracy", 0.5, "base", benchmark="hhh"), score("accuracy", 0.5, "base", benchmark="hhh/honest")]
    rows += [score("accuracy", 0.6, benchmark="hhh", vs=vs, difference=0.1) for vs in ("base", "engraved")]
    [group] = groups(rows)
    assert [m["name"] for m in group["measures"]] == ["accuracy"]
    assert [m["name"] for m in group["subsets"]] == ["honest: accuracy"]
    assert [(r["vs"], r["repeat"]) for r in group["measures"][0]["rows"]] == [
        (None, False),
        ("base", False),
        ("engraved", True),
    ]


def test_unjudged_score_is_a_dash():
    [group] = groups([score("truthful: not judged", None, benchmark="truthfulqa generation")])  # type: ignore[arg-type]
    assert group["title"] == "TruthfulQA generation"
    [row] = group["measures"][0]["rows"]
    assert score_text(row, group["measures"][0]["unit"]) == ("–", "", "")


def pair_scores(orders_of_pairs: list[tuple[str, str]], **more: Any) -> list[dict[str, Any]]:
    """Return the scores of final against base for these verdicts on each question, in both orders."""
    rows = [
        OpenAnswer(f"{i}", "vicuna", i, "coding", "", f"{i}?", "standard", m, m, True)
        for m in ("base", "final")
        for i in range(len(orders_of_pairs))
    ]
    pairs = comparison.pairs_of(rows)
    verdicts = [comparison.verdict_row(p, "j", *orders) for p, orders in zip(pairs, orders_of_pairs, strict=True)]
    return [asdict(s) for s in comparison.pair_scores(rows, verdicts)]


@pytest.mark.parametrize(
    ("orders_of_pairs", "word"),
    [
        ([("A", "B")] * 9 + [("A", "A")], "better"),
        ([("B", "A")] * 9 + [("A", "A")], "worse"),
        ([("A", "B"), ("B", "A"), ("A", "A")] * 3, "no difference"),
        ([("A", "B"), ("A", "B")], "no difference"),
        ([("A", "B")] * 5, "no difference"),  # Wilson: 57 % to 100 %; p is 0.063
        ([("A", "B")] * 6, "better"),
        ([("", "")] * 9, ""),
    ],
)
def test_win_rate_is_compared_with_one_half(orders_of_pairs: list[tuple[str, str]], word: str):
    assert verdict(pair_scores(orders_of_pairs)[0]) == word


def test_counts_are_folded_into_their_win_rate():
    scores = pair_scores([("A", "B")] * 7 + [("A", "A"), ("tie", "A"), ("B", "")])
    [group] = groups([score("loss", 1.0, benchmark="vicuna"), *scores])
    assert [m["name"] for m in group["measures"]] == ["loss", "win rate against base, judged by j"]
    assert [m["name"] for m in group["subsets"]] == ["coding: win rate against base, judged by j"]
    [row] = group["measures"][1]["rows"]
    counts = "7 won, 2 tied, 0 lost vs base, 1 unparsable; by position in both orders: first 1, second 0"
    assert score_text(row, group["measures"][1]["unit"])[::2] == ("89%", counts)
    assert (row["verdict"], row["n"], row["p_text"]) == ("better", 9, "p 0.016")


def test_count_without_win_rate_is_dropped():
    lonely = [s for s in pair_scores([("A", "B")]) if s["measure"].startswith("wins")]
    other = score("wins", 3.0)
    assert folded([*lonely, other]) == [other]


@pytest.mark.parametrize(("p", "text"), [(None, ""), (0.0001, "p < 0.001"), (0.04, "p 0.040"), (float("nan"), "")])
def test_p_is_short(p: float | None, text: str):
    assert p_text({"p": p}) == text


def test_each_reference_matches_one_benchmark():
    names = ["heldout", "hhh (fixture)", "truthfulqa", "truthfulqa generation", "Vicuna"]
    path = resources.files("selfalign") / "assets/paper.yaml"
    all_references = strict_yaml.parse_yaml(path.read_text("utf-8"), "paper.yaml")["references"]
    assert {n: r["title"].split(",")[0] for n, r in match(names, all_references).items()} == {
        "hhh (fixture)": "HHH Eval", "truthfulqa": "TruthfulQA", "Vicuna": "Vicuna questions",
    }  # fmt: skip
    assert all(len(row) == len(r["head"]) for r in all_references for row in r["rows"])
