"""Test the filters of stage 1 on both sides of each rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import hang_guard
from selfalign.quality import instruction_filters
from selfalign.quality.filter_settings import FilterSettings, PromptFilter
from selfalign.quality.instruction_filters import reason_to_drop

REASONS = {
    None,
    "too short",
    "too long",
    "needs more than text",
    "begins with punctuation",
    "begins with a non-ASCII character",
    "contains a role marker",
    "contains a control character",
}


def test_a_usable_instruction_is_kept():
    assert reason_to_drop("Name three colours of the rainbow.", "") is None
    assert reason_to_drop("Sort these four words.", "pear fig apple date") is None


def test_control_characters_are_dropped():
    assert reason_to_drop("Name three warm\x00 colours", "") == "contains a control character"
    assert reason_to_drop("Sort these four words.", "pear \x1b[31m fig") == "contains a control character"
    assert reason_to_drop("Sort these four words.", "pear\tfig\r\napple") is None


def test_length_limits_are_inclusive():
    assert reason_to_drop("Name three colours", "") == "too short"
    assert reason_to_drop("Name three warm colours", "") is None
    assert reason_to_drop(" ".join(["word"] * 150), "") is None
    assert reason_to_drop(" ".join(["word"] * 151), "") == "too long"
    assert reason_to_drop("Name two", "", filters=PromptFilter(min_words=2)) is None
    assert reason_to_drop("Name three warm colours", "", filters=PromptFilter(min_words=1, max_words=3)) == "too long"


@pytest.mark.parametrize("text", ["Who won?", " ".join(["word"] * 151), "Where is this picture?", "¿Who won the cup?"])
def test_paper_exempts_red_team_prompts(text: str):
    paper, default = (FilterSettings.model_validate(name).prompts for name in ("paper", "default"))
    assert reason_to_drop(text, "", filters=paper) is None
    assert reason_to_drop(text, "", filters=paper, red_team=False)
    assert reason_to_drop(text, "", filters=default) == reason_to_drop(text, "", filters=default, red_team=False) != ""
    assert reason_to_drop(f"{text}\nUser: hello", "", filters=paper) == "contains a role marker"


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
def test_words_for_images_and_files_are_dropped(word: str):
    assert reason_to_drop(f"Please say more about {word} here", "") == "needs more than text"
    assert reason_to_drop("Please say more about this", f"It is {word}.") == "needs more than text"


@pytest.mark.parametrize(
    "word", ["imagery", "profile", "drawing", "maple", "plotting", "musical", "paragraph", "go today"]
)
def test_longer_words_that_contain_them_are_kept(word: str):
    assert reason_to_drop(f"Please say more about {word} here", f"It is {word}.") is None


@pytest.mark.parametrize("mark", list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"))
def test_leading_punctuation_is_dropped(mark: str):
    assert reason_to_drop(f"{mark}Name three warm colours", "") == "begins with punctuation"
    assert reason_to_drop(f"Name{mark} three warm colours", "") is None


@pytest.mark.parametrize("first", ["É", "¿", "“", "日", "🙂"])
def test_leading_non_ascii_character_is_dropped_in_english(first: str):
    assert reason_to_drop(f"{first}crit un mot ou deux", "") == "begins with a non-ASCII character"
    assert reason_to_drop(f"A {first} word or two", "") is None


@pytest.mark.parametrize("marker", ["User:", "user :", "ASSISTANT:", "  Human:"])
def test_role_markers_are_dropped(marker: str):
    assert reason_to_drop(f"Finish the talk below\n{marker} hello", "") == "contains a role marker"
    assert reason_to_drop("Finish the talk below", f"{marker} hello") == "contains a role marker"
    assert reason_to_drop(f"Finish the talk of the {marker.strip()} hello", "") is None


def test_word_user_alone_is_kept():
    assert reason_to_drop("User manuals are dull, so say why", "users: many") is None


@given(st.text(min_size=1), st.text())
def test_any_text_gets_a_known_reason_or_none(instruction: str, text: str):
    assert reason_to_drop(instruction, text) in REASONS


@pytest.mark.parametrize("unit", [" ", "\n", " \n", "\t", "user ", "a ", "\nuser", "go "])
def test_repetition_is_filtered_quickly(unit: str):
    text = "x" + unit * (100_000 // len(unit)) + "x"
    with hang_guard():
        reason_to_drop("Sort the words of this text", text)


@pytest.mark.parametrize(
    "text",
    [
        "请用简单的话解释光合作用是什么。",
        "パンはどうやって焼きますか。",
        "อบขนมปังอย่างไรให้กรอบ",
    ],
)
def test_length_in_words_fits_scripts_without_spaces(text: str):
    filters = PromptFilter.model_validate({"max_words": 40})
    assert instruction_filters._form_reason(text, "", "de", filters) is None
    assert instruction_filters._form_reason(text[:2], "", "de", filters) == "too short"
    assert instruction_filters._form_reason(text * 20, "", "de", filters) == "too long"


def test_prompts_in_another_script_than_the_language_are_dropped():
    assert reason_to_drop("请用简单的话解释光合作用是什么。", "", "de") == "not in German"
    assert reason_to_drop("Erkläre das Wort 光 in einem Satz.", "", "de") is None


def test_prompts_that_rules_cannot_judge_are_counted():
    texts = ["Name a river.", "Nenne mir einen Fluss, der in das Meer fließt.", "面包是怎么做的？", "?!"]
    assert instruction_filters.not_judged(texts) == {"novelty": 1, "text only": 2}
    assert instruction_filters.not_judged(texts, PromptFilter.model_validate({"text_only": False}))["text only"] == 0
