"""The words of a message that name its subject, and whether two texts share one."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.quality.content_words import content_words, same_stem, share_content

WORD = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
TEXT = st.text(max_size=60) | st.lists(WORD, max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("How do I bake bread?", ["bake", "bread"]),
        ("What's the best way to get there?", []),
        ("Tell me about the Moon, please.", ["moon"]),
        ("Isn't 7 a prime number?", ["isn", "7", "prime", "number"]),
        ("Wie heißt du?", ["wie", "heisst", "du"]),
        ("", []),
    ],
)
def test_frame_words_are_no_content(text: str, words: list[str]):
    assert content_words(text) == words


@pytest.mark.parametrize(
    ("a", "b"),
    [("stealing", "steal"), ("wallabies", "wallaby"), ("cat", "cats"), ("poisoned", "poison"), ("make", "making")],
)
def test_forms_of_a_word_have_the_same_stem(a: str, b: str):
    assert same_stem(a, b)


@pytest.mark.parametrize(("a", "b"), [("cat", "dog"), ("poison", "poem"), ("to", "tower"), ("gold", "goal")])
def test_other_words_have_another_stem(a: str, b: str):
    assert not same_stem(a, b)


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        ("How do I bake bread?", "How do I repair it?", False),
        ("Where are the best bakers?", "How do I bake bread?", False),
        ("How do I bake bread?", "How do I bake a big cake?", False),
        ("What is 8 + 2?", "What is 7 plus 8?", False),
        ("What does 🍎 mean?", "What does it mean to be online?", False),
        ("Where are the best bread bakers?", "How do I bake bread?", True),
        ("What is it?", "Where is the moon?", True),
        ("What is 8 + 7?", "What is 7 plus 8?", True),
        ("What does 🍎 mean?", "What does this word mean?", False),
        ("为什么天是蓝的？", "为什么海是咸的？", True),
        ("ทำไมฟ้าจึงเป็นสีฟ้า", "แมวกินอะไร", False),
    ],
)
def test_texts_share_content(a: str, b: str, shared: bool):
    assert share_content(a, b) is shared


@given(TEXT)
def test_words_are_in_the_text_and_idempotent(text: str):
    words = content_words(text)
    assert all(word in unicodedata.normalize("NFC", text.casefold()) for word in words)
    assert content_words(" ".join(words)) == words
    assert content_words(text.upper().lower()) == content_words(text.upper())


@given(WORD, WORD)
def test_same_stem_is_symmetric_and_reflexive(a: str, b: str):
    assert same_stem(a, a)
    assert same_stem(a, b) == same_stem(b, a)
    if a[0] != b[0]:
        assert not same_stem(a, b)


@given(TEXT, TEXT)
def test_share_content_is_symmetric(a: str, b: str):
    assert share_content(a, b) == share_content(b, a)
    assert share_content(a, a)
    assert share_content(a, "what is it?")
