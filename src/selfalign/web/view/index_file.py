"""Create and open the viewer's index: an SQLite database that may be deleted at any time."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from importlib import resources
from pathlib import Path

from selfalign.errors import UserError

VERSION = "3"


class IndexFile:
    """The file of an index. Threads and processes may share it.

    Args:
        is_default: whether this is the default path of a run, where any other file may be replaced.
    """

    def __init__(self, path: Path, is_default: bool) -> None:
        self.path = path
        self.created = 0
        """How many times this process has created the file."""
        self._is_default = is_default
        self._lock = threading.Lock()

    def create(self) -> None:
        """Create the file, unless it is an index of this version already.

        Raises:
            UserError: the file cannot be written, or is not an index.
        """
        try:
            version = self._version()
            if version == VERSION:
                return
            if version == "" and not self._is_default:
                raise UserError(f"{self.path} is not an index of the viewer: use --cache with the name of a new file")
            for end in ("-wal", "-shm", "") if version is not None else ():
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
            with self._connect() as db:
                db.execute("BEGIN IMMEDIATE")
                if not _tables(db):  # another viewer may have created them just now
                    schema = (resources.files("selfalign") / "web/view/index.sql").read_text("utf-8")
                    for statement in schema.split(";"):
                        db.execute(statement)
                    db.executemany("INSERT INTO meta VALUES (?, ?)", [("version", VERSION), ("generation", "0")])
                db.execute("COMMIT")
        except (sqlite3.OperationalError, OSError) as error:
            raise UserError(f"{self.path} cannot be written ({error}): choose another file with --cache") from None
        self.created += 1

    def _version(self) -> str | None:
        """Return the version of the index; None if there is no file, "" if it is not an index."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return None
        try:
            with closing(read_only(self.path)) as db:
                if not (tables := _tables(db)):
                    return None
                if {"meta", "kinds", "cube", "texts"} <= tables:
                    row = db.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
                    return str(row[0]) if row else "0"
        except sqlite3.OperationalError:
            if self.path.is_file():
                raise  # another viewer locks it just now
        except sqlite3.DatabaseError:
            pass
        return ""

    def _recreate_if_deleted(self) -> None:
        if not self.path.exists():
            with self._lock:
                if not self.path.exists():
                    self.create()

    def reading(self) -> closing[sqlite3.Connection]:
        """Open a read-only connection for this thread."""
        self._recreate_if_deleted()
        db = read_only(self.path)
        db.execute("PRAGMA cache_size=-16000")
        return closing(db)

    def writing(self) -> closing[sqlite3.Connection]:
        """Open a connection for this thread."""
        self._recreate_if_deleted()
        return self._connect()

    def _connect(self) -> closing[sqlite3.Connection]:
        db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        try:
            db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-32000")
        except sqlite3.Error:
            db.close()
            raise
        return closing(db)


def _tables(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master")}


def read_only(path: Path) -> sqlite3.Connection:
    """Open a database read-only, even if another process writes it or its folder is not writable."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    except sqlite3.OperationalError:
        if os.access(path.parent, os.W_OK):
            raise
        # WAL mode needs to create a file in this folder. Assume that a read-only folder has no writer at all.
        db = sqlite3.connect(f"{uri}&immutable=1", uri=True, isolation_level=None)
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1")
    return db
