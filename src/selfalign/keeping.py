"""When a run's state is saved to its storage, by whom, and where a command takes it up.

A state is saved when a stage ends, every ten minutes meanwhile, and when the command ends. Its number is one more than
that of the state before, and the folder remembers the number that it saved: who goes on from an older one is told so.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from selfalign import atomic
from selfalign.errors import Resumable, UserError
from selfalign.storage import JOURNAL, LEFT_OUT, NOTE, File, Index, Storage, note, short

EVERY_SECONDS = 600.0


class Keeper:
    """Saves one run's states while a command works in it.

    Args:
        path: the run's folder.
        storage: where to.
        say: told, in one line, of what was saved and of what failed.

    Raises:
        UserError: storage cannot be read, or holds something newer or other than the folder.
    """

    def __init__(self, path: Path, storage: Storage, say: Callable[[str, str], None]) -> None:
        self.path, self.storage = path, storage
        self._say = say
        self._lock = threading.Lock()
        self._index = _ours(path, storage)
        self._failed = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._now_and_then, name="storage", daemon=True)
        self._thread.start()

    def _now_and_then(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self.try_save()

    def try_save(self) -> bool:
        """As `save`; what fails is said and tried again later."""
        try:
            self.save()
        except (Resumable, UserError) as error:
            self._say(f"  {error}", "yellow")
            return False
        return True

    def save(self) -> None:
        """Keep the state of now, if it is another than the one before.

        Raises:
            Resumable: it cannot be kept now; nothing of the run is lost.
            UserError: somebody else saved there since.
        """
        with self._lock:
            self._failed = True
            try:
                self._save()
            except (Resumable, UserError):
                raise
            except Exception as error:  # what a library of a storage raises is its own
                raise Resumable(
                    f"not saved to {self.storage.location} ({short(error)}); the run in {self.path} is whole, and the "
                    "same command saves it again"
                ) from error
            self._failed = False

    def _save(self) -> None:
        self._check_mine()
        files = self._put_all()
        before = self._index.files if self._index else {}
        if files == before:
            return
        number = self._index.number + 1 if self._index else 1
        made = Index(number=number, saved=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), files=files)
        self._check_mine()
        self.storage.publish(made)
        atomic.write_text(self.path / NOTE, note(self.storage.location, number))
        self._index = made
        self.storage.forget({f.sha256 for f in before.values()} - {f.sha256 for f in files.values()})
        size = sum(f.bytes for f in files.values())
        self._say(f"  saved to {self.storage.location}: {len(files)} files, {size / 1e6:,.1f} MB", "dim")

    def _check_mine(self) -> None:
        there, ours = self.storage.index(), self._index.number if self._index else 0
        if there and there.number != ours:
            raise UserError(
                f"{self.storage.location} was saved to by another command since ({there.saved}): nothing there was "
                f"replaced, and {self.path} is whole. Name another storage to keep this one as well"
            )

    def _put_all(self) -> dict[str, File]:
        """The journal as of one moment and the files that belong to it."""
        known = {f.sha256 for f in self._index.files.values()} if self._index else set()
        while True:
            files: dict[str, File] = {}
            with _copied(self.path / JOURNAL) as stream:
                published = _published(Path(stream.name))
                files[JOURNAL] = self.storage.put(stream, known)
            for file in sorted(p for p in self.path.rglob("*") if p.is_file() and not p.is_symlink()):
                name = file.relative_to(self.path).as_posix()
                if not LEFT_OUT.fullmatch(name):
                    with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
                        files[name] = self.storage.put(stream, known)
            # A stage takes its files out of the journal before it writes them anew, and enters them when they stand.
            if _published(self.path / JOURNAL) == published:
                return files

    def close(self) -> None:
        """Save what there is; a failure is said, for the command's own end is what matters."""
        if not self._ended.is_set():
            self._ended.set()
            if not self._failed:
                self.try_save()


def take_up(path: Path, location: str, new: bool = False) -> None:
    """Before a run is made or goes on: see that it can be saved, and fetch it where only storage holds it.

    Args:
        new: the run in the folder is to be set aside for another.

    Raises:
        UserError: storage cannot be used, or holds something newer or other than the folder.
        Resumable: the disk is full.
    """
    storage = Storage(location)
    storage.check()
    there = storage.index()
    if there and new:
        raise UserError(f"{location} holds a run already: --new needs another storage, or that one removed")
    if there and (not path.exists() or (path.is_dir() and not any(path.iterdir()))):
        storage.take(path, there)
    elif (path / JOURNAL).exists():
        _ours(path, storage)


def _ours(path: Path, storage: Storage) -> Index | None:
    """What storage holds of the folder's run; None where it holds nothing. Raises as `Keeper`."""
    there = storage.index()
    if there and _noted(path, storage.location) != there.number:
        raise UserError(
            f"{storage.location} holds a state (of {there.saved}) that {path} did not save: name another --out to take "
            "that one up, or another storage for this one"
        )
    return there


def _noted(path: Path, location: str) -> int:
    """The number of the state that the folder saved there; 0 where it saved none."""
    try:
        found = json.loads((path / NOTE).read_text("utf-8"))
    except (OSError, ValueError):
        return 0
    here = isinstance(found, dict) and found.get("location") == location
    return found["number"] if here and isinstance(found.get("number"), int) else 0


@contextlib.contextmanager
def _copied(journal: Path) -> Iterator[IO[bytes]]:
    """A copy of the journal as of now, also while it is written."""
    with tempfile.NamedTemporaryFile(dir=journal.parent, prefix=f".{journal.name}.", suffix=".tmp") as file:
        with (
            atomic.disk_errors(journal),
            contextlib.closing(sqlite3.connect(f"file:{journal.absolute()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(file.name)) as target,
        ):
            source.backup(target)
            # One file: whoever opens it makes its own log beside it.
            target.execute("PRAGMA journal_mode=DELETE")
        yield file


def _published(journal: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(f"file:{journal.absolute()}?mode=ro", uri=True)) as source:
        return source.execute("SELECT stage, inputs, files FROM published ORDER BY stage").fetchall()
