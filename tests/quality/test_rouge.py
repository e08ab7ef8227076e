"""Equality of texts, and tokens, words and lengths in every script."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.quality.rouge import count_words, length, ngrams, normalize, tokens, without_end, words

any_text = st.text(st.characters() | st.sampled_from("请说明เมือมื教えてか゛ﾞ👩\u200d👧🇩🇪\ufe0fहि 'aZ9é"), max_size=30)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Write it in C.", "Write it in C++."), ("Write it in C.", "Write it in C#."), ("8 + 2", "8 - 2"), ("-1", "1"),
        ("What is 🍎?", "What is 🔥?"), ("x < y", "y > x"), ("x²", "x2"), ("2^3", "2*3"), ("a.b", "ab"), ("1/2", "½"),
        ("resume", "résumé"), ("Maße", "Masse"), ("!", "?"), ("«a»", '"a"'), ("ＡＢ", "AB"), ("5 %", "5 €"),
    ],
)  # fmt: skip
def test_texts_that_differ_in_any_sign_are_different(one: str, two: str):
    assert normalize(one) != normalize(two)


@given(any_text)
def test_case_white_space_and_unicode_form_do_not_matter(text: str):
    text = re.sub(r"[İıſKÅΣσςßẞﬀ-ﬆŉǰΐΰևẖ-ẚὐ-῾ͅʼ]", "", text)  # letters whose capital is no single letter
    same = normalize(text)
    assert normalize(same) == same
    for form in ("NFC", "NFD"):
        assert normalize(unicodedata.normalize(form, text)) == same
    assert normalize(f" \n{text}\u3000\t") == same
    assert normalize(re.sub(r"\s+", "\n  ", text)) == same


def test_the_end_of_a_sentence_does_not_hide_a_trained_item():
    assert without_end("How do I steal a car?") == without_end("how do I STEAL a car")
    assert without_end("Is it 5 … ?") == without_end("is it 5")
    assert without_end("Is C++ hard?") != without_end("Is C# hard?") != without_end("Is C hard?")


def test_capitals_do_not_matter():
    assert normalize("NAME Three RIVERS, École, ΟΔΌΣ, ЁЖ!") == normalize("name three rivers, école, οδός, ёж!")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("naïve 3x, x_y", ["na", "ve", "3x", "x", "y"]),
        ("澳大利亚2024年", ["澳", "大", "利", "亚", "2024", "年"]),
        ("コーヒー、か\u3099", ["コ", "ー", "ヒ", "ー", "が"]),
        ("เมืองใด", ["เมื", "มือ", "อง", "งใ", "ใด", "ด"]),
        ("호주의 수도", ["호주의", "수도"]),
        (unicodedata.normalize("NFD", "호주의"), ["호주의"]),
        ("ЁЖ и лиса", ["ёж", "и", "лиса"]),
        ("مرحبا ٣٤", ["مرحبا", "٣٤"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("a 🍎 👩\u200d👧 🇩🇪 ❤\ufe0f © ™", ["a", "🍎", "👩\u200d👧", "🇩🇪", "❤\ufe0f"]),
        ("ＡＢ１２", ["ab12"]),
    ],
)
def test_tokens_follow_the_script(text: str, expected: list[str]):
    assert list(tokens(text)) == expected


@given(st.text(st.characters(max_codepoint=0x24F), max_size=40))
def test_latin_words_are_runs_of_letters_and_digits(text: str):
    assert list(words(text)) == re.findall(r"\w+", unicodedata.normalize("NFC", text.casefold()))


@given(any_text, st.integers(1, 8))
def test_every_run_of_words_is_the_shortest_of_its_length(text: str, n: int):
    items = words(text)
    runs = list(ngrams(items, n))
    for at, run in enumerate(runs):
        assert tuple(items[at : at + len(run)]) == run
        assert length(run) >= n > length(run[:-1])
    assert length(items[len(runs) :]) < n
    assert length(items) <= len(items)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("Name three - well, four - rivers.", 7, 7),
        ("请用简单的话解释光合作用是什么。", 6, 10),
        ("パンはどうやって焼きますか。", 5, 8),
        ("เมืองหลวงของออสเตรเลียคือเมืองใด", 5, 8),
        ("Translate 你好 to English, please.", 5, 5),
        ("字", 1, 1),
        ("", 0, 0),
    ],
)
def test_length_in_words_fits_the_script(text: str, low: int, high: int):
    assert low <= count_words(text) <= high
