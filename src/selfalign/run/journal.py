"""Store requests, their raw outputs and the outcomes of rows in SQLite, from which an unfinished stage resumes.

There are two main tables. `work` has the requests to an engine; a raw output is committed before anything reads it.
`rows` has the ledgers: each row (a parsed candidate in stage 1, an input row elsewhere) is kept, dropped or failed.
`candidates` has the outcomes of the samples among which stage 2 chose a row's response.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfalign.data.records import Drop
from selfalign.errors import CountMismatch, Resumable, UserError
from selfalign.generation.loop import RawOutput
from selfalign.run.ledger import TITLES, CandidateOutcome, Generation, RowOutcome, StageCounts

_SCHEMA = """
CREATE TABLE IF NOT EXISTS work(
  key TEXT PRIMARY KEY, stage TEXT NOT NULL, row_id TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'raw_saved', 'failed')),
  raw TEXT, reason TEXT, prompt_tokens INTEGER DEFAULT 0, cached_tokens INTEGER DEFAULT 0,
  generated_tokens INTEGER DEFAULT 0, seconds REAL DEFAULT 0);
CREATE INDEX IF NOT EXISTS work_stage ON work(stage, state);
CREATE TABLE IF NOT EXISTS escaped(key TEXT PRIMARY KEY, tokens TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows(
  stage TEXT NOT NULL, id TEXT NOT NULL, position INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('kept', 'dropped', 'failed')), reason TEXT NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (stage, id));
CREATE INDEX IF NOT EXISTS rows_order ON rows(stage, position);
CREATE TABLE IF NOT EXISTS candidates(
  stage TEXT NOT NULL, id TEXT NOT NULL, sample INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('kept', 'dropped', 'failed')), reason TEXT NOT NULL, score REAL,
  PRIMARY KEY (stage, id, sample)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stages(
  stage TEXT PRIMARY KEY, finished INTEGER NOT NULL, rows_in INTEGER NOT NULL, seconds REAL NOT NULL,
  notes TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions(
  id INTEGER PRIMARY KEY, stage TEXT NOT NULL, parallel INTEGER NOT NULL, seconds REAL NOT NULL DEFAULT 0,
  busy REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS rounds(
  stage TEXT NOT NULL, number INTEGER NOT NULL, inputs TEXT NOT NULL, result TEXT NOT NULL,
  PRIMARY KEY (stage, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS published(
  stage TEXT PRIMARY KEY, inputs TEXT NOT NULL, files TEXT NOT NULL) WITHOUT ROWID;
"""
# work and rows keep SQLite's own row numbers. They are written in that order, so that the long texts of a million rows
# are appended page by page, and only a narrow index has random writes.

# CROSS makes SQLite read the small table first.
_ESCAPED = "FROM escaped CROSS JOIN work USING (key) WHERE stage = ?"

_OLD_TABLES = {"sittings": "sessions", "neutralised": "escaped"}  # old name
"""Tables of version 0.1 -> their names in this version."""
OLD_STAGES = {"verbose": "verbose_responses", "clone": "verbose_cloning"}
"""Ledgers of version 0.1 -> their names in this version."""

_BATCH_ROWS = 1000
_BATCH_SECONDS = 2.0
"""After this time a batch is committed with fewer rows, so that the viewer shows the progress of a slow stage."""


class LedgerWriter:
    """Record the outcomes of a stage's rows in batches; only the current batch is in memory.

    It is a context manager. After an error it discards the current batch: the stage decides again on its raw outputs.
    """

    def __init__(self, journal: Journal, stage: str) -> None:
        self._journal = journal
        self._stage = stage
        self._batch: list[RowOutcome] = []
        self._candidates: list[CandidateOutcome] = []
        self._committed = time.monotonic()

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._commit()

    def record(self, outcome: RowOutcome, candidates: Sequence[CandidateOutcome] = ()) -> None:
        """Record the outcome of a row, and those of the candidates for it if there are several."""
        self._batch.append(outcome)
        self._candidates += candidates
        if len(self._batch) >= _BATCH_ROWS or time.monotonic() - self._committed > _BATCH_SECONDS:
            self._commit()

    def _commit(self) -> None:
        self._journal.record(self._stage, self._batch, self._candidates)
        self._batch, self._candidates, self._committed = [], [], time.monotonic()


class Journal:
    """The journal of one run directory. Use it from the main thread only.

    Raises:
        UserError: the file is not a journal, or cannot be written.
        Resumable: the disk is full, or another process locks the journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own_sessions: set[int] = set()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            # FULL: a commit survives the loss of power, not only of the process.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA cache_size=-16000")
            if "sittings" in self._tables():  # old name
                self._upgrade()
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def _tables(self) -> set[str]:
        return {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def _upgrade(self) -> None:
        """Rename the tables and ledgers of a journal of version 0.1."""
        with self.transaction():
            for old in _OLD_TABLES.keys() & self._tables():
                self._db.execute(f"ALTER TABLE {old} RENAME TO {_OLD_TABLES[old]}")
            for table in {"work", "rows", "stages", "sessions", "rounds", "published"} & self._tables():
                for names in OLD_STAGES.items():
                    self._db.execute(f"UPDATE {table} SET stage = ?2 WHERE stage = ?1", names)  # noqa: S608

    def _explained(self, error: sqlite3.DatabaseError) -> Resumable | UserError:
        if "closed database" in str(error):
            return UserError(f"the run {self.path.parent} is closed: open it again")
        if "full" in str(error) or "disk I/O" in str(error):
            return Resumable(f"no space for {self.path} ({error}): make room, then run the same command again")
        if "locked" in str(error):
            return Resumable(f"{self.path} is locked by another process: run the same command again")
        if "readonly" in str(error) or "unable to open" in str(error):
            return UserError(f"{self.path} cannot be written ({error}): check the folder's permissions")
        return UserError(f"{self.path} is not an intact journal ({error}): restore it, or begin again with --new")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything that the block does, or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                # On a full disk SQLite has already rolled back.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def _read(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def _each(self, query: str, values: Sequence[object] = ()) -> Iterator[Any]:
        """Yield the rows of `_read` one by one, for results that may not fit in memory."""
        try:
            yield from self._db.execute(query, values)
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    # -- work ----------------------------------------------------------------------------------------------------

    def saved(self, keys: Iterable[str]) -> dict[str, str]:
        """Return key -> raw output (JSON) for those keys that have one."""
        outputs: dict[str, str] = {}
        requested = list(keys)
        for start in range(0, len(requested), 500):
            part = requested[start : start + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, raw FROM work WHERE state = 'raw_saved' AND key IN ({marks})"  # noqa: S608
            outputs.update(self._read(query, part))
        return outputs

    def begin(self, stage: str, items: Iterable[tuple[str, str]]) -> None:
        """Add (key, row id) pairs as pending. Requests that a killed process left as running become pending again."""
        with self.transaction():
            self._db.executemany(
                "INSERT INTO work(key, stage, row_id, state) VALUES (?, ?, ?, 'pending') "
                "ON CONFLICT(key) DO UPDATE SET state = 'pending', reason = NULL WHERE state != 'raw_saved'",
                [(key, stage, row_id) for key, row_id in items],
            )

    def begin_session(self, stage: str, parallel: int) -> int:
        """Record that this process starts to send requests for the stage; return the session's number."""
        with self.transaction():
            values = (stage, parallel)
            row = self._db.execute("INSERT INTO sessions(stage, parallel) VALUES (?, ?) RETURNING id", values)
            number = int(row.fetchone()[0])
        self._own_sessions.add(number)
        return number

    def progress(
        self,
        started: Sequence[str] = (),
        saved: Sequence[RawOutput] = (),
        failed: Sequence[tuple[str, str]] = (),
        session: tuple[int, float, float] | None = None,
    ) -> None:
        """Commit one turn of the generation loop in one transaction.

        Args:
            started: keys of the requests that were handed to the engine.
            saved: the raw outputs that it returned.
            failed: (key, reason) of the requests that failed.
            session: number, wall seconds and the engine's seconds (summed over slots) of the session so far.
        """
        with self.transaction():
            run = self._db.executemany
            run("UPDATE work SET state = 'running' WHERE key = ?", [(key,) for key in started])
            run(
                "UPDATE work SET state = 'raw_saved', raw = ?2, prompt_tokens = ?3, cached_tokens = ?4, "
                "generated_tokens = ?5, seconds = ?6 WHERE key = ?1",
                [output[:6] for output in saved],
            )
            run("UPDATE work SET state = 'failed', reason = ?2 WHERE key = ?1", failed)
            rows = [(output.key, json.dumps(output.escaped, ensure_ascii=False)) for output in saved if output.escaped]
            run("INSERT OR REPLACE INTO escaped VALUES (?, ?)", rows)
            if session:
                self._db.execute("UPDATE sessions SET seconds = ?2, busy = ?3 WHERE id = ?1", session)

    # -- ledger --------------------------------------------------------------------------------------------------

    def ledger(self, stage: str, rows_in: int | None = None) -> LedgerWriter:
        """Delete the stage's outcomes and return a writer for the new ones.

        Args:
            rows_in: the number of rows to expect, for the display of progress; None if unknown.
        """
        self.restart(stage)
        if rows_in is not None:
            with self.transaction():
                self._db.execute("INSERT INTO stages VALUES (?, 0, ?, 0, '{}')", (stage, rows_in))
        return LedgerWriter(self, stage)

    def record(self, stage: str, outcomes: Iterable[RowOutcome], candidates: Iterable[CandidateOutcome] = ()) -> None:
        """Commit the outcomes of rows in one transaction. An outcome replaces an earlier one of the same row."""
        with self.transaction():
            self._insert(stage, outcomes)
            query = (
                "INSERT OR REPLACE INTO candidates(stage, id, sample, state, reason, score) VALUES (?, ?, ?, ?, ?, ?)"
            )
            self._db.executemany(query, ((stage, *candidate) for candidate in candidates))

    def candidates(self, stage: str) -> list[CandidateOutcome]:
        """Return the outcomes of the candidates for the stage's rows, row by row."""
        query = "SELECT id, sample, state, reason, score FROM candidates WHERE stage = ? ORDER BY id, sample"
        return [CandidateOutcome(*row) for row in self._read(query, (stage,))]

    def _insert(self, stage: str, outcomes: Iterable[RowOutcome]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO rows(stage, id, position, state, reason, text) VALUES (?, ?, ?, ?, ?, ?)",
            ((stage, *outcome) for outcome in outcomes),
        )

    def close_round(
        self, stage: str, number: int, inputs: str, outcomes: Iterable[RowOutcome], result: dict[str, Any]
    ) -> None:
        """Commit a finished round of stage 1 in one transaction.

        Args:
            inputs: a hash of everything that the stage depends on.
            result: the data of this round that the next rounds need.
        """
        with self.transaction():
            self._insert(stage, outcomes)
            values = (stage, number, inputs, json.dumps(result, ensure_ascii=False))
            self._db.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?)", values)

    def rounds(self, stage: str, inputs: str) -> list[dict[str, Any]]:
        """Return the results of the finished rounds with these inputs, in order."""
        query = "SELECT result FROM rounds WHERE stage = ? AND inputs = ? ORDER BY number"
        return [json.loads(result) for (result,) in self._read(query, (stage, inputs))]

    def forget_rows(self, stage: str, position: int) -> None:
        """Delete the outcomes of the rows from this position."""
        with self.transaction():
            self._db.execute("DELETE FROM rows WHERE stage = ? AND position >= ?", (stage, position))
            self._db.execute("DELETE FROM stages WHERE stage = ?", (stage,))

    def forget_rounds(self) -> None:
        """Delete the results of all rounds, but no raw outputs."""
        with self.transaction():
            self._db.execute("DELETE FROM rounds")

    def restart(self, stage: str) -> None:
        """Delete the stage's outcomes and rounds, but no raw outputs: the stage decides on them again."""
        with self.transaction():
            for table in ("rows", "candidates", "rounds", "stages"):
                self._db.execute(f"DELETE FROM {table} WHERE stage = ?", (stage,))  # noqa: S608

    def finish(self, stage: str, rows_in: int, seconds: float, notes: dict[str, Any] | None = None) -> StageCounts:
        """Mark the stage as finished and check that every row that came in has exactly one outcome.

        Args:
            seconds: wall time of this process. The time of earlier sessions is added.

        Raises:
            CountMismatch: in is not kept + dropped + failed.
        """
        recorded = self._read("SELECT COUNT(*) FROM rows WHERE stage = ?", (stage,))[0][0]
        if recorded != rows_in:
            raise CountMismatch(
                f"{stage}: {rows_in} rows came in, but {recorded} were kept, dropped or failed; "
                f"{self.path} holds the rows. This is a bug in selfalign."
            )
        sessions = self._read("SELECT id, seconds FROM sessions WHERE stage = ?", (stage,))
        seconds += sum(spent for number, spent in sessions if number not in self._own_sessions)
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO stages VALUES (?, 1, ?, ?, ?)",
                (stage, rows_in, seconds, json.dumps(notes or {}, ensure_ascii=False)),
            )
            # Requests that are no longer needed after an edit of the inputs.
            self._db.execute("DELETE FROM work WHERE stage = ? AND state IN ('pending', 'running')", (stage,))
        return self.counts(stage)

    def counts(self, stage: str) -> StageCounts:
        """Return the totals of the stage's ledger so far."""
        query = "SELECT finished, rows_in, seconds, notes FROM stages WHERE stage = ?"
        row = next(iter(self._read(query, (stage,))), None)
        reasons: dict[str, dict[str, int]] = {"kept": {}, "dropped": {}, "failed": {}}
        for state, reason, number in self._read(
            "SELECT state, reason, COUNT(*) FROM rows WHERE stage = ? GROUP BY state, reason ORDER BY COUNT(*) DESC",
            (stage,),
        ):
            reasons[state][reason] = number
        generation = self.generation(stage)
        finished, rows_in, seconds, notes = row or (0, sum(sum(n.values()) for n in reasons.values()), 0.0, "{}")
        return StageCounts(
            stage=stage,
            finished=bool(finished),
            rows_in=rows_in,
            kept=sum(reasons["kept"].values()),
            dropped=reasons["dropped"],
            failed=reasons["failed"],
            generation=generation,
            seconds=seconds if finished else generation.seconds,
            notes=json.loads(notes),
        )

    def generation(self, stage: str) -> Generation:
        """Return the totals of the stage's requests so far."""
        tokens = self._read(
            "SELECT COUNT(*), TOTAL(prompt_tokens), TOTAL(cached_tokens), TOTAL(generated_tokens) FROM work "
            "WHERE stage = ? AND state = 'raw_saved'",
            (stage,),
        )[0]
        query = "SELECT TOTAL(seconds), TOTAL(busy), TOTAL(seconds * parallel) FROM sessions WHERE stage = ?"
        seconds, busy, offered = self._read(query, (stage,))[0]
        requests, computed, cached, generated = (int(n) for n in tokens)
        busy = min(1.0, busy / offered) if offered else 0.0
        query = f"SELECT COUNT(DISTINCT row_id) {_ESCAPED}"
        return Generation(requests, computed, cached, generated, seconds, busy, self._read(query, (stage,))[0][0])

    def escaped(self, stage: str) -> dict[str, list[str]]:
        """Return row id -> the control tokens that were escaped in its text, in the order of the requests."""
        query = f"SELECT row_id, tokens {_ESCAPED} ORDER BY work.rowid"
        return {row_id: json.loads(tokens) for row_id, tokens in self._read(query, (stage,))}

    def stages(self) -> list[str]:
        """Return the names of all ledgers in the order of the pipeline, without works that have no ledger."""
        known = {r[0] for r in self._read("SELECT stage FROM stages UNION SELECT DISTINCT stage FROM work")}
        return [s for s in LEDGER if s in known] + sorted(known - set(LEDGER) - set(WITHOUT_LEDGER))

    def open_work(self, stage: str) -> int:
        """Return the number of the stage's requests that are pending or running."""
        query = "SELECT COUNT(*) FROM work WHERE stage = ? AND state IN ('pending', 'running')"
        return int(self._read(query, (stage,))[0][0])

    def note_ids(self, table: str, ids: Iterable[str]) -> tuple[int, set[str]]:
        """Store ids in a temporary table of that name; return their number and those that occur more than once."""
        number, repeated = 0, set()
        try:
            self._db.execute(f"CREATE TEMP TABLE IF NOT EXISTS {table}(id TEXT PRIMARY KEY) WITHOUT ROWID")
            self._db.execute(f"DELETE FROM {table}")  # noqa: S608  (the name is ours)
            with self.transaction():
                for row_id in ids:
                    if self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES (?)", (row_id,)).rowcount:  # noqa: S608
                        number += 1
                    else:
                        repeated.add(row_id)
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error
        return number, repeated

    def kept_but_not_in(self, table: str, stages: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield (id, text) of the rows that these stages kept and that are not in the table of `note_ids`."""
        for stage in stages:
            query = (
                "SELECT id, text FROM rows WHERE stage = ? AND state = 'kept' AND id NOT IN "  # noqa: S608
                f"(SELECT id FROM temp.{table}) ORDER BY position, id"
            )
            yield from self._each(query, (stage,))

    def publish(self, stage: str, inputs: str, files: dict[str, str]) -> None:
        """Store that the stage was finished from `inputs` (a hash) with these files (name -> SHA-256)."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO published VALUES (?, ?, ?)", (stage, inputs, json.dumps(files)))

    def unpublish(self, stage: str) -> None:
        """Delete the record of the stage's files before it rewrites them; otherwise a stop would look like an edit."""
        with self.transaction():
            self._db.execute("DELETE FROM published WHERE stage = ?", (stage,))

    def published(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Return stage -> (hash of its inputs, its files)."""
        return {s: (i, json.loads(f)) for s, i, f in self._read("SELECT stage, inputs, files FROM published")}

    def drop_examples(self, stage: str) -> dict[str, str]:
        """Return reason -> the first row that was dropped or failed for it, the most frequent reason first."""
        query = (
            "SELECT reason, text, MIN(position) FROM rows WHERE stage = ? AND state != 'kept' "
            "GROUP BY reason ORDER BY COUNT(*) DESC, reason"
        )
        return {reason: text for reason, text, _ in self._read(query, (stage,))}

    def drops(self) -> Iterator[Drop]:
        """Yield every row that was not kept, in the order of the pipeline."""
        for stage in self.stages():
            query = "SELECT id, state, reason, text FROM rows WHERE stage = ? AND state != 'kept' ORDER BY position, id"
            for row_id, state, reason, text in self._each(query, (stage,)):
                yield Drop(stage=stage, id=row_id, state=state, reason=reason, text=text)


def is_outdated(db: sqlite3.Connection) -> bool:
    """Return whether version 0.1 wrote the journal; `Journal` upgrades it when it opens it for writing."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    return not _OLD_TABLES.keys().isdisjoint(name for (name,) in db.execute(query))


WITHOUT_LEDGER = ("ablation", "align_scores")
"""Stages of works without a ledger: ablations of the constitution, and the scores that stage 2 ranks responses by."""
LEDGER = tuple(TITLES)
"""The ledgers in the order of the pipeline: stage 1 has three, stage 4 two (responses and training pairs)."""
