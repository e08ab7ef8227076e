"""The file of the viewer's cache: begun where there is none or where it was deleted, taken where there is one."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfalign.errors import UserError

VERSION = "1"

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE stages(stage TEXT PRIMARY KEY, stamp TEXT NOT NULL, last INTEGER NOT NULL, number INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE TABLE files(name TEXT PRIMARY KEY, size INTEGER, changed INTEGER, hash TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE kinds(
  kind INTEGER PRIMARY KEY, stage TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, source TEXT NOT NULL,
  type TEXT NOT NULL, split TEXT NOT NULL, model TEXT NOT NULL,
  UNIQUE (stage, state, reason, source, type, split, model));
CREATE TABLE sets(cites INTEGER NOT NULL, principle INTEGER NOT NULL, PRIMARY KEY (cites, principle)) WITHOUT ROWID;
CREATE TABLE rows(
  n INTEGER PRIMARY KEY, place INTEGER NOT NULL, stage TEXT NOT NULL, id TEXT NOT NULL, about TEXT NOT NULL,
  kind INTEGER NOT NULL, cites INTEGER NOT NULL);
CREATE INDEX rows_place ON rows(place, kind);
CREATE INDEX rows_stage ON rows(stage);
CREATE UNIQUE INDEX rows_id ON rows(id, stage);
CREATE INDEX rows_about ON rows(about);
CREATE TABLE cited(principle INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (principle, n)) WITHOUT ROWID;
CREATE TABLE marks(n INTEGER PRIMARY KEY, mark TEXT NOT NULL, answer TEXT NOT NULL);
CREATE TABLE texts(n INTEGER PRIMARY KEY, topic TEXT NOT NULL, prompt TEXT NOT NULL, message TEXT NOT NULL,
  thoughts TEXT NOT NULL, answer TEXT NOT NULL);
CREATE VIRTUAL TABLE found USING fts5(
  message, thoughts, answer, content='texts', content_rowid='n', tokenize='unicode61 remove_diacritics 2');
CREATE TABLE cube(
  kind INTEGER NOT NULL, principle INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (kind, principle)
) WITHOUT ROWID;
"""
# kinds: all that rows are filtered by but the principles; sets: which principles a row cites together; place: the rank
# of the stage and the position in it; cube: how many rows of a kind there are, once for the row (principle 0) and once
# for each principle that it cites. So a count is a sum over few kinds, whatever the number of rows.


class Cache:
    """The cache's file. Threads may share it, and so may other processes.

    Args:
        path: where it stands.
        own: the name is the viewer's own: whatever is there may be replaced.
    """

    def __init__(self, path: Path, own: bool) -> None:
        self.path = path
        self.begun = 0
        """How often it was begun here: it may be deleted at any time."""
        self._own = own
        self._lock = threading.Lock()

    def make(self) -> None:
        """Take the cache that is there, or begin one.

        Raises:
            UserError: it cannot be written there, or another file stands there.
        """
        known = self._version()
        if known == VERSION:
            return
        if known == "" and not self._own:
            raise UserError(
                f"{self.path} is another file: --cache FILE must name a new one, or an index of the viewer's"
            )
        try:
            for end in ("-wal", "-shm", "") if known is not None or not self.path.exists() else ():
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
            with self._opened() as db:
                db.execute("BEGIN IMMEDIATE")
                if not _tables(db):  # or another viewer has just begun it
                    for statement in _SCHEMA.split(";"):
                        db.execute(statement)
                    db.executemany("INSERT INTO meta VALUES (?, ?)", [("version", VERSION), ("generation", "0")])
                db.execute("COMMIT")
        except (sqlite3.OperationalError, OSError) as error:
            raise UserError(f"{self.path} cannot be written ({error}): --cache FILE puts it elsewhere") from None
        self.begun += 1

    def _version(self) -> str | None:
        """Of the cache that is there; None where there is nothing, and no text where it is another file."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return None
        with suppress(sqlite3.DatabaseError), self._read_only() as db:
            if not (tables := _tables(db)):
                return None
            if {"meta", "kinds", "cube", "texts"} <= tables:
                found = db.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
                return str(found[0]) if found else "0"
        return ""

    def _expect(self) -> None:
        """Begin it again where somebody deleted it."""
        if not self.path.exists():
            with self._lock:
                if not self.path.exists():
                    self.make()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that cannot write, for this thread."""
        self._expect()
        with self._read_only() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread."""
        self._expect()
        with self._opened() as db:
            yield db

    @contextmanager
    def _read_only(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10)
        try:
            db.execute("PRAGMA cache_size=-16000")
            yield db
        finally:
            db.close()

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA cache_size=-32000")
            yield db
        finally:
            db.close()


def _tables(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
