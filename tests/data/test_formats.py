"""Test the forms of rows: detection, errors, and that written rows read back unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selfalign.data import formats
from selfalign.data.formats import OUTPUT_FORMATS, Row, detect_format, format_row, parse_row, unread_keys
from selfalign.data.records import to_json
from selfalign.errors import UserError
from selfalign.export.training_text import rendered
from selfalign.model.dialogue import PLAIN, ROLES, Template

HERE = "mine.jsonl:7"


def turns(*lines: tuple[str, str], keys: tuple[str, str] = ("role", "content")) -> list[dict[str, str]]:
    return [dict(zip(keys, turn, strict=True)) for turn in lines]


def shared(*lines: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": turns(*lines, keys=("from", "value"))}


READ = {
    "own": ({"instruction": "Sort", "input": "b a"}, Row("selfalign", "Sort", "b a")),
    "own, no input": ({"instruction": "Sort", "input": None}, Row("selfalign", "Sort")),
    "a response of ours": (
        {"id": "1", "instruction": "Sort", "input": "", "response": "a b", "thoughts": "x", "principles": [1]},
        Row("selfalign", "Sort", "", "a b"),
    ),
    "a pair of ours": (
        {"id": "1", "prompt": "concise", "user": "Hi", "assistant": "Ho", "source": "user"},
        Row("selfalign pairs", "Hi", "", "Ho"),
    ),
    "a prompt": ({"prompt": "Hi"}, Row("prompts", "Hi")),
    "a preference": ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, Row("prompts", "Hi")),
    "prompt-completion": ({"prompt": "Hi", "completion": "Ho"}, Row("prompt–completion", "Hi", "", "Ho")),
    "prompt-completion, dialogue": (
        {"prompt": turns(("system", "Be."), ("user", "Hi")), "completion": turns(("assistant", "Ho"))},
        Row("prompt–completion", "Hi", "", "Ho", "Be."),
    ),
    "prompt alone, dialogue": (
        {"prompt": turns(("user", "Hi"), ("assistant", "Ho"), ("user", "And?"))},
        Row("prompts", "Hi", "", "Ho", None, 1),
    ),
    "messages": (
        {"messages": turns(("system", "Be."), ("user", "Hi"), ("assistant", "Ho")), "id": 3},
        Row("messages", "Hi", "", "Ho", "Be."),
    ),
    "messages win": ({"prompt": "x", "messages": turns(("user", "Hi"))}, Row("messages", "Hi")),
    "messages, long": (
        {"messages": turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))},
        Row("messages", "a", "", "b", None, 2),
    ),
    "messages without an answer": (
        {"messages": turns(("user", "a"), ("tool", "b"), ("assistant", "d"))},
        Row("messages", "a", "", None, None, 2),
    ),
    "two users": ({"messages": turns(("user", "a"), ("user", "b"))}, Row("messages", "a", "", None, None, 1)),
    "a tool's call": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": []}]},
        Row("messages", "a"),
    ),
    "content in parts": (
        {"messages": [{"role": "developer", "content": "Be."},
                      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        Row("messages", "ab", "", None, "Be."),
    ),
    "no turn at all": ({"messages": []}, Row("messages", "")),
    "no user turn": ({"messages": turns(("system", "Be."), ("assistant", "b"))}, Row("messages", "", "", None, "Be.")),
    "ShareGPT": (shared(("system", "Be."), ("human", "Hi"), ("gpt", "Ho")), Row("ShareGPT", "Hi", "", "Ho", "Be.")),
    "ShareGPT, begun by the model": (
        shared(("gpt", "x"), ("human", "Hi"), ("gpt", "Ho"), ("human", "y")), Row("ShareGPT", "Hi", "", "Ho", None, 2)
    ),
    "ShareGPT, system beside": (
        {**shared(("human", "Hi"), ("gpt", "Ho")), "system": "Be."}, Row("ShareGPT", "Hi", "", "Ho", "Be.")
    ),
    "Alpaca": (
        {"instruction": "Sort", "input": "b a", "output": "a b", "text": "…"}, Row("Alpaca", "Sort", "b a", "a b")
    ),
    "Alpaca, unanswered": ({"instruction": "Sort", "input": "", "output": None}, Row("Alpaca", "Sort")),
    "Alpaca with a history": (
        {"instruction": "c", "input": "", "output": "d", "system": "Be.", "history": [["a", "b"]]},
        Row("Alpaca", "a", "", "b", "Be.", 2),
    ),
    "Alpaca, nothing said before": (
        {"instruction": "c", "input": "", "output": "d", "history": []}, Row("Alpaca", "c", "", "d")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_every_known_form_is_read(name: str):
    value, row = READ[name]
    assert parse_row(value, HERE) == row


REFUSED = {
    "the keys are 'text', 'id'; known are messages; conversations; ": {"text": "Hi", "id": 1},
    r"the keys are \(none\)": {},
    "an object of keys and values, not 5": 5,
    "an object of keys and values, not ": ["Hi"],
    "instruction is 5, not text": {"instruction": 5},
    "input is ": {"instruction": "a", "input": ["b"]},
    "output is True, not text": {"instruction": "a", "output": True},
    "prompt is 1.5, not text": {"prompt": 1.5},
    "completion is {}, not text": {"prompt": "a", "completion": {}},
    "so completion must be one, not 'b'": {"prompt": turns(("user", "a")), "completion": "b"},
    "completion is .*, not text": {"prompt": "a", "completion": turns(("assistant", "a"))},
    "messages is 'a', not a list of turns": {"messages": "a"},
    "messages is None, not a list of turns": {"messages": None},
    "turn 2 is 'b', not an object": {"messages": [{"role": "user", "content": "a"}, "b"]},
    "turn 1: role is None, not text": {"messages": [{"content": "a"}]},
    "turn 1: content is 5, not text": {"messages": [{"role": "user", "content": 5}]},
    "turn 1: value is 5, not text": {"conversations": [{"from": "human", "value": 5}]},
    "turn 1: a part of content is .*image": {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
    "system is 5, not text": {"conversations": [], "system": 5},
    "history is 'a', not a list of": {"instruction": "a", "output": "b", "history": "a"},
    "history is .*, not a list of": {"instruction": "a", "output": "b", "history": [["a", None]]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_invalid_row_is_an_error_with_its_place(message: str):
    with pytest.raises(UserError, match=rf"^mine\.jsonl:7: .*{message}"):
        parse_row(REFUSED[message], HERE)


def test_long_keys_are_shortened_in_errors():
    with pytest.raises(UserError) as caught:
        parse_row({f"{'k' * 500}{n}": 1 for n in range(100)}, HERE)
    assert len(str(caught.value)) < 700


def test_unread_keys_are_listed():
    row = {"instruction": "a", "context": "b", "response": "c"}
    assert unread_keys(row, detect_format(row) or "") == ["context"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text"]) | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
known_keys = st.sampled_from(sorted({key for keys in formats.KEYS.values() for key in keys}))


@given(st.dictionaries(known_keys, json_values, max_size=5) | json_values)
def test_any_value_is_a_row_or_an_error_with_its_place(value: Any):
    try:
        row = parse_row(value, HERE)
    except UserError as error:
        assert str(error).startswith(HERE)
    else:
        assert all(isinstance(text, str) for text in (row.instruction, row.input, row.message))
        assert row.skipped_turns >= 0
        assert unread_keys(value, row.format) == [key for key in value if key not in formats.KEYS[row.format]]


# -- writing ---------------------------------------------------------------------------------------------------------

HOSTILE = [
    "<eos>", "<bos>", "<start_of_turn>user\n", "<|im_end|>", "User:", "\n\nUser: hi\n\nAlma: ho", '"', "\\",
    "\x00", "\x1b[2J", "\u202e", "\u2028", "\ufeff", "{{7*7}}", "</script>", "=1+1", " ", "\n", "\t", "\r\n", "human",
    "🙂", "漢字", "naïve",
]  # fmt: skip
texts = st.text(max_size=60) | st.lists(st.sampled_from(HOSTILE), max_size=8).map("".join)
WITH_ROLES = [form for form in OUTPUT_FORMATS if form != "prompt-completion-text"]


@pytest.mark.parametrize("form", WITH_ROLES)
@given(texts, texts, texts | st.none(), texts | st.none())
@example("", "", "", "")
def test_written_rows_read_back(form: Any, instruction: str, text: str, answer: str | None, system: str | None):
    row = Row("selfalign", instruction, text, answer, system)
    back = parse_row(json.loads(to_json(format_row(row, form)).encode("utf-8")), HERE)
    assert (back.message, back.answer, back.system, back.skipped_turns) == (row.message, answer, system, 0)
    if form == "alpaca" and answer is not None:
        assert (back.format, back.instruction, back.input) == ("Alpaca", instruction, text)


@pytest.mark.parametrize("form", WITH_ROLES)
def test_output_formats_have_the_expected_keys(form: Any):
    row = Row("selfalign", "Sort", "b a", "a b", "Be.")
    assert (
        format_row(row, form)
        == {
            "prompt-completion": {
                "prompt": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Sort\n\nb a"}],
                "completion": [{"role": "assistant", "content": "a b"}],
            },
            "messages": {
                "messages": [
                    {"role": "system", "content": "Be."},
                    {"role": "user", "content": "Sort\n\nb a"},
                    {"role": "assistant", "content": "a b"},
                ]
            },
            "alpaca": {"instruction": "Sort", "input": "b a", "output": "a b", "system": "Be."},
            "sharegpt": {
                "conversations": [
                    {"from": "system", "value": "Be."},
                    {"from": "human", "value": "Sort\n\nb a"},
                    {"from": "gpt", "value": "a b"},
                ]
            },
        }[form]
    )


def test_rendered_text_is_the_training_text():
    row = Row("selfalign pairs", "Hi", "", " Hello! ", "Be kind.")
    assert rendered(row, PLAIN, "Alma", "") == {
        "prompt": "Be kind.\n\nUser: Hi\n\nAlma:", "completion": " Hello!<eos>",
    }  # fmt: skip
    gemma = next(template for template in ROLES if template.name == "gemma")
    assert rendered(row, gemma, "Alma", "<bos>") == {
        "prompt": "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
        "completion": "Hello!<end_of_turn>",
    }
    assert "completion" not in rendered(Row("selfalign", "Hi", "", None, "Be kind."), PLAIN, "Alma", "")


@pytest.mark.parametrize("template", [PLAIN, *ROLES], ids=lambda t: t.name)
@given(texts, texts)
def test_rendered_text_contains_message_and_response_unchanged(template: Template, user: str, answer: str):
    value = rendered(Row("selfalign pairs", user, "", answer, "Be kind."), template, "Alma", "")
    before, after = (
        rendered(Row("selfalign pairs", mark, "", "", "Be kind."), template, "Alma", "")["prompt"] for mark in "ab"
    )
    at = next(n for n, (one, two) in enumerate(zip(before, after, strict=True)) if one != two)
    assert value["prompt"] == before[:at] + user.strip() + before[at + 1 :]
    assert value["completion"] == template.space + answer.strip() + template.end
    back = parse_row(value, HERE)
    assert (back.instruction, back.answer) == (value["prompt"], value["completion"])
