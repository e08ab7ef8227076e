"""Test the forms of rows: detection, errors, and that written rows read back unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import hang_guard
from selfalign.data import formats
from selfalign.data.formats import OUTPUT_FORMATS, Row, format_row, parse_row
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
    "a preference": ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, Row("preferences", "Hi", "", "a")),
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
    "a tool's result": (
        {"messages": turns(("user", "a"), ("tool", "b"), ("assistant", "d"))},
        Row("messages", "a", "", None, None, 2, "has a tool call"),
    ),
    "two users": ({"messages": turns(("user", "a"), ("user", "b"))}, Row("messages", "a\n\nb")),
    "no call of a tool": (
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
    "roles in any case": (
        {"messages": turns((" System", "Be."), ("USER:", "Hi"), ("<|assistant|>", "Ho"))},
        Row("messages", "Hi", "", "Ho", "Be."),
    ),
    "system turns anywhere": (
        {"messages": turns(("system", "A."), ("user", "Hi"), ("system", "B."), ("assistant", "Ho"))},
        Row("messages", "Hi", "", "Ho", "A.\n\nB."),
    ),
    "a response in two turns": (
        {"messages": turns(("user", "Hi"), ("assistant", "Ho"), ("assistant", "Ha"), ("user", "c"))},
        Row("messages", "Hi", "", "Ho\n\nHa", None, 1),
    ),
    "turns as JSON": ({"messages": json.dumps(turns(("user", "Hi")))}, Row("messages", "Hi")),
    "turns as columns": (
        {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Ho"], "weight": None}},
        Row("ShareGPT", "Hi", "", "Ho"),
    ),
    "a turn padded by Arrow": (
        {"messages": [{"role": "user", "content": "Hi", "from": None, "value": None, "tool_calls": None}, None]},
        Row("messages", "Hi"),
    ),
    "columns padded by Arrow": (
        {"messages": None, "conversations": [], "instruction": None, "prompt": "Hi", "completion": "Ho", "image": None},
        Row("prompt–completion", "Hi", "", "Ho"),
    ),
    "reasoning and a response": (
        {"messages": [{"role": "user", "content": ["Hi"]},
                      {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, {"text": "Ho"}]}]},
        Row("messages", "Hi", "", "Ho"),
    ),
    "an unknown role": (
        {"messages": turns(("user", "Hi"), ("narrator", "Ho"))},
        Row("messages", "Hi", "", None, None, 1, "has a turn of an unknown role"),
    ),
    "a tool call of a part": (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "tool_use"}]}]},
        Row("messages", "Hi", "", "", None, 0, "has a tool call"),
    ),
    "a function of ShareGPT": (
        shared(("human", "Hi"), ("Function-Call", "{}"), ("observation", "7"), ("gpt", "Ho")),
        Row("ShareGPT", "Hi", "", None, None, 3, "has a tool call"),
    ),
    "a later tool call": (
        {"messages": [*turns(("user", "Hi"), ("assistant", "Ho"), ("user", "And?")), {"role": "assistant",
                      "content": None, "tool_calls": [{"id": "1"}]}]},
        Row("messages", "Hi", "", "Ho", None, 2),
    ),
    "tools beside": (
        {"messages": turns(("user", "Hi"), ("assistant", "Ho")), "tools": [{"name": "x"}]},
        Row("messages", "Hi", "", "Ho", None, 0, "offers tools"),
    ),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image"}]}]},
        Row("messages", "Hi", "", None, None, 0, "has an image or another file"),
    ),
    "turns as pairs": (
        {"conversation": [{"human": "Hi", "assistant": "Ho"}, {"question": "And?", "answer": "So."}]},
        Row("dialogue", "Hi", "", "Ho", None, 2),
    ),
    "a lone surrogate": ({"prompt": "Hi\ud83d"}, Row("prompts", "Hi?", problem="has a lone surrogate")),
    "a passage beside a dialogue": (
        {"messages": turns(("user", "Who?")), "document": "Mara keeps bees."},
        Row("messages", "Who?", "Mara keeps bees."),
    ),
    "passages and choices": (
        {"question": "Who?", "contexts": ["Mara.", "Jon."], "choices": {"label": ["A", "B"], "text": ["M", "J"]},
         "answer": "A"}, Row("question–answer", "Who?", "Mara.\nJon.\n\nA. M\nB. J", "A"),
    ),
    "a question beside an instruction": (
        {"instruction": "Answer.", "question": "Who?", "output": "Mara."}, Row("Alpaca", "Answer.", "Who?", "Mara."),
    ),
    "a prompt that contains the question": (
        {"prompt": "Answer:  Who?", "question": "Who?", "answer": "M."},
        Row("question–answer", "Answer:  Who?", "", "M."),
    ),
    "a context alone": ({"Context": "I am sad.", "Response": "Why?"}, Row("question–answer", "I am sad.", "", "Why?")),
    "text beside, a passage": (
        {"instruction": "Sort", "text": "b a", "output": "a b"}, Row("Alpaca", "Sort", "b a", "a b"),
    ),
    "text beside, rendered": (
        {"prompt": "Name\nit.", "completion": "Ho", "text": "USER: Name it. ASSISTANT: Ho"},
        Row("prompt–completion", "Name\nit.", "", "Ho"),
    ),
    "a transcript to be completed": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Ho", "rejected": "Ha"}, Row("preferences", "Hi", "", "Ho"),
    ),
    "a completion in turns": (
        {"prompt": "a", "completion": turns(("assistant", "b"))}, Row("prompt–completion", "a", "", "b"),
    ),
    "a prompt in turns": ({"prompt": turns(("user", "a")), "completion": "b"}, Row("prompt–completion", "a", "", "b")),
    "nothing but nulls": ({"messages": None, "text": None}, Row("messages", "")),
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
    "the keys are 'text', 'id'; known are messages or conversations": {"text": "Hi", "id": 1},
    r"the keys are \(none\)": {},
    "an object of keys and values, not 5": 5,
    "an object of keys and values, not ": ["Hi"],
    "instruction is 5, not text": {"instruction": 5},
    "input is ": {"instruction": "a", "input": [5]},
    "output is True, not text": {"instruction": "a", "output": True},
    "prompt is 1.5, not text": {"prompt": 1.5},
    "completion is {'a': 1}, not text": {"prompt": "a", "completion": {"a": 1}},
    "'text' may be a passage or the response": {"prompt": "Name the colour.", "text": "The door is red."},
    "messages is 'a', not a list of turns": {"messages": "a"},
    "messages is '.a', not a list of turns": {"messages": "[a"},
    "unknown row format: the keys are 'data'": {"data": [{"instruction": "a", "output": "b"}]},
    "turn 2 is 'b', not an object": {"messages": [{"role": "user", "content": "a"}, "b"]},
    "turn 1: role is None, not text": {"messages": [{"content": "a"}]},
    "turn 1: content is 5, not text": {"messages": [{"role": "user", "content": 5}]},
    "turn 1: value is 5, not text": {"conversations": [{"from": "human", "value": 5}]},
    "turn 1: a part of content is 5, not text": {"messages": [{"role": "user", "content": [5]}]},
    "turn 1: a part of content is .*, not text": {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    "system is 5, not text": {"conversations": [], "system": 5},
    "history is 'a', not a list of turns": {"instruction": "a", "output": "b", "history": "a"},
    "turn 1 is .'a', None., not an object": {"instruction": "a", "output": "b", "history": [["a", None]]},
    "instances is .'a'., not a list of input and output": {"instruction": "a", "instances": ["a"]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_invalid_row_is_an_error_with_its_place(message: str):
    with pytest.raises(UserError, match=rf"^mine\.jsonl:7: .*{message}"):
        parse_row(REFUSED[message], HERE)


def test_long_keys_are_shortened_in_errors():
    with pytest.raises(UserError) as caught:
        parse_row({f"{'k' * 500}{n}": 1 for n in range(100)}, HERE)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "key", ["context", "Passage", "paragraph", "article", "document", "source text", "options", "facts", "Content"]
)
def test_a_passage_is_never_left_out(key: str):
    assert parse_row({"question": "Who?", key: "Mara.", "answer": "M."}, HERE).message == "Who?\n\nMara."


TRANSCRIPTS = [
    "\n\nHuman: {}\n\nAssistant: {}", "### Human: {}### Assistant: {}", "### Instruction:\n{}\n\n### Response:\n{}",
    "[|Human|] {}\n[|AI|] {}\n[|Human|]", "<s>[INST] {} [/INST] {} </s>", "<human>: {}\n<bot>: {}",
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n", "USER: {}\nASSISTANT: {}<|endoftext|>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>\n",
    "<|user|>\n{}</s>\n<|assistant|>\n{}</s>\n",
]  # fmt: skip


@pytest.mark.parametrize("form", TRANSCRIPTS)
@given(*(st.text("ab é.?\n🙂", min_size=1).filter(str.strip) for _ in range(2)))
def test_transcript_is_split_into_its_turns(form: str, message: str, answer: str):
    row = parse_row({"text": form.format(message, answer)}, HERE)
    assert (row.message, row.answer, row.system) == (message.strip(), answer.strip(), None)


@pytest.mark.parametrize(
    "prompt",
    ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "[INST] Hi [/INST]", "\n\nHuman: Hi\n\nAssistant:",
     "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"],
)  # fmt: skip
def test_open_turn_of_a_rendered_prompt_is_no_response(prompt: str):
    row = parse_row({"prompt": prompt}, HERE)
    assert (row.message, row.answer) == ("Hi", "")


def test_system_text_of_a_transcript_is_separate():
    text = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Ho </s><s>[INST] And? [/INST] Yes </s>"
    assert parse_row({"text": text}, HERE) == Row("transcript", "Hi", "", "Ho", "Be brief.", 2)
    text = "A chat with Alma.\nUSER: Hi\nASSISTANT: Ho"
    assert parse_row({"chat": text}, HERE) == Row("transcript", "Hi", "", "Ho", "A chat with Alma.")


@pytest.mark.parametrize(
    "text", ["[INST]" * 20_000, "Human:" + "\n" * 200_000 + "Assistant:", "### Human:" * 20_000, "<"]
)
def test_long_transcripts_take_linear_time(text: str):
    with hang_guard():
        parse_row({"prompt": text}, HERE)
        parse_row({"text": f"USER: a\nASSISTANT: {text}"}, HERE)


RESPONSES = {
    "kto_tag is false": (shared(("human", "Hi"), ("gpt", "Go")) | {"kto_tag": False}, None),
    "kto_tag is true": (shared(("human", "Hi"), ("gpt", "Ho")) | {"kto_tag": True}, "Ho"),
    "label of a CSV file": ({"prompt": "Hi", "completion": "Go", "label": "False"}, None),
    "label of a class": ({"instruction": "Hi", "output": "Ho", "label": False}, "Ho"),
    "weight 0": ({"messages": [{"role": "user", "content": "Hi"},
                               {"role": "assistant", "content": "Go", "weight": 0}]}, None),
    "weight 1": ({"messages": [{"role": "user", "content": "Hi"},
                               {"role": "assistant", "content": "Ho", "weight": 1}]}, "Ho"),
    "best of several": ({"prompt": "Hi", "completions": [{"text": "Go", "rank": 2}, {"text": "Ho", "rank": 1}]}, "Ho"),
    "beside one message": ({"messages": turns(("user", "Hi")), "answer": "Ho"}, "Ho"),
    "beside a dialogue": ({"messages": turns(("user", "Hi"), ("assistant", "Ho")), "answer": "5"}, "Ho"),
    "metadata beside one message": ({"messages": turns(("user", "Hi")), "answer": {"score": 1}}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", RESPONSES)
def test_only_good_responses_are_read(name: str):
    value, answer = RESPONSES[name]
    row = parse_row(value, HERE)
    assert (row.message, row.answer, row.problem) == ("Hi", answer, "")


CALLS = [
    '<tool_call>\n{"name": "f"}\n</tool_call>', 'Let me see. <tool_call> {"name": "f"}</tool_call>',
    'So:[TOOL_CALLS][{}]',
    '<function=weather>{"city": "Oslo"}</function>', "<｜tool▁calls▁begin｜>f", '<|tool_call|>[{"name": "f"}]',
    "I call it.\n<function_calls>\n<invoke>", "```tool_code\nf()\n```", "<|tool_calls_section_begin|>f",
]  # fmt: skip


@pytest.mark.parametrize("text", CALLS)
def test_tool_calls_in_texts_are_found(text: str):
    assert parse_row({"prompt": "Hi", "completion": text}, HERE).problem == "has a tool call"


@pytest.mark.parametrize("text", ["A call begins with <tool_call> or [TOOL_CALLS].", "Write `<function=name>` there."])
def test_a_text_about_tool_calls_is_a_response(text: str):
    assert not parse_row({"prompt": "Hi", "completion": text}, HERE).problem


def test_padding_of_parts_and_lists_is_ignored():
    parts = [{"type": "text", "text": None}, {"type": "text", "text": "Hi"}]
    row = parse_row({"messages": [{"role": "user", "content": parts}], "images": [None], "tools": [None]}, HERE)
    assert (row.message, row.problem) == ("Hi", "")


@pytest.mark.parametrize("nothing", [float("nan"), None, "<noinput>", "<No input>", ""])
def test_an_input_may_say_that_there_is_none(nothing: object):
    assert parse_row({"instruction": "Hi", "input": nothing, "output": "Ho"}, HERE).input == ""


@pytest.mark.parametrize(
    "choices",
    [{"A": "red", "B": "blue", "C": None}, {"text": ["red", "blue"], "label": ["A", "B"]}, ["A. red", "B. blue"]],
)  # fmt: skip
def test_choices_are_a_part_of_the_question(choices: Any):
    assert parse_row({"question": "Which?", "options": choices, "answer": "red"}, HERE).input == "A. red\nB. blue"


def test_of_a_list_of_messages_the_first_is_read():
    row = parse_row({"prompt": ["Hi", "And?"], "reference": [], "prompt_id": 5}, HERE)
    assert (row.message, row.answer, row.skipped_turns) == ("Hi", None, 1)


def test_unread_keys_are_listed():
    row = {"Instruction": "a", "Context": "b", "Response": "c", "category": "d", "rejected": "e", "messages": None}
    assert parse_row(row, HERE).unread == ("category", "rejected")


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
known_keys = st.sampled_from(sorted(formats.KNOWN_KEYS))


@given(st.dictionaries(known_keys, json_values, max_size=5) | json_values)
def test_any_value_is_a_row_or_an_error_with_its_place(value: Any):
    try:
        row = parse_row(value, HERE)
    except UserError as error:
        assert str(error).startswith(HERE)
    else:
        assert all(isinstance(text, str) for text in (row.instruction, row.input, row.message))
        assert row.skipped_turns >= 0
        assert set(row.unread) <= set(value)


# -- writing ---------------------------------------------------------------------------------------------------------

HOSTILE = [
    "<eos>", "<bos>", "<start_of_turn>user\n", "<|im_end|>", "User:", "\n\nUser: hi\n\nAlma: ho", '"', "\\",
    "\x00", "\x1b[2J", "\u202e", "\u2028", "\ufeff", "{{7*7}}", "</script>", "=1+1", " ", "\n", "\t", "\r\n", "human",
    "🙂", "漢字", "naïve",
]  # fmt: skip
texts = st.text(max_size=60) | st.lists(st.sampled_from(HOSTILE), max_size=8).map("".join)
WITH_ROLES = [form for form in OUTPUT_FORMATS if form not in ("prompt-completion-text", "preference")]


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
