"""Copy a run's rows into an SQLite index, for fast pages, filters and counts.

The run itself is never changed, except that the journal of a run of version 0.1 is upgraded. New rows of a running
stage are appended; if a stage runs again or its files change, all its rows are read again. Rows are written in
transactions, so an interrupted viewer continues where it stopped.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from selfalign.constitution import Constitution
from selfalign.data.records import content_hash
from selfalign.errors import UserError
from selfalign.run import marks
from selfalign.run.directory import JSONL_FILES, RunDir, acquire_lock
from selfalign.run.journal import LEDGER, Journal, is_outdated
from selfalign.run.ledger import RowOutcome
from selfalign.web.view.entries import FILES, Entry, EntryBuilder, JsonlIndex
from selfalign.web.view.index_file import IndexFile, read_only

_BATCH = 2000

RESPONSES = {"engrave": "align", "verbose_cloning": "verbose_responses"}
"""Training stage -> the ledger of the responses that it trains on."""

MAX_POSITION = 1 << 40
"""Upper limit of the positions within a stage."""


def upgrade_journal(run: Path) -> None:
    """Upgrade the journal if version 0.1 made the run; other journals are only read.

    Raises:
        UserError: another process uses the run, or the folder is not writable.
    """
    with closing(read_only(run / "journal.sqlite")) as journal:
        if not is_outdated(journal):
            return
    try:
        handle = acquire_lock(run)
        try:
            Journal(run / "journal.sqlite").close()
        finally:
            os.close(handle)
    except (UserError, OSError) as error:
        raise UserError(f"version 0.1 made this run, and its journal cannot be upgraded now: {error}") from None


class Index:
    """The index of a run, in a file.

    Raises:
        UserError: the file cannot be written or is not an index, or the run cannot be upgraded.
    """

    def __init__(self, run: Path, constitution: Constitution, path: Path) -> None:
        upgrade_journal(run)
        self.run = run
        self.constitution = constitution
        self.path = path
        self.error = ""
        """The reason that the last refresh failed; empty if it did not."""
        self._refreshing = threading.Lock()
        self.progress: dict[str, Any] = {"busy": False, "done": 0, "total": 0}
        """How many rows of the current stage a running refresh has read."""
        self._run_stamps: list[object] = []
        """The stamps of the run's files at the last complete refresh, and how often the index was created before."""
        self._prompts_lock = threading.Lock()
        self._prompts: tuple[tuple[int, int] | None, JsonlIndex] | None = None
        """The prompts file for `prompt_row`, which threads other than the refreshing one call."""
        self._jsonl: dict[str, tuple[tuple[int, int] | None, JsonlIndex]] = {}
        self._file = IndexFile(path, is_default=path == RunDir.load(run).view)
        self._file.create()

    def reading(self) -> closing[sqlite3.Connection]:
        """Open a read-only connection to the index for this thread.

        Raises:
            UserError: both the index and the run were deleted.
        """
        self._check_exists()
        return self._file.reading()

    def _check_exists(self) -> None:
        if not self.path.exists() and not (self.run / "journal.sqlite").exists():
            raise UserError(f"the run {self.run} was deleted")

    def prompt_row(self, prompt_id: str) -> dict[str, Any]:
        """Return the row of that prompt in the prompts file; an empty one if it is missing."""
        with self._prompts_lock:
            stamp = _stamp(self.run / JSONL_FILES["prompts"])
            if self._prompts is None or self._prompts[0] != stamp:
                self._prompts = (stamp, JsonlIndex(self.run, "prompts"))
            try:
                return self._prompts[1].get(prompt_id)
            finally:
                self._prompts[1].close()

    # -- reading the run -----------------------------------------------------------------------------------------

    def generation(self) -> int:
        """Return a number that changes whenever rows in the index change."""
        with self.reading() as db:
            return int(db.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()[0])

    def refresh_in_background(self) -> None:
        """Refresh in a thread, unless a refresh is already running."""
        if not self._refreshing.locked():
            threading.Thread(target=self._try_refresh, name="view-index", daemon=True).start()

    def _try_refresh(self) -> None:
        try:
            self.refresh()
            self.error = ""
        except UserError as error:
            self.error = str(error)
        except (sqlite3.Error, OSError) as error:
            self.error = f"the run cannot be read ({error})"

    def refresh(self) -> None:
        """Read the changes in the run."""
        self._check_exists()
        with self._refreshing, self._file.writing() as db:
            # Stamps are taken before reading, so that the next refresh detects changes made during this one.
            names = ("journal.sqlite", "journal.sqlite-wal", *JSONL_FILES.values())
            stamps: list[object] = [self._file.created, *(_stamp(self.run / name) for name in names)]
            if stamps == self._run_stamps:
                return
            self.progress = {"busy": True, "done": 0, "total": 0}
            try:
                with closing(read_only(self.run / "journal.sqlite")) as journal:
                    stages = [name for (name,) in journal.execute("SELECT DISTINCT stage FROM rows")]
                    for (stage,) in db.execute("SELECT stage FROM stages").fetchall():
                        if stage not in stages:
                            self._delete_stage(db, stage)
                    for stage in sorted(stages, key=_rank):
                        self._refresh_stage(db, journal, stage)
                self._refresh_marks(db)
                self._run_stamps = stamps
            finally:
                self.progress["busy"] = False

    def _refresh_stage(self, db: sqlite3.Connection, journal: sqlite3.Connection, stage: str) -> None:
        stamp = self._stage_stamp(journal, stage)
        known = db.execute("SELECT stamp, last, number FROM stages WHERE stage = ?", (stage,)).fetchone()
        last = known[1] if known else 0
        query = "SELECT COUNT(*), TOTAL(rowid > ?) FROM rows WHERE stage = ?"
        number, newer = journal.execute(query, (last, stage)).fetchone()
        if known and (known[0] != stamp or number - newer != known[2]):
            self._delete_stage(db, stage)
            last = 0
        elif known and not newer:
            return
        query = "SELECT rowid FROM rows WHERE stage = ? AND rowid > ?"
        rowids = sorted(n for (n,) in journal.execute(query, (stage, last)))
        self.progress |= {"done": 0, "total": len(rowids)}
        files = {name: self._open_jsonl(name) for name in FILES.get(stage, ())}
        builder = EntryBuilder(stage, self.constitution, files)
        try:
            for start in range(0, len(rowids), _BATCH):
                batch = rowids[start : start + _BATCH]
                entries = [builder.entry(outcome) for outcome in _read_outcomes(journal, stage, batch)]
                self._insert(db, stage, stamp, entries, batch[-1])
                self.progress["done"] = start + len(batch)
                time.sleep(0)  # let threads that answer requests run
        finally:
            for file in files.values():
                file.close()

    def _open_jsonl(self, name: str) -> JsonlIndex:
        """Index a file of the run, or reuse its index if the file has not changed."""
        stamp = _stamp(self.run / JSONL_FILES[name])
        if name not in self._jsonl or self._jsonl[name][0] != stamp:
            self._jsonl[name] = (stamp, JsonlIndex(self.run, name))
        return self._jsonl[name][1]

    def _stage_stamp(self, journal: sqlite3.Connection, stage: str) -> str:
        """Return a stamp that changes if the stage runs again or one of its files changes."""
        query = "SELECT finished, rows_in, seconds FROM stages WHERE stage = ?"
        ledger = journal.execute(query, (stage,)).fetchone()
        files = [_stamp(self.run / JSONL_FILES[name]) for name in FILES.get(stage, ())]
        return json.dumps([ledger, files, self.constitution.digest()])

    def _refresh_marks(self, db: sqlite3.Connection) -> None:
        """Store which rows have a mark: examples, and the responses they are made from."""
        try:
            run_marks = marks.read(RunDir.load(self.run))
        except UserError:
            return  # a line is malformed: the training stage reports it
        rows: list[tuple[int, str, str]] = []
        for (stage, row_id), mark in run_marks.items():
            query = "SELECT n FROM rows WHERE id = ? AND stage IN (?, ?)"
            marked = db.execute(query, (row_id, stage, RESPONSES[stage])).fetchall()
            rows += [(n, mark.mark, mark.answer) for (n,) in marked]
        if sorted(rows) == db.execute("SELECT n, mark, answer FROM marks ORDER BY n").fetchall():
            return
        with _transaction(db):
            db.execute("DELETE FROM marks")
            db.executemany("INSERT INTO marks VALUES (?, ?, ?)", rows)

    # -- writing the index ---------------------------------------------------------------------------------------

    def _delete_stage(self, db: sqlite3.Connection, stage: str) -> None:
        own = "SELECT n FROM rows WHERE stage = ?"
        with _transaction(db):
            db.execute(
                "INSERT INTO search(search, rowid, message, thoughts, answer) "  # noqa: S608  (the query is constant)
                f"SELECT 'delete', n, message, thoughts, answer FROM texts WHERE n IN ({own})",
                (stage,),
            )
            for table in ("texts", "cited"):
                db.execute(f"DELETE FROM {table} WHERE n IN ({own})", (stage,))  # noqa: S608
            db.execute("DELETE FROM cube WHERE kind IN (SELECT kind FROM kinds WHERE stage = ?)", (stage,))
            for table in ("rows", "stages"):
                db.execute(f"DELETE FROM {table} WHERE stage = ?", (stage,))  # noqa: S608

    def _insert(self, db: sqlite3.Connection, stage: str, stamp: str, entries: Sequence[Entry], last: int) -> None:
        with _transaction(db):
            first = (db.execute("SELECT MAX(n) FROM rows").fetchone()[0] or 0) + 1
            numbered = list(enumerate(entries, first))
            kinds = {kind: _kind_number(db, stage, kind) for kind in dict.fromkeys(map(_kind, entries))}
            sets = {members: _set_number(db, members) for members in dict.fromkeys(e.principles for e in entries)}
            db.executemany(
                "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (n, _place(stage, e.outcome.position), stage, e.outcome.id, e.about or e.outcome.id,
                     kinds[_kind(e)], sets[e.principles])
                    for n, e in numbered
                ],
            )  # fmt: skip
            texts = [(n, e.topic, e.prompt, e.message, e.thoughts, e.answer) for n, e in numbered]
            db.executemany("INSERT INTO texts VALUES (?, ?, ?, ?, ?, ?)", texts)
            searchable = [(n, *rest) for n, _, _, *rest in texts]
            db.executemany("INSERT INTO search(rowid, message, thoughts, answer) VALUES (?, ?, ?, ?)", searchable)
            db.executemany("INSERT INTO cited VALUES (?, ?)", [(p, n) for n, e in numbered for p in e.principles])
            cube = Counter((kinds[_kind(e)], p) for e in entries for p in (0, *e.principles))
            db.executemany(
                "INSERT INTO cube VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET number = number + excluded.number",
                [(*cell, number) for cell, number in cube.items()],
            )
            db.execute(
                "INSERT INTO stages VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET stamp = ?2, last = ?3, "
                "number = number + ?4",
                (stage, stamp, last, len(entries)),
            )


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit the changes together, with a new generation. After an error the caller closes the connection."""
    db.execute("BEGIN IMMEDIATE")
    yield
    db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'")
    db.execute("COMMIT")


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return a file's size and modification time; None if it is missing."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _rank(stage: str) -> tuple[int, str]:
    return (LEDGER.index(stage) if stage in LEDGER else len(LEDGER), stage)


def _place(stage: str, position: int) -> int:
    return _rank(stage)[0] * MAX_POSITION + min(max(position, 0), MAX_POSITION - 1)


def _kind(entry: Entry) -> tuple[str, ...]:
    return (entry.outcome.state, entry.outcome.reason, entry.source, entry.type, entry.split, entry.model)


def _kind_number(db: sqlite3.Connection, stage: str, kind: tuple[str, ...]) -> int:
    query = "INSERT INTO kinds VALUES (NULL, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET kind = kind RETURNING kind"
    return int(db.execute(query, (stage, *kind)).fetchone()[0])


def _set_number(db: sqlite3.Connection, principles: tuple[int, ...]) -> int:
    """Return a number that identifies this set of principles; 0 if it is empty."""
    number = int(content_hash("cites", sorted(principles))[:15], 16) if principles else 0
    db.executemany("INSERT OR IGNORE INTO sets VALUES (?, ?)", [(number, p) for p in principles])
    return number


def _read_outcomes(journal: sqlite3.Connection, stage: str, rowids: Sequence[int]) -> list[RowOutcome]:
    """Read these rows in their order, except those that the run has replaced in the meantime."""
    outcomes: list[RowOutcome] = []
    for start in range(0, len(rowids), 500):
        part = rowids[start : start + 500]
        places = ",".join("?" * len(part))
        query = f"SELECT id, position, state, reason, text FROM rows WHERE rowid IN ({places}) AND stage = ?"  # noqa: S608
        rows = journal.execute(f"{query} ORDER BY rowid", (*part, stage))
        outcomes += [RowOutcome(*row) for row in rows]
    return outcomes
