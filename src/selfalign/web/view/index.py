"""The viewer's cache: a run's rows in an SQLite of its own, so that pages, filters and counts are quick.

Nothing of the run is changed. A stage's rows are read anew where its file, or the ledger that it finished with, became
another one; rows that a run adds while it goes on are added. Written in batches, each whole: a viewer that was killed
goes on where it was. The cache may be deleted at any time.
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
from dataclasses import dataclass
from pathlib import Path

from selfalign.constitution import Constitution
from selfalign.data.records import content_hash
from selfalign.errors import UserError
from selfalign.run import marks
from selfalign.run.directory import JSONL_FILES, RunDir, hold
from selfalign.run.journal import LEDGER, Journal, is_outdated
from selfalign.system.atomic import file_hash
from selfalign.web.view.entries import FILES, Entry, Lines, Reader, RowOutcome, lines
from selfalign.web.view.index_file import Cache

_BATCH = 2000

ANSWERS = {"engrave": "align", "verbose_cloning": "verbose_responses"}
"""Training -> the ledger of the answers that it learns."""

PLACES = 1 << 40
"""Positions of one stage are below this."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far reading has come."""

    busy: bool
    done: int
    total: int
    generation: int
    """Another one means that rows have changed."""


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, also where another process is writing and where the folder cannot be written."""
    address = f"{path.resolve().as_uri()}?mode=ro"
    try:
        found = sqlite3.connect(address, uri=True, isolation_level=None, timeout=10)
        found.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    except sqlite3.OperationalError:
        if os.access(path.parent, os.W_OK):
            raise
        # A WAL needs a file beside it, which cannot be made here; so nobody else writes there, either.
        found = sqlite3.connect(f"{address}&immutable=1", uri=True, isolation_level=None)
        found.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    return found


def upgrade_journal(run: Path) -> None:
    """Upgrade the journal of a run that version 0.1 made; other journals are only read.

    Raises:
        UserError: another process works in the run, or the folder is not writable.
    """
    with closing(read_only(run / "journal.sqlite")) as journal:
        if not is_outdated(journal):
            return
    try:
        handle = hold(run)
        try:
            Journal(run / "journal.sqlite").close()
        finally:
            os.close(handle)
    except (UserError, OSError) as error:
        raise UserError(f"version 0.1 made this run and its journal cannot be upgraded now: {error}") from None


class Index:
    """A run's rows, to be filtered and paged.

    Args:
        run: the run's folder.
        cache: where the cache stands.

    Raises:
        UserError: it cannot be written there, another file stands there, or the run cannot be upgraded.
    """

    def __init__(self, run: Path, constitution: Constitution, cache: Path) -> None:
        upgrade_journal(run)
        self.run = run
        self.constitution = constitution
        self.path = cache
        self._lock = threading.Lock()
        """One reads the run at a time."""
        self._busy, self._done, self._total = False, 0, 0
        self._stamps: list[tuple[int, int] | None] = []
        """Of the run's files, when all that they held was read."""
        self.trouble = ""
        """What kept the last reading from its end."""
        self._known: dict[str, tuple[tuple[int, int] | None, Lines]] = {}
        self._cache = Cache(cache, own=cache == RunDir.look(run).view)
        self._cache.make()
        self._begun = self._cache.begun

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to the cache that cannot write, for this thread.

        Raises:
            UserError: the cache and its run are gone.
        """
        self._expect()
        with self._cache.reading() as db:
            yield db

    def _expect(self) -> None:
        if not self.path.exists() and not (self.run / "journal.sqlite").exists():
            raise UserError(f"there is no run in {self.run} any longer")

    # -- reading the run -----------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """How far reading has come."""
        with self.reading() as db:
            generation = int(db.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()[0])
        return Progress(self._busy, self._done, self._total, generation)

    def refresh_soon(self) -> None:
        """Read what is new in the run, in a thread of its own, unless one does."""
        if not self._lock.locked():
            threading.Thread(target=self._try, name="view-index", daemon=True).start()

    def _try(self) -> None:
        try:
            self.refresh()
            self.trouble = ""
        except UserError as error:
            self.trouble = str(error)
        except (sqlite3.Error, OSError) as error:
            self.trouble = f"the run cannot be read now ({error})"

    def refresh(self) -> None:
        """Read what is new in the run, and return when it is read."""
        self._expect()
        with self._lock, self._cache.writing() as db:
            if self._begun != (begun := self._cache.begun):
                self._begun, self._stamps = begun, []
            # Taken before anything is read: what comes meanwhile is seen the next time.
            names = ("journal.sqlite", "journal.sqlite-wal", *JSONL_FILES.values())
            if (stamps := [_stamp(self.run / name) for name in names]) == self._stamps:
                return
            journal = read_only(self.run / "journal.sqlite")
            self._busy, self._done, self._total = True, 0, 0
            try:
                stages = [name for (name,) in journal.execute("SELECT DISTINCT stage FROM rows")]
                gone = [name for (name,) in db.execute("SELECT stage FROM stages") if name not in stages]
                for stage in gone:
                    self._forget(db, stage)
                    self._commit(db)
                for stage in sorted(stages, key=_rank):
                    self._stage(db, journal, stage)
                self._marks(db)
                self._stamps = stamps
            finally:
                self._busy = False
                journal.close()

    def _stage(self, db: sqlite3.Connection, journal: sqlite3.Connection, stage: str) -> None:
        stamp = self._stamp(db, journal, stage)
        known = db.execute("SELECT stamp, last, number FROM stages WHERE stage = ?", (stage,)).fetchone()
        last = known[1] if known else 0
        query = "SELECT COUNT(*), TOTAL(rowid > ?) FROM rows WHERE stage = ?"
        number, newer = journal.execute(query, (last, stage)).fetchone()
        if known and (known[0] != stamp or number - newer != known[2]):
            self._forget(db, stage)
            self._commit(db)
            last = 0
        elif known and not newer:
            return
        query = "SELECT rowid FROM rows WHERE stage = ? AND rowid > ?"
        new = sorted(n for (n,) in journal.execute(query, (stage, last)))
        self._done, self._total = 0, len(new)
        files = {name: self._lines(name) for name in FILES.get(stage, ())}
        reader = Reader(stage, self.constitution, files)
        try:
            for start in range(0, len(new), _BATCH):
                fates = _fates(journal, stage, new[start : start + _BATCH])
                self._add(db, stage, stamp, [reader.entry(fate) for fate in fates], new[: start + _BATCH][-1])
                self._done = min(len(new), start + _BATCH)
                time.sleep(0)  # those who ask for a page come first
        finally:
            for file in files.values():
                file.close()

    def _lines(self, name: str) -> Lines:
        """The run's file; its places are kept as long as it stays the same, while a run goes on and adds rows."""
        stamp = _stamp(self.run / JSONL_FILES[name])
        if name not in self._known or self._known[name][0] != stamp:
            self._known[name] = (stamp, lines(self.run, name))
        return self._known[name][1]

    def _stamp(self, db: sqlite3.Connection, journal: sqlite3.Connection, stage: str) -> str:
        """Changes where the stage was decided anew or one of its files was written."""
        query = "SELECT finished, rows_in, seconds FROM stages WHERE stage = ?"
        ledger = journal.execute(query, (stage,)).fetchone()
        files = [self._file_hash(db, name) for name in FILES.get(stage, ())]
        return json.dumps([ledger, files, self.constitution.digest()])

    def _file_hash(self, db: sqlite3.Connection, name: str) -> str:
        """The file's SHA-256; taken again only where size or time are others."""
        if (at := _stamp(self.run / JSONL_FILES[name])) is None:
            return ""
        known = db.execute("SELECT size, changed, hash FROM files WHERE name = ?", (name,)).fetchone()
        if known and known[:2] == at:
            return str(known[2])
        digest = file_hash(self.run / JSONL_FILES[name])
        db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (name, *at, digest))
        return digest

    def _marks(self, db: sqlite3.Connection) -> None:
        """Note which rows carry a mark: those of the answers as well as those of the examples made of them."""
        try:
            found = marks.read(RunDir.look(self.run))
        except UserError:
            return  # a line that a hand broke: the stage will say it
        wanted: list[tuple[int, str, str]] = []
        for (stage, row_id), mark in found.items():
            query = "SELECT n FROM rows WHERE id = ? AND stage IN (?, ?)"
            rows = db.execute(query, (row_id, stage, ANSWERS[stage])).fetchall()
            wanted += [(n, mark.mark, mark.answer) for (n,) in rows]
        if sorted(wanted) == db.execute("SELECT n, mark, answer FROM marks ORDER BY n").fetchall():
            return
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM marks")
        db.executemany("INSERT INTO marks VALUES (?, ?, ?)", wanted)
        self._commit(db)

    # -- writing the cache ---------------------------------------------------------------------------------------

    def _commit(self, db: sqlite3.Connection) -> None:
        db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'")
        if db.in_transaction:
            db.execute("COMMIT")

    def _forget(self, db: sqlite3.Connection, stage: str) -> None:
        """Take the stage's rows out; the caller commits."""
        db.execute("BEGIN IMMEDIATE")
        own = "SELECT n FROM rows WHERE stage = ?"
        db.execute(
            "INSERT INTO found(found, rowid, message, thoughts, answer) "  # noqa: S608  (the query is ours)
            f"SELECT 'delete', n, message, thoughts, answer FROM texts WHERE n IN ({own})",
            (stage,),
        )
        for table in ("texts", "cited"):
            db.execute(f"DELETE FROM {table} WHERE n IN ({own})", (stage,))  # noqa: S608
        db.execute("DELETE FROM cube WHERE kind IN (SELECT kind FROM kinds WHERE stage = ?)", (stage,))
        for table in ("rows", "stages"):
            db.execute(f"DELETE FROM {table} WHERE stage = ?", (stage,))  # noqa: S608

    def _add(self, db: sqlite3.Connection, stage: str, stamp: str, entries: Sequence[Entry], last: int) -> None:
        """Enter rows, whole."""
        db.execute("BEGIN IMMEDIATE")
        first = (db.execute("SELECT MAX(n) FROM rows").fetchone()[0] or 0) + 1
        numbered = list(enumerate(entries, first))
        kinds, sets = _numbers(db, stage, entries)
        db.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (n, _place(stage, e.fate.position), stage, e.fate.id, e.about or e.fate.id, kinds[_kind(e)],
                 sets[e.principles])
                for n, e in numbered
            ],
        )  # fmt: skip
        texts = [(n, e.topic, e.prompt, e.message, e.thoughts, e.answer) for n, e in numbered]
        db.executemany("INSERT INTO texts VALUES (?, ?, ?, ?, ?, ?)", texts)
        db.executemany(
            "INSERT INTO found(rowid, message, thoughts, answer) VALUES (?, ?, ?, ?)",
            [(n, *rest) for n, _, _, *rest in texts],
        )
        db.executemany("INSERT INTO cited VALUES (?, ?)", [(p, n) for n, e in numbered for p in e.principles])
        cube = Counter((kinds[_kind(e)], p) for e in entries for p in (0, *e.principles))
        db.executemany(
            "INSERT INTO cube VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET number = number + excluded.number",
            [(*kind, number) for kind, number in cube.items()],
        )
        db.execute(
            "INSERT INTO stages VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET stamp = ?2, last = ?3, "
            "number = number + ?4",
            (stage, stamp, last, len(entries)),
        )
        self._commit(db)


def _stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _rank(stage: str) -> tuple[int, str]:
    return (LEDGER.index(stage) if stage in LEDGER else len(LEDGER), stage)


def _place(stage: str, position: int) -> int:
    return _rank(stage)[0] * PLACES + min(max(position, 0), PLACES - 1)


def _numbers(
    db: sqlite3.Connection, stage: str, entries: Sequence[Entry]
) -> tuple[dict[tuple[str, ...], int], dict[tuple[int, ...], int]]:
    """The numbers of the entries' kinds and of their sets of principles; new ones are entered."""
    kinds: dict[tuple[str, ...], int] = {}
    for kind in dict.fromkeys(map(_kind, entries)):
        query = (
            "SELECT kind FROM kinds WHERE stage = ? AND state = ? AND reason = ? AND source = ? AND type = ? "
            "AND split = ? AND model = ?"
        )
        if (found := db.execute(query, (stage, *kind)).fetchone()) is None:
            entered = "INSERT INTO kinds VALUES (NULL, ?, ?, ?, ?, ?, ?, ?) RETURNING kind"
            found = db.execute(entered, (stage, *kind)).fetchone()
        kinds[kind] = found[0]
    sets: dict[tuple[int, ...], int] = {}
    for members in dict.fromkeys(e.principles for e in entries):
        sets[members] = _set_number(members)
        db.executemany("INSERT OR IGNORE INTO sets VALUES (?, ?)", [(sets[members], p) for p in members])
    return kinds, sets


def _set_number(members: tuple[int, ...]) -> int:
    """A number that these principles have and no others; 0 for none."""
    return int(content_hash("cites", sorted(members))[:15], 16) if members else 0


def _kind(entry: Entry) -> tuple[str, ...]:
    return (entry.fate.state, entry.fate.reason, entry.source, entry.type, entry.split, entry.model)


def _fates(journal: sqlite3.Connection, stage: str, numbers: Sequence[int]) -> list[RowOutcome]:
    """Those of the journal's rows, in their order; without those that were decided anew meanwhile."""
    found: list[RowOutcome] = []
    for start in range(0, len(numbers), 500):
        part = numbers[start : start + 500]
        marks = ",".join("?" * len(part))
        query = f"SELECT rowid, id, position, state, reason, text FROM rows WHERE rowid IN ({marks}) AND stage = ?"  # noqa: S608
        found += [RowOutcome(*row) for row in journal.execute(query, (*part, stage))]
    return sorted(found, key=lambda fate: fate.rowid)
