"""Test the measures of diversity on texts with known values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.quality import diversity
from selfalign.quality.rouge import rouge_l


def test_distinct_n_counts_different_runs_of_words():
    texts = ["a b a b", "a b"]
    assert diversity.distinct(texts, 1) == 2 / 6
    assert diversity.distinct(texts, 2) == 2 / 4  # ab ba ab, ab
    assert diversity.distinct(texts, 3) == 1.0
    assert diversity.distinct(texts, 5) == 0.0
    assert diversity.distinct([], 1) == 0.0


def test_commonest_opening_has_six_words():
    texts = ["One two three four five six seven.", "one two, three four five SIX eight", "Else."]
    assert diversity.commonest_opening(texts) == ("one two three four five six", 2 / 3)
    assert diversity.commonest_opening([]) == ("", 0.0)


def test_similarity_is_mean_rouge_l():
    texts = ["name two rivers", "name two lakes", "sort the words", "?!"]
    results = diversity.similarity(texts)
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert results["texts"] == 3
    assert results["mean"] == pytest.approx(sum(rouge_l(texts[a], texts[b]) for a, b in pairs) / 3)
    assert results["nearest"] == [1, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    assert diversity.similarity(["alone"])["mean"] is None


@given(st.lists(st.text(max_size=20), max_size=20))
def test_any_texts_are_described(texts: list[str]):
    results = diversity.describe(texts)
    assert results["texts"] == len(texts)
    assert all(0 <= v <= 1 for v in results["distinct"].values())
    assert sum(results["similarity"]["nearest"]) in (0, results["similarity"]["texts"])


@pytest.mark.parametrize(
    ("instruction", "verb", "noun"),
    [
        ("Write a short letter to your landlord about the broken window.", "write", "letter"),
        ("Sort these words from A to Z.", "sort", "word"),
        ("List three old rivers and describe the largest one.", "list", "river"),
        ("Can you explain how bees make honey?", "explain", ""),
        ("Translate the following sentence into French.", "translate", "sentence"),
        ("Give me two reasons for it.", "give", "reason"),
    ],
)
def test_verb_and_object_of_instructions(instruction: str, verb: str, noun: str):
    pytest.importorskip("textblob")
    pair = diversity.verb_object(instruction)
    assert pair is not None and pair[0] == verb
    assert noun == "" or pair[1] == noun


def test_without_textblob_there_are_no_verbs(monkeypatch: pytest.MonkeyPatch):
    diversity._tagger.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "textblob.en.taggers", None)
    assert diversity.verb_object("Sort these words.") is None and not diversity.can_tag()
    diversity._tagger.cache_clear()


@given(st.text(max_size=80))
def test_any_text_can_be_tagged(text: str):
    pair = diversity.verb_object(text)
    assert pair is None or pair[0]
