"""Check the viewer's index against the journal and the files, and filters against plain Python."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import viewer_runs
from selfalign import constitution
from selfalign.data.records import Response, read_jsonl, write_jsonl
from selfalign.errors import UserError
from selfalign.run.directory import RunDir, acquire_lock
from selfalign.run.journal import Journal
from selfalign.system.atomic import file_hash
from selfalign.web.view import query
from selfalign.web.view.entries import split_ledger_text
from selfalign.web.view.index import Index
from selfalign.web.view.query import DIMENSIONS, Filter

TEXTS = constitution.load("default")


def index_of(folder: Path) -> Index:
    index = Index(folder, TEXTS, folder / "view.sqlite")
    index.refresh()
    return index


ALL = Filter()


def everything(index: Index, row_filter: Filter = ALL, limit: int = 200, back: bool = False) -> list[dict[str, Any]]:
    """Return the rows of all pages."""
    rows: list[dict[str, Any]] = []
    with index.reading() as db:
        while True:
            edge = (rows[0] if back else rows[-1]) if rows else None
            page = query.page(db, row_filter, edge and (edge["place"], edge["n"]), limit, back)
            if not page:
                return rows
            rows = [*page, *rows] if back else [*rows, *page]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Return an index that tests must not change."""
    run = viewer_runs.make(tmp_path_factory.mktemp("view") / "run", 70)
    return index_of(run.path)


@pytest.fixture(scope="module")
def whole(small: Index) -> list[dict[str, Any]]:
    return plain_rows(small)


def plain_rows(index: Index) -> list[dict[str, Any]]:
    """Read all rows with their whole texts, without a filter."""
    with index.reading() as db:
        names = ("n", "id", *DIMENSIONS, "message", "thoughts", "answer")
        sql = (
            "SELECT n, id, stage_, state, reason, source, type, split, model, message, thoughts, answer FROM "
            "(SELECT rows.*, kinds.stage AS stage_, state, reason, source, type, split, model FROM rows JOIN kinds "
            "USING (kind)) JOIN texts USING (n) ORDER BY place, n"
        )
        rows = [dict(zip(names, row, strict=True)) for row in db.execute(sql)]
        for row in rows:
            row["principles"] = [p for (p,) in db.execute("SELECT principle FROM cited WHERE n = ?", (row["n"],))]
    return rows


def matches(row: dict[str, Any], row_filter: Filter) -> bool:
    """Return whether a filter matches, in plain Python."""
    if any(getattr(row_filter, d) is not None and row[d] != getattr(row_filter, d) for d in DIMENSIONS):
        return False
    if row_filter.principle is not None and row_filter.principle not in row["principles"]:
        return False
    tokens = [t.strip(":.") for f in ("message", "thoughts", "answer") for t in row[f].lower().split()]
    *whole, last = row_filter.words.split() or [""]
    return all(w in tokens for w in whole) and any(t.startswith(last) for t in tokens)


FILTERS = st.builds(
    Filter,
    stage=st.sampled_from([None, "self_instruct", "align", "engrave"]),
    state=st.sampled_from([None, None, "kept", "dropped"]),
    reason=st.sampled_from([None, None, None, "", *viewer_runs.REASONS]),
    source=st.sampled_from([None, None, "red_team", "self_instruct"]),
    type=st.sampled_from([None, None, *viewer_runs.TYPES]),
    split=st.sampled_from([None, None, "train", "heldout"]),
    principle=st.sampled_from([None, None, 1, 4, 16]),
    words=st.lists(st.sampled_from([*viewer_runs.WORDS[:12], "ans", "answer", "21"]), max_size=2).map(" ".join),
)


@given(FILTERS, st.integers(5, 90))
@settings(max_examples=60)
def test_pages_contain_each_matching_row_once(
    small: Index, whole: list[dict[str, Any]], row_filter: Filter, limit: int
):
    expected = [row["n"] for row in whole if matches(row, row_filter)]
    assert [row["n"] for row in everything(small, row_filter, limit)] == expected
    assert [row["n"] for row in everything(small, row_filter, limit, back=True)] == expected


@given(FILTERS)
@settings(max_examples=60)
def test_counts_equal_the_numbers_of_rows(small: Index, whole: list[dict[str, Any]], row_filter: Filter):
    rows = whole
    with small.reading() as db:
        counts = query.counts(db, row_filter)
    assert counts["total"] == sum(matches(row, row_filter) for row in rows)
    for name in (*DIMENSIONS, "principle"):
        without = Filter(**{f: getattr(row_filter, f) for f in Filter.__slots__ if f != name})
        numbers: dict[Any, int] = {}
        for row in rows:
            if matches(row, without):
                for value in row["principles"] if name == "principle" else [row[name]]:
                    numbers[value] = numbers.get(value, 0) + 1
        assert dict(map(tuple, counts["by"][name])) == numbers, name


def test_rows_equal_journal_and_files(small: Index):
    rows = {(r["stage"], r["id"]): r for r in plain_rows(small)}
    db = sqlite3.connect(small.run / "journal.sqlite")
    ledger = db.execute("SELECT stage, id, state, reason FROM rows").fetchall()
    db.close()
    assert {(s, i, r["state"], r["reason"]) for (s, i), r in rows.items()} == set(ledger)
    for response in read_jsonl(small.run / "2_self_align/responses.jsonl", Response):
        row = rows["align", response.id]
        assert (row["message"], row["thoughts"], row["answer"]) == (
            response.message,
            response.thoughts,
            response.response,
        )
        assert sorted(row["principles"]) == sorted(response.principles)


def test_ledger_text_is_split_into_its_parts(small: Index):
    row = next(r for r in plain_rows(small) if r["stage"] == "align" and r["state"] == "dropped")
    assert row["answer"].startswith("dropped ") and row["thoughts"].startswith("thoughts ")
    assert split_ledger_text("q\n[t\nu]\n a ", "q") == ("q", "t\nu", "a")
    assert split_ledger_text("q\n[no thoughts", "q") == ("q", "", "[no thoughts")
    assert split_ledger_text("other", "q") == ("other", "", "")


def test_indexing_does_not_change_the_run(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 20)
    before = {f: file_hash(f) for f in run.path.rglob("*") if f.is_file()}
    index = index_of(run.path)
    everything(index)
    after = {f: file_hash(f) for f in run.path.rglob("*") if f.is_file() and not f.name.startswith("view.sqlite")}
    assert {f.name for f in after.keys() - before.keys()} <= {"journal.sqlite-shm", "journal.sqlite-wal"}
    assert {f: after[f] for f in before} == before


def test_new_rows_of_a_running_stage_are_added(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 20)
    journal = Journal(run.path / "journal.sqlite")
    journal.ledger("verbose_responses", 40)
    journal.record("verbose_responses", [(f"{n:016x}", n, "kept", "", f"question {n}\nanswer") for n in range(10)])
    index = index_of(run.path)
    kept = [r["n"] for r in everything(index)]
    dropped = [(f"{n:016x}", n, "dropped", "short", f"question {n}\nanswer") for n in range(10, 25)]
    journal.record("verbose_responses", dropped)
    generation = index.generation()
    index.refresh()
    assert index.generation() > generation
    rows = everything(index)
    assert [r["n"] for r in rows][: len(kept)] == kept  # no row was read again
    assert len(everything(index, Filter(stage="verbose_responses"))) == 25
    assert len(everything(index, Filter(stage="verbose_responses", reason="short"))) == 15
    journal.close()


def test_repeated_stage_is_read_again(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 20)
    index = index_of(run.path)
    journal = Journal(run.path / "journal.sqlite")
    ids = [r["id"] for r in everything(index, Filter(stage="align"))]
    journal.restart("align")
    journal.record("align", [(i, n, "dropped", "new reason", "text") for n, i in enumerate(ids)])
    journal.finish("align", len(ids), 9.5)
    journal.close()
    index.refresh()
    assert {r["reason"] for r in everything(index, Filter(stage="align"))} == {"new reason"}
    with index.reading() as db:
        assert query.counts(db, Filter(stage="align"))["total"] == len(ids)
        assert query.counts(db, Filter(stage="align", words="thoughts"))["total"] == 0
        db.execute("SELECT * FROM search WHERE search MATCH 'winter'").fetchall()


def test_edited_file_is_read_without_malformed_lines(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 20)
    index = index_of(run.path)
    file = run.jsonl("responses")
    rows = read_jsonl(file, Response)
    lines = file.read_text("utf-8").splitlines()
    edited = {**json.loads(lines[0]), "response": "Edited, with a heron."}
    file.write_text("\n".join([json.dumps(edited), "{broken", '{"id": "\\ud83d"}', *lines[1:]]) + "\n", "utf-8")
    index.refresh()
    matching_rows = everything(index, Filter(words="heron"))
    assert [(r["stage"], r["id"]) for r in matching_rows] == [("align", rows[0].id)]
    assert len(everything(index)) == len(everything(index_of(run.path)))


def test_unreadable_default_index_is_replaced(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 10)
    number = len(everything(index_of(run.path)))
    run.view.write_bytes(b"no database" * 1000)
    assert len(everything(index_of(run.path))) == number


def test_other_files_are_never_replaced(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 5)
    notes = tmp_path / "notes.txt"
    notes.write_text("years of work\n")
    for file in (notes, run.path / "journal.sqlite", tmp_path):
        before = file_hash(file) if file.is_file() else ""
        with pytest.raises(UserError, match="is not an index of the viewer: use --cache"):
            Index(run.path, TEXTS, file)
        assert file.exists() and (not before or file_hash(file) == before)
    empty = tmp_path / "empty"
    empty.touch()
    index = Index(run.path, TEXTS, empty)
    assert everything(index) == []
    index.refresh()
    old = everything(index)
    with sqlite3.connect(empty) as db:
        db.execute("UPDATE meta SET value = '0' WHERE key = 'version'")
    db.close()
    again = Index(run.path, TEXTS, empty)  # an index of another version is replaced
    again.refresh()
    assert everything(again) == old


def test_concurrent_viewers_share_an_index(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 5)
    with ThreadPoolExecutor(4) as pool:
        indexes = list(pool.map(lambda _: Index(run.path, TEXTS, run.view), range(4)))
    for index in indexes:
        index.refresh()
    assert len({len(everything(index)) for index in indexes}) == 1


def test_index_can_be_outside_the_run(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 10)
    index = Index(run.path, TEXTS, tmp_path / "elsewhere.sqlite")
    index.refresh()
    assert everything(index)
    assert not run.view.exists()
    shutil.rmtree(run.path)


def as_version_0_1(run: RunDir) -> None:
    """Give the tables and ledgers of a run the names that version 0.1 gave them."""
    with closing(sqlite3.connect(run.path / "journal.sqlite")) as db:
        db.execute("ALTER TABLE sessions RENAME TO sittings")
        db.execute("ALTER TABLE escaped RENAME TO neutralised")
        for table in ("rows", "stages"):
            db.execute(f"UPDATE {table} SET stage = 'verbose' WHERE stage = 'engrave'")
        db.commit()
    row = db_row(run, "verbose")
    run.jsonl("marks").write_text(json.dumps({"stage": "clone", "id": row, "mark": "drop"}) + "\n")


def db_row(run: RunDir, stage: str) -> str:
    with closing(sqlite3.connect(run.path / "journal.sqlite")) as db:
        return str(db.execute("SELECT id FROM rows WHERE stage = ?", (stage,)).fetchone()[0])


def test_run_of_version_0_1_is_upgraded(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 5)
    as_version_0_1(run)
    index = Index(run.path, run.constitution, run.view)
    index.refresh()
    with index.reading() as db:
        by = query.counts(db, Filter())["by"]
    assert "verbose_responses" in dict(by["stage"]) and "verbose" not in dict(by["stage"])
    assert by["mark"] == [["drop", 1]]


def test_run_of_version_0_1_in_use_is_refused(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 5)
    as_version_0_1(run)
    handle = acquire_lock(run.path)
    with pytest.raises(UserError, match=r"version 0\.1 made this run, .* in use by process"):
        Index(run.path, run.constitution, run.view)
    os.close(handle)
    assert db_row(run, "verbose")


def test_index_is_not_in_the_manifest(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 5)
    index_of(run.path)
    opened = RunDir.open(run.path)
    opened.write_manifest()
    opened.journal.close()
    assert not [name for name in json.loads(run.manifest.read_text())["files"] if "view" in name]


@pytest.mark.parametrize(
    "words", ["天气", "%", "_", "\\", '"', "' OR 1", '"the', "NEAR(", "a* OR b", "-", "()", "\x00"]
)
def test_odd_searches_are_valid(small: Index, words: str):
    with small.reading() as db:
        query.page(db, Filter(words=words))
        query.counts(db, Filter(words=words))


def test_punctuation_and_scripts_without_spaces_are_searched(tmp_path: Path):
    answers = {1: "今天天气很好", 2: "100 % sure", 3: "under_score"}
    run = viewer_runs.make(
        tmp_path / "run", 5, lambda n, field: answers.get(n, "plain") if field == "answer" else f"{n}"
    )
    index = index_of(run.path)
    for words, number in (("天气", 1), ("%", 2), ("_", 3)):
        rows = everything(index, Filter(words=words, stage="align"))
        assert [r["answer"] for r in rows] == [answers[number]]


def test_rows_citing_several_principles_count_for_each(tmp_path: Path):
    run = viewer_runs.make(tmp_path / "run", 30)
    rows = read_jsonl(run.jsonl("responses"), Response)
    write_jsonl(run.jsonl("responses"), [replace(r, principles=[2, 3, 5]) for r in rows])
    index = index_of(run.path)
    with index.reading() as db:
        for words in ("", "answer"):
            counts = query.counts(db, Filter(stage="engrave", words=words))
            assert dict(map(tuple, counts["by"]["principle"])) == dict.fromkeys((2, 3, 5), counts["total"])
