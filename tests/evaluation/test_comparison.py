"""Scores with paired differences, verdicts in both orders, counts and win rates, on values checked manually."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.evaluation.comparison import (
    COUNTS,
    LETTERS,
    WIN_RATE,
    combine_orders,
    item_scores,
    pair_scores,
    pairs_of,
    tally,
    valid_verdicts,
    verdict_row,
    win_rate,
)
from selfalign.evaluation.records import ItemScore, OpenAnswer, PairVerdict, Score

letters = st.sampled_from((*LETTERS, "", "maybe"))
both = st.tuples(letters, letters)
OPPOSITE = {"win": "loss", "loss": "win", "tie": "tie", "unparsable": "unparsable"}


def answers(model: str, n: int = 4, prompt: str = "standard", benchmark: str = "vicuna") -> list[OpenAnswer]:
    return [
        OpenAnswer(
            f"{benchmark} {i} {prompt}", benchmark, i, "ab"[i % 2], "", f"Q{i}?", prompt, model, f"{model} {i}", True
        )
        for i in range(n)
    ]


def verdicts(result: list[tuple[str, str]], judge: str = "j") -> list[PairVerdict]:
    pairs = pairs_of(answers("base", len(result)) + answers("final", len(result)))
    return [verdict_row(p, judge, *orders) for p, orders in zip(pairs, result, strict=True)]


def swapped(rows: list[PairVerdict]) -> list[PairVerdict]:
    """Return the verdicts from the side of the rival."""
    return [
        replace(
            r,
            model_first=r.rival_first,
            rival_first=r.model_first,
            verdict=combine_orders(r.rival_first, r.model_first),
        )
        for r in rows
    ]


@pytest.mark.parametrize(
    ("model_first", "rival_first", "verdict"),
    [
        ("A", "B", "win"),
        ("B", "A", "loss"),
        ("A", "A", "tie"),
        ("B", "B", "tie"),
        ("tie", "tie", "tie"),
        ("A", "tie", "tie"),
        ("tie", "A", "tie"),
        ("A", "", "unparsable"),
        ("maybe", "B", "unparsable"),
    ],
)
def test_answer_wins_only_in_both_orders(model_first: str, rival_first: str, verdict: str):
    assert combine_orders(model_first, rival_first) == verdict


@given(both)
def test_verdict_is_opposite_for_the_rival(orders: tuple[str, str]):
    assert combine_orders(*orders) == OPPOSITE[combine_orders(*reversed(orders))]
    assert (combine_orders(*orders) == "unparsable") == (not set(orders) <= set(LETTERS))


@given(st.lists(both, max_size=30))
def test_verdict_counts_balance(result: list[tuple[str, str]]):
    rows = verdicts(result)
    wins, ties, losses, unparsable, first, second = tally(rows).values()
    assert wins + ties + losses + unparsable == len(rows)
    assert first + second <= ties
    other = tally(swapped(rows))
    assert list(other.values()) == [losses, ties, wins, unparsable, first, second]


@given(st.lists(both, min_size=1, max_size=20))
def test_win_rates_of_both_sides_add_up_to_one(result: list[tuple[str, str]]):
    rows = verdicts(result)
    rate, other, counts = win_rate(rows), win_rate(swapped(rows)), tally(rows)
    judged = counts["wins"] + counts["ties"] + counts["losses"]
    if rate is None or other is None:
        assert rate is other is None and judged == 0
        return
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.value == pytest.approx((counts["wins"] + counts["ties"] / 2) / judged)
    assert rate.value + other.value == pytest.approx(1)


def test_few_wins_without_a_tie_have_a_wide_interval():
    rate = win_rate(verdicts([("A", "B")] * 3))
    assert rate and rate.value == 1 and rate.low == pytest.approx(0.4385, abs=1e-4)  # Wilson, 3 of 3
    even = win_rate(verdicts([("A", "A")] * 9))
    assert even and (even.low, even.value, even.high) == (0.5, 0.5, 0.5)


def test_win_rate_resamples_questions():
    rows = verdicts([("A", "B"), ("B", "A"), ("tie", "tie")] * 10)
    alone, together = win_rate(rows), win_rate([replace(r, question="one") for r in rows])
    assert alone and together and (together.low, together.high) == (0.5, 0.5) and alone.low < 0.5 < alone.high


def test_pairs_include_base_and_engraved_as_rivals():
    rows_ = [a for m in ("base", "engraved", "final", "mine") for a in answers(m)] + answers(
        "prompted base", prompt="constitution"
    )
    met = [(p.model.model, p.rival.model) for p in pairs_of(rows_)]
    assert list(dict.fromkeys(met)) == [
        ("engraved", "base"), ("final", "base"), ("final", "prompted base"), ("final", "engraved"), ("mine", "base"),
        ("prompted base", "base"),
    ]  # fmt: skip
    assert len(met) == 6 * 4 and all(p.model.item == p.rival.item for p in pairs_of(rows_))
    assert pairs_of(answers("base")) == []


def test_pairs_share_prompt_and_benchmark():
    rows_ = answers("base") + answers("base", prompt="two-shot") + answers("final", 3, "two-shot")
    rows_ += answers("final", benchmark="questions (x)")
    met = {(p.model.benchmark, p.model.model, p.model.prompt, p.rival.model, p.rival.prompt) for p in pairs_of(rows_)}
    assert met == {("vicuna", "final", "two-shot", "base", "two-shot")}
    assert len(pairs_of(rows_)) == 3, "a question that one of them did not answer is no pair"


@given(st.permutations([("base", "standard"), ("base", "two-shot"), ("final", "two-shot"), ("engraved", "standard"),
                        ("final", "standard"), ("prompted base", "constitution")]))  # fmt: skip
def test_pairs_do_not_depend_on_the_order_of_measuring(order: list[tuple[str, str]]):
    met = {(p.model.model, p.model.prompt, p.rival.model, p.rival.prompt) for p in pairs_of([
        a for model, prompt in order for a in answers(model, 1, prompt)
    ])}  # fmt: skip
    assert met == {
        ("final", "standard", "base", "standard"), ("final", "two-shot", "base", "two-shot"),
        ("engraved", "standard", "base", "standard"), ("prompted base", "constitution", "base", "standard"),
        ("final", "standard", "engraved", "standard"), ("final", "two-shot", "engraved", "standard"),
        ("final", "standard", "prompted base", "constitution"), ("final", "two-shot", "prompted base", "constitution"),
    }  # fmt: skip


def test_without_a_base_pairs_share_the_prompt():
    rows_ = [a for p in ("two-shot", "standard") for m in ("x", "y") for a in answers(m, 1, p)]
    met = {(p.model.model, p.model.prompt, p.rival.model, p.rival.prompt) for p in pairs_of(rows_)}
    assert met == {("y", p, "x", p) for p in ("standard", "two-shot")}


def test_scores_name_rival_judge_and_category():
    rows_ = answers("base") + answers("final")
    rows = verdicts([("A", "B"), ("A", "A"), ("A", "B"), ("", "A")])
    result = {(s.benchmark, s.measure): s for s in pair_scores(rows_, rows)}
    rate = result["vicuna", "win rate against base, judged by j"]
    assert (rate.n, rate.value, rate.model, rate.prompt, rate.vs) == (
        3,
        pytest.approx(2.5 / 3),
        "final",
        "standard",
        "base",
    )
    assert rate.p == 0.5  # two of two decided pairs
    counts = {name: result["vicuna", f"{name} against base, judged by j"] for name in COUNTS}
    assert [s.value for s in counts.values()] == [2, 1, 0, 1, 1, 0] and {s.n for s in counts.values()} == {4}
    for name in COUNTS:
        parts = [result[f"vicuna/{c}", f"{name} against base, judged by j"].value or 0 for c in "ab"]
        assert sum(parts) == counts[name].value
    assert result["vicuna/a", "win rate against base, judged by j"].value == 1
    assert not any("not judged" in m for _, m in result)


def test_unparsable_verdicts_are_counted_without_a_rate():
    result = pair_scores(answers("base") + answers("final"), verdicts([("", ""), ("A", ""), ("", "B"), ("x", "A")]))
    assert (result[0].measure, result[0].n, result[0].value, result[0].p) == (
        "win rate against base, judged by j",
        0,
        None,
        None,
    )
    assert result[4] == Score("vicuna", "unparsable against base, judged by j", "final", "standard", 4, 4, vs="base")


def test_models_without_verdicts_are_scored_as_not_judged():
    result = pair_scores(answers("base") + answers("final", 3), [])
    assert [(s.model, s.measure, s.n, s.value) for s in result] == [
        ("base", "win rate: not judged", 4, None),
        ("final", "win rate: not judged", 3, None),
    ]
    late = pair_scores(answers("base") + answers("final") + answers("mine"), verdicts([("A", "B")] * 4))
    assert [s.model for s in late if "not judged" in s.measure] == ["mine"]


def test_rival_is_named_with_its_prompt():
    rows_ = answers("base") + answers("prompted base", prompt="constitution")
    rows = [verdict_row(p, "j", "A", "B") for p in pairs_of(rows_)]
    assert {s.vs for s in pair_scores(rows_, rows)} == {"base (standard)"}


def test_verdict_is_valid_while_both_answers_exist():
    rows_ = answers("base") + answers("final")
    rows = verdicts([("A", "B")] * 4) + verdicts([("B", "A")] * 4, judge="other")
    assert valid_verdicts(rows, rows_) == rows and len({(r.id, r.model) for r in rows}) == 8
    changed = [replace(a, answer="other") if (a.model, a.item) == ("base", 2) else a for a in rows_]
    assert {r.item for r in valid_verdicts(rows, changed)} == {0, 1, 3}
    assert valid_verdicts(rows, answers("base")) == []
    renamed = [replace(a, model="base2") if a.model == "final" else a for a in rows_]
    assert valid_verdicts(rows, renamed) == []


def test_names_of_measures_differ_at_the_beginning():
    assert len({m.split(" against ")[0] for m in (*COUNTS, WIN_RATE)}) == 7


# -- scores of items ---------------------------------------------------------------------------------------------


def items(model: str, values: list[float], prompt: str = "standard", benchmark: str = "truthfulqa") -> list[ItemScore]:
    return [
        ItemScore(f"i{i}", benchmark, i, "s", f"c{i // 2}", "f", prompt, model, [], [], {"right": v})
        for i, v in enumerate(values)
    ]


def test_scores_have_paired_differences_and_verbose_tax():
    base, engraved, final = [1.0, 0.0] * 20, [1.0, 1.0] * 20, [1.0, 1.0] * 16 + [0.0, 0.0] * 4
    result = {
        (s.model, s.vs): s
        for s in item_scores(items("base", base) + items("engraved", engraved) + items("final", final))
    }
    assert set(result) == {("base", None), ("engraved", "base"), ("final", "base"), ("final", "engraved")}
    tax = result["final", "engraved"]
    assert (tax.value, tax.difference, tax.n) == (0.8, pytest.approx(-0.2), 40)
    assert tax.p == pytest.approx(2 / 2**8) and tax.difference_high is not None and tax.difference_high < 0
    gain = result["engraved", "base"]
    assert gain.difference == 0.5 and gain.p is not None and gain.p < 1e-4
    # Two items of a cluster are drawn together, and each cluster has the same difference here.
    assert (gain.difference_low, gain.difference_high) == (0.5, 0.5)


def test_fractions_have_a_bootstrap_interval_and_no_p():
    result = item_scores(items("base", [0.2, 0.4, 0.6, 0.8]) + items("final", [0.3, 0.5, 0.7, 0.9]))
    assert result[0].value == pytest.approx(0.5) and result[0].low is not None and 0.2 < result[0].low < 0.5
    assert result[1].difference == pytest.approx(0.1) and result[1].p is None


def test_without_a_base_the_first_model_is_the_rival():
    result = [(s.model, s.vs) for s in item_scores(items("a", [1.0]) + items("b", [0.0]) + items("final", [1.0]))]
    assert result == [("a", None), ("b", "a"), ("final", "a")]


def test_rival_has_the_same_prompt_if_measured():
    rows = items("base", [0.0]) + items("base", [1.0], "verbose") + items("final", [1.0], "verbose")
    rows += items("prompted base", [1.0], "constitution")
    result = {(s.model, s.prompt): s.difference for s in item_scores(rows) if s.vs}
    assert result == {("final", "verbose"): 0.0, ("prompted base", "constitution"): 1.0}


def test_difference_uses_items_that_both_models_have():
    result = item_scores(items("base", [1.0, 1.0, 0.0]) + items("final", [1.0, 0.0]))
    assert [s.n for s in result] == [3, 2] and result[1].difference == -0.5


def test_subsets_have_scores_on_request():
    assert {s.benchmark for s in item_scores(items("base", [1.0]))} == {"truthfulqa"}
    result = item_scores(items("base", [1.0, 0.0], benchmark="hhh (fixture)"), by_subset=True)
    assert {s.benchmark for s in result} == {"hhh (fixture)", "hhh (fixture)/s"}


def test_baselines_stand_below_the_models():
    rows = items("base", [1.0, 0.0])
    measure = next(iter(rows[0].values))
    rows = [replace(r, baselines={measure: {"longest answer": float(r.item == 0)}}) for r in rows]
    result = item_scores([*rows, *(replace(r, model="final") for r in rows)])
    assert [(s.model, s.value, s.vs) for s in result] == [
        ("base", 0.5, None), ("final", 0.5, "base"), ("longest answer", 0.5, None)
    ]  # fmt: skip
