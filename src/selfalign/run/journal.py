"""Units of work and their states, in SQLite: the truth within a stage.

Two tables hold the rows. `work`: a request to an engine; its raw output is committed before anything reads it. `rows`:
a unit of the ledger (a parsed candidate in stage 1, an input row elsewhere) that ends kept, dropped or failed.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from selfalign.data.records import Drop
from selfalign.errors import CountMismatch, Resumable, UserError
from selfalign.generation.loop import RawOutput
from selfalign.run.ledger import Generation, RowOutcome, StageCounts

_SCHEMA = """
CREATE TABLE IF NOT EXISTS work(
  key TEXT PRIMARY KEY, stage TEXT NOT NULL, row_id TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'raw_saved', 'failed')),
  raw TEXT, reason TEXT, prompt_tokens INTEGER DEFAULT 0, cached_tokens INTEGER DEFAULT 0,
  generated_tokens INTEGER DEFAULT 0, seconds REAL DEFAULT 0);
CREATE INDEX IF NOT EXISTS work_stage ON work(stage, state);
CREATE TABLE IF NOT EXISTS neutralised(key TEXT PRIMARY KEY, tokens TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows(
  stage TEXT NOT NULL, id TEXT NOT NULL, position INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('kept', 'dropped', 'failed')), reason TEXT NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (stage, id));
CREATE INDEX IF NOT EXISTS rows_order ON rows(stage, position);
CREATE TABLE IF NOT EXISTS stages(
  stage TEXT PRIMARY KEY, finished INTEGER NOT NULL, rows_in INTEGER NOT NULL, seconds REAL NOT NULL,
  notes TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sittings(
  id INTEGER PRIMARY KEY, stage TEXT NOT NULL, parallel INTEGER NOT NULL, seconds REAL NOT NULL DEFAULT 0,
  busy REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS rounds(
  stage TEXT NOT NULL, number INTEGER NOT NULL, inputs TEXT NOT NULL, result TEXT NOT NULL,
  PRIMARY KEY (stage, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS published(
  stage TEXT PRIMARY KEY, inputs TEXT NOT NULL, files TEXT NOT NULL) WITHOUT ROWID;
"""
# work and rows keep SQLite's own row numbers: they are written in their order, so that the long texts of a million rows
# fill page after page and only a narrow index is written to at random.

# CROSS: the few first, then their work.
_NEUTRALISED = "FROM neutralised CROSS JOIN work USING (key) WHERE stage = ?"

_BATCH = 1000
"""Rows of a ledger that are committed together, at most."""
_BATCH_SECONDS = 2.0


def _batches(rows: Iterable[RowOutcome]) -> Iterator[list[RowOutcome]]:
    """Lists of so many rows, or of those that came within two seconds: who watches a slow stage sees them."""
    batch: list[RowOutcome] = []
    since = time.monotonic()
    for row in rows:
        batch.append(row)
        if len(batch) >= _BATCH or time.monotonic() - since > _BATCH_SECONDS:
            yield batch
            batch, since = [], time.monotonic()
    if batch:
        yield batch


class Journal:
    """The journal of one run directory. Used from the main thread only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine: set[int] = set()
        """Sittings of this process."""
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            # FULL: a commit survives the loss of power, not only of the process.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA cache_size=-16000")
            self._db.executescript(_SCHEMA)
            self._rename_stages()
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def _rename_stages(self) -> None:
        """Give the ledgers of a run of version 0.1 the names of this one."""
        tables = ("work", "rows", "stages", "sittings", "rounds", "published")
        for old, new in OLD_STAGES.items():
            if self._db.execute("SELECT 1 FROM stages WHERE stage = ?", (old,)).fetchone():
                for table in tables:
                    self._db.execute(f"UPDATE {table} SET stage = ? WHERE stage = ?", (new, old))  # noqa: S608

    def _explained(self, error: sqlite3.DatabaseError) -> Resumable | UserError:
        if "closed database" in str(error):
            return UserError(f"the run {self.path.parent} is closed: open it again")
        if "full" in str(error) or "disk I/O" in str(error):
            return Resumable(f"no space for {self.path} ({error}): make room, then run the same command again")
        if "locked" in str(error):
            return Resumable(f"{self.path} is locked by another process: run the same command again")
        if "readonly" in str(error) or "unable to open" in str(error):
            return UserError(f"{self.path} cannot be written ({error}): check the folder's permissions")
        return UserError(f"{self.path} is not a whole journal ({error}): restore it, or begin again with --new")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that happens inside is committed together, or not at all."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                # On a full disk SQLite has rolled back by itself.
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
        """As `_read`, without holding all rows at once."""
        try:
            yield from self._db.execute(query, values)
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    # -- work ----------------------------------------------------------------------------------------------------

    def saved(self, keys: Iterable[str]) -> dict[str, str]:
        """The raw outputs (JSON) of those keys that have one."""
        found: dict[str, str] = {}
        wanted = list(keys)
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, raw FROM work WHERE state = 'raw_saved' AND key IN ({marks})"  # noqa: S608
            found.update(self._read(query, part))
        return found

    def begin(self, stage: str, items: Iterable[tuple[str, str]]) -> None:
        """Enter (key, row id) pairs as pending; what a killed process left as running is pending again."""
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
            found = self._db.execute("INSERT INTO sittings(stage, parallel) VALUES (?, ?) RETURNING id", values)
            number = int(found.fetchone()[0])
        self._mine.add(number)
        return number

    def progress(
        self,
        started: Sequence[str] = (),
        saved: Sequence[RawOutput] = (),
        failed: Sequence[tuple[str, str]] = (),
        session: tuple[int, float, float] | None = None,
        escaped: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """Commit one turn of the generation loop, all of it together.

        Args:
            started: keys that went to the engine.
            saved: requests that it answered.
            failed: (key, reason) of those that it could not.
            session: number, wall seconds and the engine's seconds (summed over slots) of the session so far.
            escaped: key -> control tokens that were escaped in the request's text.
        """
        with self.transaction():
            run = self._db.executemany
            run("UPDATE work SET state = 'running' WHERE key = ?", [(key,) for key in started])
            run(
                "UPDATE work SET state = 'raw_saved', raw = ?2, prompt_tokens = ?3, cached_tokens = ?4, "
                "generated_tokens = ?5, seconds = ?6 WHERE key = ?1",
                saved,
            )
            run("UPDATE work SET state = 'failed', reason = ?2 WHERE key = ?1", failed)
            rows = [(key, json.dumps(tokens, ensure_ascii=False)) for key, tokens in escaped.items()]
            run("INSERT OR REPLACE INTO neutralised VALUES (?, ?)", rows)
            if session:
                self._db.execute("UPDATE sittings SET seconds = ?2, busy = ?3 WHERE id = ?1", session)

    # -- ledger --------------------------------------------------------------------------------------------------

    def decide(self, stage: str, rows: Iterable[RowOutcome]) -> None:
        """Enter (id, position, state, reason, text) of rows whose fate is known. Entering a row again replaces it."""
        for batch in _batches(rows):
            with self.transaction():
                self._enter_rows(stage, batch)

    def _enter_rows(self, stage: str, rows: Iterable[RowOutcome]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO rows(stage, id, position, state, reason, text) VALUES (?, ?, ?, ?, ?, ?)",
            [(stage, *row) for row in rows],
        )

    def close_round(
        self, stage: str, number: int, inputs: str, rows: Iterable[RowOutcome], result: dict[str, Any]
    ) -> None:
        """Commit what a round of stage 1 decided, whole: its rows, and what the next rounds need of it.

        Args:
            inputs: a hash of all that the stage follows from.
        """
        with self.transaction():
            self._enter_rows(stage, rows)
            values = (stage, number, inputs, json.dumps(result, ensure_ascii=False))
            self._db.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?)", values)

    def rounds(self, stage: str, inputs: str) -> list[dict[str, Any]]:
        """The results of the rounds that were closed from these inputs, in their order."""
        query = "SELECT result FROM rounds WHERE stage = ? AND inputs = ? ORDER BY number"
        return [json.loads(result) for (result,) in self._read(query, (stage, inputs))]

    def forget_rows(self, stage: str, position: int) -> None:
        """Forget the decisions on the rows from this position on."""
        with self.transaction():
            self._db.execute("DELETE FROM rows WHERE stage = ? AND position >= ?", (stage, position))
            self._db.execute("DELETE FROM stages WHERE stage = ?", (stage,))

    def forget_rounds(self) -> None:
        """Forget what rounds decided (not their raw outputs): they are decided anew."""
        with self.transaction():
            self._db.execute("DELETE FROM rounds")

    def expect(self, stage: str, rows: int) -> None:
        """Note how many rows will come in, for those who watch."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO stages VALUES (?, 0, ?, 0, '{}')", (stage, rows))

    def restart(self, stage: str) -> None:
        """Forget the stage's decisions (not its raw outputs): it is decided anew from them."""
        with self.transaction():
            self._db.execute("DELETE FROM rows WHERE stage = ?", (stage,))
            self._db.execute("DELETE FROM rounds WHERE stage = ?", (stage,))
            self._db.execute("DELETE FROM stages WHERE stage = ?", (stage,))

    def finish(self, stage: str, rows_in: int, seconds: float, notes: dict[str, Any] | None = None) -> StageCounts:
        """Close the stage: check that every row that came in has exactly one fate.

        Raises:
            CountMismatch: in is not kept + dropped + failed.
        """
        decided = self._read("SELECT COUNT(*) FROM rows WHERE stage = ?", (stage,))[0][0]
        if decided != rows_in:
            raise CountMismatch(
                f"{stage}: {rows_in} rows came in, but {decided} were kept, dropped or failed; "
                f"{self.path} holds the rows. This is a bug in selfalign."
            )
        sittings = self._read("SELECT id, seconds FROM sittings WHERE stage = ?", (stage,))
        seconds += sum(spent for number, spent in sittings if number not in self._mine)
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO stages VALUES (?, 1, ?, ?, ?)",
                (stage, rows_in, seconds, json.dumps(notes or {}, ensure_ascii=False)),
            )
            # Requests that were looked up and then, after an edit, not needed any more.
            self._db.execute("DELETE FROM work WHERE stage = ? AND state IN ('pending', 'running')", (stage,))
        return self.counts(stage)

    def counts(self, stage: str) -> StageCounts:
        query = "SELECT finished, rows_in, seconds, notes FROM stages WHERE stage = ?"
        finished = next(iter(self._read(query, (stage,))), None)
        fates: dict[str, dict[str, int]] = {"kept": {}, "dropped": {}, "failed": {}}
        for state, reason, number in self._read(
            "SELECT state, reason, COUNT(*) FROM rows WHERE stage = ? GROUP BY state, reason ORDER BY COUNT(*) DESC",
            (stage,),
        ):
            fates[state][reason] = number
        decided = sum(sum(f.values()) for f in fates.values())
        return StageCounts(
            stage=stage,
            finished=bool(finished and finished[0]),
            rows_in=finished[1] if finished else decided,
            kept=sum(fates["kept"].values()),
            dropped=fates["dropped"],
            failed=fates["failed"],
            generation=(generation := self.generation(stage)),
            seconds=finished[2] if finished and finished[0] else generation.seconds,
            notes=json.loads(finished[3]) if finished else {},
        )

    def generation(self, stage: str) -> Generation:
        """How the stage's requests went so far."""
        tokens = self._read(
            "SELECT COUNT(*), TOTAL(prompt_tokens), TOTAL(cached_tokens), TOTAL(generated_tokens) FROM work "
            "WHERE stage = ? AND state = 'raw_saved'",
            (stage,),
        )[0]
        query = "SELECT TOTAL(seconds), TOTAL(busy), TOTAL(seconds * parallel) FROM sittings WHERE stage = ?"
        seconds, busy, offered = self._read(query, (stage,))[0]
        requests, computed, cached, generated = (int(n) for n in tokens)
        busy = min(1.0, busy / offered) if offered else 0.0
        query = f"SELECT COUNT(DISTINCT row_id) {_NEUTRALISED}"
        return Generation(requests, computed, cached, generated, seconds, busy, self._read(query, (stage,))[0][0])

    def neutralised(self, stage: str) -> dict[str, list[str]]:
        """Row id -> the control tokens that were broken in its text, in the order in which the rows were answered."""
        query = f"SELECT row_id, tokens {_NEUTRALISED} ORDER BY work.rowid"
        return {row_id: json.loads(tokens) for row_id, tokens in self._read(query, (stage,))}

    def stages(self) -> list[str]:
        """Names of the stages that the journal knows, in the order of the pipeline.

        Ablations of the constitution decide nothing about the run's rows and are no stage.
        """
        known = {r[0] for r in self._read("SELECT stage FROM stages UNION SELECT DISTINCT stage FROM work")}
        return [s for s in LEDGER if s in known] + sorted(known - set(LEDGER) - {"ablation"})

    def open_work(self, stage: str) -> int:
        """Requests of the stage that wait or run."""
        query = "SELECT COUNT(*) FROM work WHERE stage = ? AND state IN ('pending', 'running')"
        return int(self._read(query, (stage,))[0][0])

    def note_ids(self, table: str, ids: Iterable[str]) -> tuple[int, set[str]]:
        """Note ids in a temporary table of that name; returns how many there are, and those that came twice."""
        number, twice = 0, set()
        try:
            self._db.execute(f"CREATE TEMP TABLE IF NOT EXISTS {table}(id TEXT PRIMARY KEY) WITHOUT ROWID")
            self._db.execute(f"DELETE FROM {table}")  # noqa: S608  (the name is ours)
            with self.transaction():
                for one in ids:
                    if self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES (?)", (one,)).rowcount:  # noqa: S608
                        number += 1
                    else:
                        twice.add(one)
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error
        return number, twice

    def kept_but_not_in(self, table: str, stages: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(id, text) of the rows that these stages kept and whose ids `note_ids` did not note, in their order."""
        for stage in stages:
            query = (
                "SELECT id, text FROM rows WHERE stage = ? AND state = 'kept' AND id NOT IN "  # noqa: S608
                f"(SELECT id FROM temp.{table}) ORDER BY position, id"
            )
            yield from self._each(query, (stage,))

    def publish(self, stage: str, inputs: str, files: dict[str, str]) -> None:
        """Remember that the stage was finished from `inputs` (a hash) with these files (name -> SHA-256)."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO published VALUES (?, ?, ?)", (stage, inputs, json.dumps(files)))

    def unpublish(self, stage: str) -> None:
        """Forget the stage's files: it writes them anew, and a stop in between must not look like an edit."""
        with self.transaction():
            self._db.execute("DELETE FROM published WHERE stage = ?", (stage,))

    def published(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Stage -> (hash of its inputs, its files)."""
        return {s: (i, json.loads(f)) for s, i, f in self._read("SELECT stage, inputs, files FROM published")}

    def drop_examples(self, stage: str) -> dict[str, str]:
        """Reason -> the first row that was dropped or failed for it, the most frequent reason first."""
        query = (
            "SELECT reason, text, MIN(position) FROM rows WHERE stage = ? AND state != 'kept' "
            "GROUP BY reason ORDER BY COUNT(*) DESC, reason"
        )
        return {reason: text for reason, text, _ in self._read(query, (stage,))}

    def drops(self) -> Iterator[Drop]:
        """Every row that was not kept, in the order of the pipeline."""
        for stage in self.stages():
            query = "SELECT id, state, reason, text FROM rows WHERE stage = ? AND state != 'kept' ORDER BY position, id"
            for row_id, state, reason, text in self._each(query, (stage,)):
                yield Drop(stage=stage, id=row_id, state=state, reason=reason, text=text)


OLD_STAGES = {"verbose": "verbose_responses", "clone": "verbose_cloning"}
"""Names of ledgers in version 0.1 -> in this one."""


def is_outdated(db: sqlite3.Connection) -> bool:
    """Return whether version 0.1 wrote the journal; `Journal` upgrades it when it opens it for writing."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(_SCHEMA)
        if set(empty.execute(query)) - set(db.execute(query)):
            return True
    return any(db.execute("SELECT 1 FROM rows WHERE stage = ? LIMIT 1", (old,)).fetchone() for old in OLD_STAGES)


LEDGER = (
    "self_instruct",
    "topics",
    "red_team",
    "align",
    "engrave",
    "verbose_responses",
    "verbose_cloning",
    "evaluate",
    "probes",
)
"""The ledgers in the order of the pipeline: stage 1 has three, stage 4 two (answers and training pairs)."""
