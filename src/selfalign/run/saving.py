"""Save a run's states to its storage, and resume the run from there on another machine.

A state is saved when a stage ends, every ten minutes, and when the command ends. `storage.json` in the run's folder
records which states the folder saved: a state that another folder saved is never replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from selfalign.errors import Resumable, UserError
from selfalign.run.directory import LOCK, acquire_lock
from selfalign.run.storage import JOURNAL, NOT_SAVED, File, Index, Storage, can_save, library_errors
from selfalign.system import atomic

SAVE_EVERY_SECONDS = 600.0
RECORD, FETCHED = "storage.json", "fetched"


class StateSaver:
    """Save the states of one run while a command works in it.

    Args:
        path: the run's folder.
        report: gets a line, with its style, about each saved state and each failure.

    Raises:
        UserError: storage cannot be read, or holds a state that the folder did not save.
    """

    def __init__(self, path: Path, storage: Storage, report: Callable[[str, str], None]) -> None:
        self.path, self.storage, self._report = path, storage, report
        self._index = _own_index(path, storage)
        self._lock = threading.Lock()
        self._uploaded: set[str] = set()
        """Hashes of objects that were uploaded since the last saved state."""
        self._read: dict[str, tuple[tuple[int, ...], File]] = {}
        """Name -> inode, time and size of the file when it was last read, and its content; avoids reading it again."""
        self._skipped: set[str] = set()
        self._closed = threading.Event()
        threading.Thread(target=self._save_regularly, name="storage", daemon=True).start()

    def _save_regularly(self) -> None:
        while not self._closed.wait(SAVE_EVERY_SECONDS):
            self.try_save()

    def try_save(self) -> bool:
        """Save the state; report a failure instead of raising it. Returns whether the state is saved."""
        try:
            self.save()
        except (Resumable, UserError) as error:
            self._report(f"  {error}", "yellow")
            return False
        return True

    def save(self) -> None:
        """Save the state if it changed.

        Raises:
            Resumable: storage failed; the run's folder is complete.
            UserError: another folder saved a state there since.
        """
        failed = f"{self.path} is complete, but not saved to {self.storage.location}; run the command again to save it"
        with self._lock, library_errors(Resumable, failed):
            self._save()

    def _save(self) -> None:
        self._index = _own_index(self.path, self.storage)
        before = self._index.files if self._index else {}
        stored = {file.sha256 for file in before.values()}
        files = self._upload(stored)
        if files == before:
            return
        number = self._index.number + 1 if self._index else 1
        new = Index(number=number, saved=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), files=files)
        self._index = _own_index(self.path, self.storage)
        # The record comes first: if the command is killed in between, the state in storage is one of its own.
        _write_record(self.path, self.storage, self._index, new)
        self.storage.publish(new)
        self._index = _own_index(self.path, self.storage)
        self.storage.remove((stored | self._uploaded) - {file.sha256 for file in files.values()})
        self._uploaded = set()
        size = sum(file.bytes for file in files.values())
        self._report(f"  saved to {self.storage.location}: {len(files)} files, {size / 1e6:,.1f} MB", "dim")

    def _upload(self, stored: set[str]) -> dict[str, File]:
        """Upload a consistent copy of the journal and the files that belong to it; return the state's files.

        Args:
            stored: hashes of the objects in storage.
        """
        present = set(stored)
        while True:
            with _journal_copy(self.path / JOURNAL) as stream:
                published = _published_files(Path(stream.name))
                files = {JOURNAL: self._put(stream, present)}
            for path in sorted(p for p in self.path.rglob("*") if p.is_file() and not p.is_symlink()):
                name = path.relative_to(self.path).as_posix()
                if name == JOURNAL or NOT_SAVED.fullmatch(name):
                    continue
                if can_save(name):
                    with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
                        files[name] = self._put_if_changed(name, stream, present)
                elif name not in self._skipped:
                    self._skipped.add(name)
                    self._report(f"  not saved to storage because of its name: {name!r}", "yellow")
            # A stage removes the entries of its files from the journal, writes the files, and adds the entries again.
            if _published_files(self.path / JOURNAL) == published:
                return files

    def _put(self, stream: IO[bytes], present: set[str]) -> File:
        file = self.storage.put(stream, present)
        if file.sha256 not in present:
            self._uploaded.add(file.sha256)
            present.add(file.sha256)
        return file

    def _put_if_changed(self, name: str, stream: IO[bytes], present: set[str]) -> File:
        state = os.fstat(stream.fileno())
        mark = (state.st_ino, state.st_mtime_ns, state.st_size)
        read = self._read.get(name)
        if not read or read[0] != mark or read[1].sha256 not in present:
            read = self._read[name] = (mark, self._put(stream, present))
        return read[1]

    def close(self) -> None:
        """Save the last state and stop. A failure is only reported, to keep the result of the command."""
        if not self._closed.is_set():
            self._closed.set()
            self.try_save()


def fetch_if_missing(path: Path, location: str, new: bool = False) -> bool:
    """Check that a run can be saved, and fetch it if only storage holds it. Call it before the run is opened.

    Args:
        new: the run in the folder will be renamed, and another one created.

    Returns:
        Whether the run was fetched.

    Raises:
        UserError: storage cannot be used, holds a state that the folder did not save, or another command is fetching.
        Resumable: the disk is full, or storage failed.
        Interrupted: a signal came.
    """
    storage = Storage(location)
    storage.check_outside(path)
    storage.check_writable()
    index = storage.index()
    if index and new:
        raise UserError(f"{location} holds a run already; --new needs another storage, or remove that run")
    if (path / JOURNAL).exists():
        _own_index(path, storage)
    elif index and _is_vacant(path):
        return _fetch(path, storage, index)
    return False


def _is_vacant(path: Path) -> bool:
    """Return whether the folder is empty, apart from files of a killed fetch."""
    if not path.exists():
        return True
    names = [p.name for p in path.iterdir()] if path.is_dir() else ["a file"]
    matches = [match for name in names if (match := atomic.HALF_WRITTEN.fullmatch(name))]
    return any(match[1] == FETCHED for match in matches) or set(names) <= {LOCK}


def _fetch(path: Path, storage: Storage, index: Index) -> bool:
    """Fetch a state into the folder, under the run's lock; the journal, which makes it a run, comes last."""
    lock = None
    try:
        with atomic.disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = acquire_lock(path)
            if (path / JOURNAL).exists():  # another command has fetched it in the meantime
                _own_index(path, storage)
                return False
            atomic.sweep(path)
            atomic.check_space(path, sum(file.bytes for file in index.files.values()))
            with tempfile.TemporaryDirectory(dir=path, prefix=f".{FETCHED}.", suffix=".incomplete") as folder:
                for name, file in index.files.items():
                    (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                    with (Path(folder) / name).open("wb") as target:
                        storage.fetch(file, name, target)
                        os.fsync(target.fileno())
                _write_record(path, storage, index)
                for name in sorted(index.files, key=lambda name: name == JOURNAL):
                    (path / name).parent.mkdir(parents=True, exist_ok=True)
                    (Path(folder) / name).replace(path / name)
            return True
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None
    finally:
        if lock is not None:
            if not (path / JOURNAL).exists():
                (path / RECORD).unlink(missing_ok=True)
                (path / LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.rmdir()
            os.close(lock)


def _own_index(path: Path, storage: Storage) -> Index | None:
    """Return the state in storage; None if there is none. Raises UserError if the folder did not save it."""
    storage.check_outside(path)
    index = storage.index()
    if index and index.digest not in _read_record(path).get(storage.address, ()):
        raise UserError(
            f"{storage.location} holds a state of {index.saved} that {path} did not save; nothing was replaced. "
            "Use another --out to resume that state, or another storage for this run"
        )
    return index


def _read_record(path: Path) -> dict[str, list[str]]:
    """Return, for each storage, the digests of the last state that the folder saved there and of the next one."""
    try:
        record = json.loads((path / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and all(isinstance(v, list) for v in record.values()) else {}


def _write_record(path: Path, storage: Storage, *states: Index | None) -> None:
    record = {**_read_record(path), storage.address: [state.digest for state in states if state]}
    atomic.write_text(path / RECORD, json.dumps(record) + "\n")


@contextlib.contextmanager
def _journal_copy(journal: Path) -> Iterator[IO[bytes]]:
    """Yield a copy of the journal at this moment, even while it is written.

    The copy is in a folder of its own: after a kill, `atomic.sweep` removes it together with SQLite's other files.
    """
    with tempfile.TemporaryDirectory(dir=journal.parent, prefix=f".{journal.name}.", suffix=".incomplete") as folder:
        copy = Path(folder) / journal.name
        with (
            atomic.disk_errors(journal),
            _read_only(journal) as source,
            contextlib.closing(sqlite3.connect(copy)) as db,
        ):
            source.backup(db)
            db.execute("PRAGMA journal_mode=DELETE")  # one file
        with copy.open("rb") as file:
            yield file


def _published_files(journal: Path) -> list[Any]:
    with _read_only(journal) as db:
        return db.execute("SELECT stage, inputs, files FROM published ORDER BY stage").fetchall()


def _read_only(journal: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True))
