"""Input files of stages that the user may have edited."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfalign.data.records import Prompt, prompt_id, write_jsonl
from selfalign.errors import Resumable, UserError
from selfalign.run.inputs import Rows
from selfalign.run.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def prompt(text: str) -> Prompt:
    return Prompt(prompt_id(text, ""), text)


def rows(tmp_path: Path, journal: Journal, *texts: str) -> Rows[Prompt]:
    write_jsonl(tmp_path / "prompts.jsonl", [prompt(t) for t in texts])
    return Rows(tmp_path / "prompts.jsonl", Prompt, journal, ("self_instruct",))


def test_rows_are_yielded_once_in_order(tmp_path: Path, journal: Journal):
    prompts = rows(tmp_path, journal, "b", "a", "c")
    assert [p.instruction for p in prompts] == ["b", "a", "c"] == [p.instruction for p in prompts]
    assert (len(prompts), list(prompts.removed())) == (3, [])


def test_repeated_row_is_a_duplicate(tmp_path: Path, journal: Journal):
    prompts = rows(tmp_path, journal, "a", "b", "a", "a")
    assert [p.instruction for p in prompts] == ["a", "b"]
    assert len(prompts) == 2
    outcomes = list(prompts.removed())
    assert [(o.state, o.reason, o.text) for o in outcomes] == [("dropped", "duplicate", "a")] * 2
    assert len({o.id for o in outcomes} | {p.id for p in prompts}) == 4
    assert prompts.number_removed == 2


def test_manually_removed_rows_are_dropped(tmp_path: Path, journal: Journal):
    kept = [prompt(t) for t in ("a", "b", "c")]
    journal.record("self_instruct", [(p.id, n, "kept", "", p.message) for n, p in enumerate(kept)])
    prompts = rows(tmp_path, journal, "c", "new", "new")
    removed = [f"{o.reason} {o.text}" for o in prompts.removed()]
    assert removed == ["removed manually a", "removed manually b", "duplicate new"]


def test_file_that_changes_while_read_is_resumable(tmp_path: Path, journal: Journal):
    prompts = rows(tmp_path, journal, "a", "b")
    reading = iter(prompts)
    assert next(reading).instruction == "a"
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"instruction": "c"}\n')
    with pytest.raises(Resumable, match="was changed while it was read"):
        list(reading)
    (tmp_path / "prompts.jsonl").write_text("no json\n")
    os.utime(tmp_path / "prompts.jsonl", (1, 1))
    with pytest.raises(Resumable, match="was changed"):
        list(prompts)


def test_invalid_line_is_reported_first(tmp_path: Path, journal: Journal):
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "a"}\n{"instruction": " "}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl:2: instruction is empty"):
        Rows(tmp_path / "prompts.jsonl", Prompt, journal, ())
