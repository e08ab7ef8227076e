"""Test the forms of published data sets: unmodified rows in every file type, and the table in docs/datasets.md."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from published_forms import FORMS
from selfalign.data import formats, message_trees
from selfalign.data.formats import Row
from selfalign.data.user_data import UserData
from selfalign.run import recipe as recipes

TABLE = Path(__file__).parents[2] / "docs/datasets.md"


def read(file: Path) -> list[Row]:
    prompts = recipes.load("quick").prompts.model_copy(update={"file": str(file)})
    return [row for _, row in UserData(prompts)]


def expected(name: str) -> list[Row]:
    rows = [row for _, row in FORMS[name]]
    return rows[:1] if name.endswith("oasst2") else rows


def values(name: str) -> list[dict[str, Any]]:
    return [value for value, _ in FORMS[name]]


@pytest.mark.parametrize("name", FORMS)
def test_published_rows_are_read_unmodified(name: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(values(name), indent=1))
    assert read(tmp_path / "a.json") == expected(name)
    lines = "\ufeff" + "".join(json.dumps(value) + "\r\n" for value in values(name))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read(tmp_path / "a.jsonl.gz") == expected(name)


@pytest.mark.parametrize("name", FORMS)
def test_rows_padded_by_arrow_are_read_the_same(name: str, tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    keys = dict.fromkeys(key for value in values(name) for key in value)
    rows = [_without_empty(dict.fromkeys(keys) | value) for value in values(name)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == expected(name)


def _without_empty(value: Any) -> Any:
    """Return a value without empty objects, which Parquet cannot store."""
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items() if item != {}}
    return value


def test_turns_as_a_json_string_are_read_the_same(tmp_path: Path):
    read_as_json = 0
    for name in FORMS:
        rows = [{key: _cell(value) for key, value in row.items()} for row in values(name)]
        if rows[0].keys() == rows[1].keys() and name not in ("OpenAssistant/oasst1", "OpenAssistant/oasst2"):
            with (tmp_path / "a.csv").open("w", newline="") as file:
                table = csv.DictWriter(file, rows[0], quoting=csv.QUOTE_ALL)
                table.writeheader()
                table.writerows(rows)
            assert [(r.message, r.answer, r.problem) for r in read(tmp_path / "a.csv")] == [
                (r.message, r.answer, r.problem) for r in expected(name)
            ], name
            read_as_json += 1
    assert read_as_json > 30


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def test_the_table_in_the_docs_is_true(tmp_path: Path):
    lines = re.findall(r"^\| (\S[^|]*) \| `([^|]*)` \| ([^|]+) \| ([^|]+) \|$", TABLE.read_text(), re.MULTILINE)
    table = {name.strip(): (keys, read_as, outcome) for name, keys, read_as, outcome in lines}
    assert table.keys() == FORMS.keys()
    for name, (keys, read_as, outcome) in table.items():
        (tmp_path / "a.json").write_text(json.dumps(values(name)))
        rows = read(tmp_path / "a.json")
        known = {key for value in values(name) for key, item in value.items() if item not in (None, "", [], {})}
        unread = {key for row in rows for key in row.unread}
        if name != "OpenAssistant/oasst2":  # its rows are joined before they are read
            assert set(keys.split("`, `")) == known - unread, name
        assert read_as.split(", ") == list(dict.fromkeys(row.format for row in rows)), name
        assert outcome.strip() == _outcome(rows), name


def _outcome(rows: list[Row]) -> str:
    """Return what the table says of rows."""
    said = []
    if any(not row.problem for row in rows):
        said.append("message, input, response" if any(row.input and not row.problem for row in rows)
                    else "message, response")  # fmt: skip
    said += ["what follows the first response is skipped"] * any(row.skipped_turns and not row.problem for row in rows)
    said += [f"dropped if it {problem}" for problem in dict.fromkeys(row.problem for row in rows if row.problem)]
    return "; ".join(said)


def test_all_keys_are_in_the_docs():
    text = TABLE.read_text().partition("## Data sets")[0]
    extra = {"rejected", "history", "instances", *message_trees.READ, *formats.FILES}
    assert set(re.findall(r"`(\w+)`", text)) >= formats.KNOWN_KEYS - extra
