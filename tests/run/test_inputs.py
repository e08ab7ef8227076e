"""A stage's input file as a person may have left it."""

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
    made = Journal(tmp_path / "journal.sqlite")
    yield made
    made.close()


def prompt(text: str) -> Prompt:
    return Prompt(prompt_id(text, ""), text)


def rows(tmp_path: Path, journal: Journal, *texts: str) -> Rows[Prompt]:
    write_jsonl(tmp_path / "prompts.jsonl", [prompt(t) for t in texts])
    return Rows(tmp_path / "prompts.jsonl", Prompt, journal, ("self_instruct",))


def test_every_row_once_in_its_order(tmp_path: Path, journal: Journal):
    found = rows(tmp_path, journal, "b", "a", "c")
    assert [p.instruction for p in found] == ["b", "a", "c"] == [p.instruction for p in found]
    assert (len(found), list(found.removed())) == (3, [])


def test_a_row_that_stands_there_again_is_a_duplicate(tmp_path: Path, journal: Journal):
    found = rows(tmp_path, journal, "a", "b", "a", "a")
    assert [p.instruction for p in found] == ["a", "b"]
    assert len(found) == 2
    fates = list(found.removed())
    assert [(f[2], f[3], f[4]) for f in fates] == [("dropped", "duplicate", "a")] * 2
    assert len({f[0] for f in fates} | {p.id for p in found}) == 4
    assert found.number_removed == 2


def test_rows_that_a_hand_took_out_are_dropped(tmp_path: Path, journal: Journal):
    kept = [prompt(t) for t in ("a", "b", "c")]
    journal.record("self_instruct", [(p.id, n, "kept", "", p.message) for n, p in enumerate(kept)])
    found = rows(tmp_path, journal, "c", "new", "new")
    assert [f[3] + " " + f[4] for f in found.removed()] == ["removed by hand a", "removed by hand b", "duplicate new"]


def test_a_file_that_changes_while_it_is_read_ends_the_stage_resumably(tmp_path: Path, journal: Journal):
    found = rows(tmp_path, journal, "a", "b")
    reading = iter(found)
    assert next(reading).instruction == "a"
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"instruction": "c"}\n')
    with pytest.raises(Resumable, match="was changed while it was read"):
        list(reading)
    (tmp_path / "prompts.jsonl").write_text("no json\n")
    os.utime(tmp_path / "prompts.jsonl", (1, 1))
    with pytest.raises(Resumable, match="was changed"):
        list(found)


def test_a_wrong_line_is_found_before_anything_is_spent(tmp_path: Path, journal: Journal):
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "a"}\n{"instruction": " "}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl:2: instruction is empty"):
        Rows(tmp_path / "prompts.jsonl", Prompt, journal, ())
