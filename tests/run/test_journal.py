"""The journal: units of work, the ledger, what was published."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfalign.errors import CountMismatch, Resumable, UserError
from selfalign.generation.loop import RawOutput
from selfalign.run.journal import LEDGER, Journal, is_outdated
from selfalign.run.ledger import RowOutcome


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def states(journal: Journal) -> dict[str, str]:
    with sqlite3.connect(journal.path) as other:
        states_by_key = dict(other.execute("SELECT key, state FROM work").fetchall())
    other.close()
    return states_by_key


def test_request_is_pending_then_running_then_saved(journal: Journal):
    journal.begin("align", [("k1", "r1"), ("k2", "r2")])
    assert states(journal) == {"k1": "pending", "k2": "pending"}
    assert journal.open_work("align") == 2
    journal.progress(started=["k1"])
    assert states(journal) == {"k1": "running", "k2": "pending"}
    assert journal.open_work("align") == 2
    journal.progress(saved=[RawOutput("k1", '["raw"]', 3, 2, 1, 0.5)])
    assert states(journal)["k1"] == "raw_saved"
    assert journal.saved(["k1", "k2", "k3"]) == {"k1": '["raw"]'}
    journal.progress(failed=[("k2", "too long")])
    assert states(journal)["k2"] == "failed"
    assert journal.open_work("align") == 0


def test_raw_output_is_committed_before_any_outcome(journal: Journal):
    journal.begin("align", [("k1", "r1")])
    journal.progress(started=["k1"])
    journal.progress(saved=[RawOutput("k1", "[]", 0, 0, 7, 0.5)])
    counts = journal.counts("align")
    assert (counts.finished, counts.rows_in, counts.kept) == (False, 0, 0)
    assert (counts.generation.requests, counts.generation.generated_tokens) == (1, 7)
    other = Journal(journal.path)
    assert other.saved(["k1"]) == {"k1": "[]"}
    other.close()


def test_requests_of_a_killed_process_are_pending_again(journal: Journal):
    journal.begin("align", [("k1", "r1"), ("k2", "r2"), ("k3", "r3")])
    journal.progress(started=["k1", "k2"])
    journal.progress(saved=[RawOutput("k2", "[]", 0, 0, 0, 0.0)])
    journal.progress(failed=[("k3", "too long")])
    journal.close()
    again = Journal(journal.path)
    again.begin("align", [("k1", "r1"), ("k2", "r2"), ("k3", "r3")])
    assert states(again) == {"k1": "pending", "k2": "raw_saved", "k3": "pending"}
    assert again.saved(["k1", "k2"]) == {"k2": "[]"}
    again.close()


def test_saved_handles_more_keys_than_one_query(journal: Journal):
    keys = [f"k{i}" for i in range(1203)]
    journal.begin("align", [(k, k) for k in keys])
    journal.progress(saved=[RawOutput(k, f'"{k}"', 0, 0, 0, 0.0) for k in keys])
    assert journal.saved(keys) == {k: f'"{k}"' for k in keys}
    assert journal.saved([]) == {}


def test_balanced_stage_finishes_with_its_counts(journal: Journal):
    journal.begin("align", [("k1", "r1")])
    journal.progress(saved=[RawOutput("k1", "[]", 5, 6, 7, 0.1)])
    journal.record(
        "align",
        [
            ("a", 0, "kept", "", "A"),
            ("b", 1, "dropped", "loop", "B"),
            ("c", 2, "dropped", "empty", "C"),
            ("d", 3, "dropped", "loop", "D"),
            ("e", 4, "failed", "too long", "E"),
        ],
    )
    counts = journal.finish("align", 5, 1.5, {"principles": {"3": 1}})
    assert counts.finished is True
    assert (counts.rows_in, counts.kept, counts.dropped, counts.failed) == (
        5,
        1,
        {"loop": 2, "empty": 1},
        {"too long": 1},
    )
    assert list(counts.dropped) == ["loop", "empty"]
    assert (
        counts.generation.requests,
        counts.generation.prompt_tokens,
        counts.generation.cached_tokens,
        counts.generation.generated_tokens,
    ) == (1, 5, 6, 7)
    assert (counts.seconds, counts.notes) == (1.5, {"principles": {"3": 1}})
    assert counts.as_dict()["stage"] == "align"


@pytest.mark.parametrize("rows_in", [0, 1, 3])
def test_lost_or_extra_rows_are_a_count_mismatch(journal: Journal, rows_in: int):
    journal.record("align", [("a", 0, "kept", "", ""), ("b", 1, "dropped", "loop", "")])
    with pytest.raises(CountMismatch, match=f"align: {rows_in} rows came in, but 2 were"):
        journal.finish("align", rows_in, 0.0)
    assert journal.counts("align").finished is False


def test_rows_with_the_same_id_are_a_count_mismatch(journal: Journal):
    journal.record("align", [("a", 0, "kept", "", ""), ("a", 1, "kept", "", "")])
    with pytest.raises(CountMismatch):
        journal.finish("align", 2, 0.0)


def test_restart_deletes_outcomes_but_no_raw_output(journal: Journal):
    journal.begin("align", [("k1", "r1")])
    journal.progress(saved=[RawOutput("k1", "[]", 0, 0, 0, 0.0)])
    journal.record("align", [("a", 0, "kept", "", "")])
    journal.record("verbose_cloning", [("a", 0, "kept", "", "")])
    journal.finish("align", 1, 0.0)
    journal.restart("align")
    assert journal.counts("align").rows_in == 0
    assert journal.counts("align").finished is False
    assert journal.saved(["k1"]) == {"k1": "[]"}
    assert journal.counts("verbose_cloning").kept == 1


def test_kept_rows_are_ordered(journal: Journal):
    journal.record("align", [("b", 2, "kept", "", "B"), ("a", 1, "kept", "", "A"), ("c", 0, "dropped", "x", "C")])
    journal.note_ids("present", [])
    assert list(journal.kept_but_not_in("present", ("align",))) == [("a", "A"), ("b", "B")]
    assert journal.note_ids("present", ["b", "x", "b"]) == (2, {"b"})
    assert list(journal.kept_but_not_in("present", ("align",))) == [("a", "A")]


def test_drops_are_ordered_by_stage_with_reasons(journal: Journal):
    for stage in ("verbose_cloning", "align", "self_instruct"):
        journal.record(
            stage, [("b", 1, "dropped", "loop", "B"), ("a", 0, "failed", "cut", "A"), ("k", 2, "kept", "", "")]
        )
        journal.finish(stage, 3, 0.0)
    drops = list(journal.drops())
    assert [(d.stage, d.id, d.state, d.reason, d.text) for d in drops] == [
        (stage, *row)
        for stage in ("self_instruct", "align", "verbose_cloning")
        for row in (("a", "failed", "cut", "A"), ("b", "dropped", "loop", "B"))
    ]


def test_stages_have_the_order_of_the_pipeline(journal: Journal):
    for stage in reversed((*LEDGER, "own")):
        journal.finish(stage, 0, 0.0)
    assert journal.stages() == [*LEDGER, "own"]


def test_unknown_stage_has_no_counts(journal: Journal):
    counts = journal.counts("align")
    assert (counts.finished, counts.rows_in, counts.kept, counts.dropped, counts.failed) == (False, 0, 0, {}, {})
    assert journal.stages() == []


def test_published_files_are_stored_and_replaced(journal: Journal):
    assert journal.published() == {}
    journal.publish("align", "in1", {"a.jsonl": "sha1"})
    journal.publish("align", "in2", {"a.jsonl": "sha2", "b": "sha3"})
    journal.publish("prompts", "in0", {})
    assert journal.published() == {"align": ("in2", {"a.jsonl": "sha2", "b": "sha3"}), "prompts": ("in0", {})}


def test_journal_of_version_0_1_is_upgraded(journal: Journal):
    number = journal.begin_session("align", 4)
    journal.begin("align", [("k1", "r1")])
    journal.begin("clone", [("k2", "r2")])
    journal.progress(saved=[RawOutput("k1", "[]", 5, 6, 7, 0.1, ["<eos>"])], session=(number, 2.0, 4.0))
    with journal.ledger("verbose", 9) as ledger:
        ledger.record(RowOutcome("a", 0, "kept", "", "A"))
    journal.publish("clone", "inputs", {"a.jsonl": "sha"})
    journal.close()
    with sqlite3.connect(journal.path) as db:
        db.execute("ALTER TABLE sessions RENAME TO sittings")
        db.execute("ALTER TABLE escaped RENAME TO neutralised")
        assert is_outdated(db)
    db.close()
    upgraded = Journal(journal.path)
    assert upgraded.stages() == ["align", "verbose_responses", "verbose_cloning"]
    assert (upgraded.generation("align").seconds, upgraded.generation("align").busy) == (2.0, 0.5)
    assert upgraded.escaped("align") == {"r1": ["<eos>"]}
    assert upgraded.counts("verbose_responses").kept == 1
    assert upgraded.published() == {"verbose_cloning": ("inputs", {"a.jsonl": "sha"})}
    upgraded.close()
    with sqlite3.connect(journal.path) as db:
        assert not is_outdated(db)
    db.close()


def test_ledger_writer_commits_in_batches(journal: Journal):
    outcomes = [RowOutcome(f"{n:04}", n, "kept", "", "") for n in range(1500)]
    with journal.ledger("align", 1500) as ledger:
        for outcome in outcomes:
            ledger.record(outcome)
        assert journal.counts("align").kept == 1000
    assert journal.finish("align", 1500, 0.0).kept == 1500


def test_ledger_writer_discards_its_batch_on_an_error(journal: Journal):
    with pytest.raises(ZeroDivisionError), journal.ledger("align", 2) as ledger:
        ledger.record(RowOutcome("a", 0, "kept", "", ""))
        raise ZeroDivisionError
    assert (journal.counts("align").rows_in, journal.counts("align").kept) == (2, 0)


def test_failed_transaction_changes_nothing(journal: Journal):
    with pytest.raises(ZeroDivisionError), journal.transaction():
        journal._db.execute("INSERT INTO published VALUES ('x', 'y', '{}')")
        raise ZeroDivisionError
    assert journal.published() == {}
    journal.publish("align", "in1", {})


def test_invalid_outcome_records_nothing(journal: Journal):
    rows = [("a", 0, "kept", "", ""), ("b", 1, "lost", "", "")]
    with pytest.raises(UserError):
        journal.record("align", rows)  # type: ignore[arg-type]
    assert journal.counts("align").kept == 0


@pytest.mark.parametrize(
    "content", [b"this is no database, only a text that is long enough to look at" * 9, b"x" * 5000]
)
def test_other_file_is_a_user_error(tmp_path: Path, content: bytes):
    (tmp_path / "journal.sqlite").write_bytes(content)
    with pytest.raises(UserError, match=r"journal\.sqlite is not an intact journal .* --new"):
        Journal(tmp_path / "journal.sqlite")
    assert (tmp_path / "journal.sqlite").read_bytes() == content


def corrupted(folder: Path) -> Path:
    path = folder / "journal.sqlite"
    opened = Journal(path)
    opened.begin("align", [(f"key{i}", "row" * 50) for i in range(500)])
    opened.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    return path


def test_writing_a_corrupted_journal_is_a_user_error(tmp_path: Path):
    path = corrupted(tmp_path)
    with pytest.raises(UserError, match="is not an intact journal"):
        broken = Journal(path)
        try:
            broken.begin("align", [("new", "row")])
        finally:
            broken.close()


def test_reading_a_corrupted_journal_is_a_user_error(tmp_path: Path):
    path = corrupted(tmp_path)
    broken: Journal | None = None
    try:
        with pytest.raises(UserError, match="is not an intact journal"):
            broken = Journal(path)
            broken.counts("align")
    finally:
        if broken:
            broken.close()


def test_folder_in_place_of_the_journal_is_a_user_error(tmp_path: Path):
    (tmp_path / "journal.sqlite").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path / "journal.sqlite")


@pytest.mark.parametrize("message", ["database or disk is full", "disk I/O error"])
def test_full_disk_is_resumable(journal: Journal, message: str):
    with pytest.raises(Resumable, match="no space"), journal.transaction():
        raise sqlite3.OperationalError(message)
    journal.publish("align", "in1", {})
    assert "align" in journal.published()
