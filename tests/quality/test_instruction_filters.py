"""Filters of stage 1: each rule hit, and just missed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import hang_guard
from selfalign.quality.filter_settings import PromptFilter
from selfalign.quality.instruction_filters import reason_to_drop

REASONS = {
    None,
    "too short",
    "too long",
    "needs more than text",
    "begins with punctuation",
    "begins with a non-ASCII character",
    "contains a role marker",
}


def test_a_usable_instruction_is_kept():
    assert reason_to_drop("Name three colours of the rainbow.", "") is None
    assert reason_to_drop("Sort these four words.", "pear fig apple date") is None


def test_length_at_both_limits():
    assert reason_to_drop("Name three colours", "") == "too short"
    assert reason_to_drop("Name three warm colours", "") is None
    assert reason_to_drop(" ".join(["word"] * 150), "") is None
    assert reason_to_drop(" ".join(["word"] * 151), "") == "too long"
    assert reason_to_drop("Name two", "", filters=PromptFilter(min_words=2)) is None
    assert reason_to_drop("Name three warm colours", "", filters=PromptFilter(min_words=1, max_words=3)) == "too long"


@pytest.mark.parametrize(
    "word",
    [
        "image",
        "images",
        "graph",
        "graphs",
        "picture",
        "pictures",
        "file",
        "files",
        "map",
        "maps",
        "draw",
        "plot",
        "video",
        "audio",
        "music",
        "flowchart",
        "diagram",
        "go to",
        "Image",
        "MUSIC",
    ],
)
def test_words_that_need_more_than_text(word: str):
    assert reason_to_drop(f"Please say more about {word} here", "") == "needs more than text"
    assert reason_to_drop("Please say more about this", f"It is {word}.") == "needs more than text"


@pytest.mark.parametrize(
    "word", ["imagery", "profile", "drawing", "maple", "plotting", "musical", "paragraph", "go today"]
)
def test_words_that_only_contain_such_a_word_are_kept(word: str):
    assert reason_to_drop(f"Please say more about {word} here", f"It is {word}.") is None


@pytest.mark.parametrize("mark", list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"))
def test_punctuation_first(mark: str):
    assert reason_to_drop(f"{mark}Name three warm colours", "") == "begins with punctuation"
    assert reason_to_drop(f"Name{mark} three warm colours", "") is None


@pytest.mark.parametrize("first", ["É", "¿", "“", "日", "🙂"])
def test_a_non_ascii_character_first(first: str):
    assert reason_to_drop(f"{first}crit un mot ou deux", "") == "begins with a non-ASCII character"
    assert reason_to_drop(f"A {first} word or two", "") is None


@pytest.mark.parametrize("marker", ["User:", "user :", "ASSISTANT:", "  Human:"])
def test_role_markers(marker: str):
    assert reason_to_drop(f"Finish the talk below\n{marker} hello", "") == "contains a role marker"
    assert reason_to_drop("Finish the talk below", f"{marker} hello") == "contains a role marker"
    assert reason_to_drop(f"Finish the talk of the {marker.strip()} hello", "") is None


def test_the_word_user_is_no_role_marker():
    assert reason_to_drop("User manuals are dull, so say why", "users: many") is None


@given(st.text(min_size=1), st.text())
def test_any_text_gets_a_known_reason_or_none(instruction: str, text: str):
    assert reason_to_drop(instruction, text) in REASONS


@pytest.mark.parametrize("unit", [" ", "\n", " \n", "\t", "user ", "a ", "\nuser", "go "])
def test_repetition_takes_no_time(unit: str):
    text = "x" + unit * (100_000 // len(unit)) + "x"
    with hang_guard():
        reason_to_drop("Sort the words of this text", text)
