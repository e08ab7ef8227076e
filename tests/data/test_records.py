"""Test JSONL records: they read back as written, and errors name file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selfalign.data.records import (
    Drop,
    Prompt,
    Response,
    Topic,
    content_hash,
    join_input,
    json_lines,
    line,
    prompt_id,
    read_jsonl,
    write_jsonl,
)
from selfalign.errors import UserError
from selfalign.evaluation.records import Answer, Score

texts = st.text(max_size=30) | st.sampled_from(["\u2028", "\u2029", "\x85", "\r\n", "\x00", '"\\', "\x1b[2J", "🙂"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    instruction, text = draw(texts.filter(str.strip)), draw(texts)
    split = draw(st.sampled_from(["train", "heldout"]))
    return Prompt(prompt_id(instruction, text), instruction, text, draw(texts), draw(texts), draw(texts), split)


@st.composite
def responses(draw: st.DrawFn) -> Response:
    numbers = draw(st.lists(st.integers(), max_size=3))
    split = draw(st.sampled_from(["train", "heldout"]))
    fields = [draw(texts) for _ in range(4)]
    return Response(draw(texts), *fields[:3], fields[3], numbers, draw(texts), draw(texts), split)


@given(st.lists(prompts(), max_size=5, unique_by=lambda p: p.id))
@example([Prompt(prompt_id("a\u2028b", "c\u2029d"), "a\u2028b", "c\u2029d")])
@example([])
def test_prompts_are_read_back_as_written(folder: Path, rows: list[Prompt]):
    write_jsonl(folder / "prompts.jsonl", rows)
    assert read_jsonl(folder / "prompts.jsonl", Prompt) == rows


@given(st.lists(responses(), max_size=5, unique_by=lambda r: r.id))
def test_responses_are_read_back_as_written(folder: Path, rows: list[Response]):
    write_jsonl(folder / "responses.jsonl", rows)
    assert read_jsonl(folder / "responses.jsonl", Response) == rows


@given(st.lists(prompts(), max_size=4))
def test_record_is_one_line(rows: list[Prompt]):
    text = "".join(line(row) for row in rows)
    assert text.count("\n") == len(rows)
    assert [json.loads(one)["id"] for one in text.split("\n") if one] == [r.id for r in rows]


def test_other_records_are_read_back_as_written(tmp_path: Path):
    for kind, rows in {
        Topic: [Topic("a", "b"), Topic("a", "c")],
        Score: [Score("b", "m", "base", "p", 3, 0.5), Score("b", "m", "final", "p", 3, 0.5, 0.1, 0.9, "base", 0.0)],
        Answer: [Answer("1", "m", "base", "x", True, 1), Answer("1", "m", "final", "y", False, 1)],
        Drop: [Drop("align", "1", "dropped", "empty", "")],
    }.items():
        write_jsonl(tmp_path / "rows.jsonl", rows)
        assert read_jsonl(tmp_path / "rows.jsonl", kind) == rows


def _read(tmp_path: Path, text: str | bytes, kind: type = Prompt) -> list:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_jsonl(file, kind)


GOOD = '{"id": "1", "instruction": "Sort."}\n'


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path):
    rows = _read(tmp_path, b'\xef\xbb\xbf{"instruction": "a"}\r\n\r\n{"instruction": "b"}')
    assert [r.instruction for r in rows] == ["a", "b"]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path):
    assert _read(tmp_path, '{"instruction": "a\u2028b\u0085c"}')[0].instruction == "a\u2028b\u0085c"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1", "instruction": "x", "inptu": "y"}', "unknown key 'inptu'"),
        ('{"id": "1"}', "the key 'id' is missing|the key 'instruction' is missing"),
        ('{"input": "y"}', "the key '(id|instruction)' is missing"),
        ('{"instruction": 5}', "missing|instruction is 5, not str"),
        ('{"id": "1", "instruction": 5}', "instruction is 5, not str"),
        ('{"instruction": "x", "input": 5}', "input is 5, not str"),
        ('{"instruction": "x", "input": null}', "input is None, not str"),
        ('{"instruction": "x", "split": "test"}', "split is 'test', not train or heldout"),
        ('{"instruction": "x", "split": ["train"]}', "split is"),
        ("{not json", "is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("5", "is not a JSON object"),
    ],
)
def test_a_wrong_row_names_file_and_line(tmp_path: Path, line: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        _read(tmp_path, f"{GOOD}\n{line}\n")
    assert "rows.jsonl:3" in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("principles", ['"3"', "[1.5]", '["1"]', "[true]", "null", "3"])
def test_principles_that_are_no_list_of_numbers_are_refused(tmp_path: Path, principles: str):
    line = f'{{"id": "1", "instruction": "x", "input": "", "response": "r", "principles": {principles}}}'
    with pytest.raises(UserError, match=r"rows\.jsonl:1: principles is .*, not list\[int\]"):
        _read(tmp_path, line, Response)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"rows\.jsonl:1 is not UTF-8 \(byte 5\)"):
        _read(tmp_path, b'{"a":\xff}')


def test_missing_file_error_names_the_stage_to_run(tmp_path: Path):
    with pytest.raises(UserError, match="is missing: run the stage before this one"):
        read_jsonl(tmp_path / "none.jsonl", Prompt)


def test_lone_surrogate_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"rows\.jsonl:1"):
        write_jsonl(tmp_path / "out.jsonl", _read(tmp_path, '{"instruction": "half an emoji: \\ud83d"}'))


def test_an_edited_prompt_gets_the_id_of_its_content(tmp_path: Path):
    write_jsonl(tmp_path / "rows.jsonl", [Prompt(prompt_id("Sort.", ""), "Sort.")])
    file = tmp_path / "rows.jsonl"
    file.write_text(file.read_text("utf-8").replace("Sort.", "Count."), "utf-8")
    row = read_jsonl(file, Prompt)[0]
    assert row.instruction == "Count."
    assert row.id == prompt_id("Count.", "") != prompt_id("Sort.", "")


def test_manually_added_prompt_needs_no_id(tmp_path: Path):
    row = _read(tmp_path, '{"instruction": "Sort.", "input": "b a"}')[0]
    assert (row.id, row.source, row.split) == (prompt_id("Sort.", "b a"), "user", "train")


def test_first_of_duplicate_rows_is_kept(tmp_path: Path):
    rows = _read(tmp_path, '{"instruction": "a", "topic": "1"}\n{"instruction": "b"}\n{"instruction": "a"}\n')
    assert [(r.instruction, r.topic) for r in rows] == [("a", "1"), ("b", "")]


def test_the_message_joins_instruction_and_input():
    assert join_input("Sort.", "") == Prompt("1", "Sort.").message == "Sort."
    assert join_input("Sort.", "b a") == Prompt("1", "Sort.", "b a").message == "Sort.\n\nb a"
    assert Response("1", "Sort.", "b a", "a b").message == "Sort.\n\nb a"


def test_content_hash_separates_its_parts():
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert len(content_hash("\ud800")) == 16


def test_json_lines_yields_line_numbers(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(json_lines(tmp_path / "x.jsonl")) == [(1, {"a": 1}), (3, {"a": 2})]
