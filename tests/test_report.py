"""The report's page: whatever the texts say, they stay texts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.progress import plain
from selfalign.records import Answer, Score
from selfalign.report.page import _finite, render, score_text, side_by_side

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</td></table></title></style><img src=x onerror=alert(1)>",
    '" onload=\'x\' style="background:url(http://evil.example)"',
    "<!-- ]]> --> &lt;b&gt; &amp; &#60;",
    "{{ 7 * 7 }}{% for x in y %}{{ config }}",
    "\x1b[2J\x1b]0;owned\x07 red\x1b[31m",
    "\u202eevil\u202c \u2066abc\u2069 \u200f",
    "<svg/onload=alert(1)>javascript:alert(1)",
]


def data(text: str = "plain words") -> dict[str, Any]:
    score = {
        "benchmark": text,
        "measure": text,
        "model": text,
        "prompt": text,
        "n": 3,
        "value": 0.5,
        "low": 0.1,
        "high": 0.9,
        "vs": text,
        "difference": 0.25,
        "difference_low": -0.1,
        "difference_high": 0.6,
        "p": None,
    }
    stage = {
        "stage": text,
        "title": text,
        "finished": True,
        "rows_in": 4,
        "kept": 1,
        "dropped": {text: 2},
        "failed": {text: 1},
        "requests": 4,
        "prompt_tokens": 1,
        "cached_tokens": 2,
        "generated_tokens": 3456,
        "generation_seconds": 2.0,
        "tokens_per_second": 12.0,
        "hit_rate": 0.5,
        "busy": 0.9,
        "seconds": 1.5,
        "notes": {text: text},
    }
    answers = {
        text: {"text": f"A {text}", "ended": True, "words": 3},
        f"{text}2": {"text": f"B {text}", "ended": False, "words": 4},
    }
    return {
        "format": 1,
        "selfalign": text,
        "made": text,
        "run": text,
        "model": text,
        "engine": text,
        "constitution": text,
        "assistant": text,
        "stages": [stage],
        "scores": [score],
        "principles": [{"id": 1, "name": text, "used": 3}, {"id": 2, "name": "other", "used": 0}],
        "side_by_side": [{"message": f"M {text}", "answers": answers}] * 13,
        "data": about_the_data(text),
        "story": text,
        "notice": text,
    }


def about_the_data(text: str) -> dict[str, Any]:
    described = {
        "texts": 4,
        "distinct": {"1": 0.5, "2": 0.75, "3": 1.0},
        "commonest_opening": {"words": text, "share": 0.25},
        "similarity": {"texts": 4, "mean": 0.125, "nearest": [0, 1, 2, 1, 0, 0, 0, 0, 0, 0]},
        "sources": {text: 4},
        "question_types": {text: 3, "other": 0},
        "verb_objects": {"different": 2, "commonest": [[text, text, 3], ["write", "", 1]]},
    }
    row = {"run": text, "stage": text, "id": text, "text": f"C {text}"}
    clusters = {"clusters": 1, "rows": 4, "largest": [{"size": 4, "rows": [row] * 3}]}
    none = {"clusters": 0, "rows": 0, "largest": []}
    return {
        "diversity": {"prompts": described, text: described},
        "duplicates": {"prompts": {"rows": 4, "exact": none, "near": clusters}},
        "contamination": {
            "against": ["probes", text],
            "hits": [{"stage": text, "reason": text, "text": text, "item": text}],
        },
    }


NO_DATA = {"diversity": {}, "duplicates": {}, "contamination": {"against": [], "hits": []}}


class Page(HTMLParser):
    """Elements with their attributes, and the text outside of the style sheet."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.others: list[str] = []
        self._style = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", ()))
        self.text += " " if tag == "td" else ""
        self._style = False

    def handle_data(self, text: str) -> None:
        if not self._style:
            self.text += text

    def handle_comment(self, text: str) -> None:
        self.others.append(text)

    def handle_pi(self, text: str) -> None:
        self.others.append(text)

    def unknown_decl(self, text: str) -> None:
        self.others.append(text)


def check(hostile: str) -> Page:
    page, usual = Page(render(data(hostile))), Page(render(data()))
    assert page.elements == usual.elements
    assert page.others == []
    assert not {"script", "img", "link", "iframe", "object", "svg", "form", "base"} & {e for e, _ in page.elements}
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in {"src", "href", "action", "srcset", "data"}
        assert "url(" not in (value or ""), (tag, name, value)
    return page


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_change_no_element_and_load_nothing(hostile: str):
    check(hostile)


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_texts_are_shown_as_they_are_but_for_control_characters(hostile: str):
    page = check(hostile)
    shown = plain(page.text)
    for text in (f"M {hostile}", f"A {hostile}", f"B {hostile}", f"Run {hostile}", f"constitution {hostile}"):
        assert plain(text) in shown
    assert shown.count(plain(hostile)) >= 5 + 4 + 3 * 12


@pytest.mark.parametrize("hostile", [HOSTILE[5], HOSTILE[6]], ids=["escapes", "directions"])
def test_what_a_model_wrote_holds_no_control_character(hostile: str):
    value = data()
    value["side_by_side"] = [{"message": hostile, "answers": {"base": {"text": hostile, "ended": True, "words": 1}}}]
    page = render(value)
    assert page == plain(page)


def test_no_field_holds_a_control_character():
    page = render(data(HOSTILE[5] + HOSTILE[6]))
    assert page == plain(page)


@given(st.text(min_size=1, max_size=60))
@settings(max_examples=25)
def test_any_text_changes_no_element(text: str):
    check(text)


def test_the_style_sheet_and_the_policy_load_nothing():
    page = render(data())
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_a_run_without_scores_answers_and_stages_has_a_page():
    value = {**data(), "scores": [], "stages": [], "side_by_side": [], "principles": [], "notice": "", "data": NO_DATA}
    page = Page(render(value))
    assert "Every row accounted for" in page.text
    assert "side by side" not in page.text
    assert "diverse" not in page.text


def test_the_data_is_described():
    text = " ".join(Page(render(data())).text.split())
    assert "prompts 4 0.50 0.75 1.00 0.125 plain words (25.0%)" in text
    assert "2 different pairs" in text
    assert "prompts 4 0 in 0 4 in 1" in text
    assert "C plain words · C plain words · C plain words and 1 more" in text
    assert "1 prompts and answers were dropped because they overlap with probes, plain words." in text


def test_generation_is_shown_unless_no_model_ran():
    text = " ".join(Page(render(data())).text.split())
    assert "plain words 4 12 50.0% 90%" in text
    assert "Generation" not in Page(render({**data(), "engine": "fake"})).text


def test_the_page_says_how_many_prompts_it_leaves_out():
    page = Page(render(data()))
    assert page.text.count("M plain words") == 12
    assert "1 more in 5_evaluation/answers.jsonl" in page.text


def test_the_ledger_is_shown_whole():
    text = " ".join(Page(render(data())).text.split())
    assert "plain words 4 1 plain words 2, failed: plain words 1 3,456 2" in text


# -- scores ----------------------------------------------------------------------------------------------------------


def score(measure: str, value: float, **more: Any) -> Score:
    return Score("heldout", measure, "final", "standard", 40, value, **more)


def test_a_rate_is_shown_in_percent():
    made = score(
        "run-on rate", 0.125, low=0.05, high=0.25, vs="base", difference=-0.5, difference_low=-0.6, difference_high=-0.4
    )
    assert score_text(made) == ("12%", "5% to 25%", "-50% vs base (-60% to -40%)")
    assert score_text(score("empty rate", 1.0))[0] == "100%"


def test_words_are_shown_whole_and_the_rest_with_three_digits():
    assert score_text(score("median words", 71.6, low=60.0, high=80.2)) == ("72", "60 to 80", "")
    assert score_text(score("loss", 1.23456)) == ("1.235", "", "")


def test_a_gain_has_its_sign():
    made = score("loss", 1.0, vs="base", difference=0.1, difference_low=0.0, difference_high=0.2)
    assert score_text(made)[2] == "+0.100 vs base (0.000 to 0.200)"
    none = score("loss", 1.0, vs="base", difference=0.0, difference_low=-0.1, difference_high=0.1)
    assert score_text(none)[2] == "0.000 vs base (-0.100 to 0.100)"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_no_number_is_a_dash(value: Any):
    assert score_text(score("loss", value))[0] == "–"
    assert score_text(score("loss", 1.0, low=value or float("nan"), high=1.0))[1] == "– to 1.000"


def test_a_score_and_its_dictionary_are_shown_alike():
    made = score("loss", 1.5, low=1.0, high=2.0)
    assert score_text({k: getattr(made, k) for k in Score.__slots__}) == score_text(made)


def test_answers_are_put_side_by_side_in_the_order_of_the_file():
    rows = [Answer("1", "m1", "base", "a", True, 1), Answer("2", "m2", "base", "b", True, 1)]
    rows.append(Answer("1", "m1", "final", "c", False, 2))
    found = side_by_side(rows)
    assert [r["message"] for r in found] == ["m1", "m2"]
    assert found[0]["answers"]["final"] == {"text": "c", "ended": False, "words": 2}


def test_numbers_that_json_does_not_know_become_null():
    value = _finite({"a": [float("nan"), {"b": float("-inf")}], "c": 1.5, "d": "nan"})
    assert json.loads(json.dumps(value, allow_nan=False)) == {"a": [None, {"b": None}], "c": 1.5, "d": "nan"}


def test_bars_are_elements_and_their_names_are_text():
    page = Page(render(data("<b>&</b>")))
    assert sum(tag == "i" for tag, _ in page.elements) == 2 + 2 * 10 + 2 + 2  # principles, histograms, types, verbs
    assert "<b>&</b>" in page.text
