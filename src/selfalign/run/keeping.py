"""When a run's state is saved to its storage, by whom, and where a command takes it up.

A state is saved when a stage ends, every ten minutes meanwhile, and when the command ends. The folder
remembers which states are its own: who goes on from an older one is told so.
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
from selfalign.run.directory import LOCK, hold
from selfalign.run.storage import FETCHED, JOURNAL, LEFT_OUT, NOTE, File, Index, Storage, is_kept, note, short
from selfalign.system import atomic

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
        self._told = False
        """The command's end says already that its state could not be kept."""
        self._sent: set[str] = set()
        """Objects that no state holds yet: of one that did not come about, or is about to."""
        self._seen: dict[str, tuple[tuple[int, ...], File]] = {}
        """Of each file, when it was read: its place on the disk, time and size. It is read again where one changed."""
        self._odd: set[str] = set()
        """Files that were named as left out."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._now_and_then, name="storage", daemon=True)
        self._thread.start()

    def _now_and_then(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self.try_save()

    def try_save(self) -> bool:
        """As `save`; what fails is said and tried again later."""
        try:
            self._save_alone()
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
        try:
            self._save_alone()
        except (Resumable, UserError):
            self._told = True
            raise

    def _save_alone(self) -> None:
        with self._lock:
            try:
                self._save()
            except (Resumable, UserError):
                raise
            except Exception as error:  # what a library of a storage raises is its own
                raise Resumable(
                    f"not saved to {self.storage.location} ({short(error)}); the run in {self.path} is whole, and the "
                    "same command saves it again"
                ) from error

    def _save(self) -> None:
        self._check_mine()
        before = self._index.files if self._index else {}
        known = {f.sha256 for f in before.values()}
        try:
            files = self._put_all(known)
        except BaseException:
            self.storage.forget(self._sent - known)
            self._sent = set()
            raise
        if files == before:
            return
        number = self._index.number + 1 if self._index else 1
        made = Index(number=number, saved=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), files=files)
        self._check_mine()
        # The note first: who ends between the two finds a state that is his, the old one or the new one.
        _remember(self.path, self.storage, self._index, made)
        self.storage.publish(made)
        self._check_mine()
        needed = {f.sha256 for f in files.values()}
        self.storage.forget((known | self._sent) - needed)
        self._sent = set()
        size = sum(f.bytes for f in files.values())
        self._say(f"  saved to {self.storage.location}: {len(files)} files, {size / 1e6:,.1f} MB", "dim")

    def _check_mine(self) -> None:
        there = self.storage.index()
        if there and there.digest not in _noted(self.path).get(self.storage.place, ()):
            raise UserError(
                f"{self.storage.location} was saved to by another command since ({there.saved}): nothing there was "
                f"replaced, and {self.path} is whole. Name another storage to keep this one as well"
            )
        self._index = there

    def _put_all(self, known: set[str]) -> dict[str, File]:
        """The journal as of one moment and the files that belong to it."""

        there = set(known)

        def put(stream: IO[bytes]) -> File:
            made = self.storage.put(stream, there)
            self._sent.update({made.sha256} - known)
            there.add(made.sha256)
            return made

        while True:
            files: dict[str, File] = {}
            with _copied(self.path / JOURNAL) as stream:
                published = _published(Path(stream.name))
                files[JOURNAL] = put(stream)
            for file in sorted(p for p in self.path.rglob("*") if p.is_file() and not p.is_symlink()):
                name = file.relative_to(self.path).as_posix()
                if is_kept(name) and name != JOURNAL:
                    with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
                        state = os.fstat(stream.fileno())
                        seen = (state.st_ino, state.st_mtime_ns, state.st_size)
                        before = self._seen.get(name)
                        if not before or before[0] != seen or before[1].sha256 not in there:
                            self._seen[name] = (seen, put(stream))
                        files[name] = self._seen[name][1]
                elif not LEFT_OUT.fullmatch(name) and name not in self._odd:
                    self._odd.add(name)
                    self._say(f"  not saved to storage, for its name: {name!r}", "yellow")
            # A stage takes its files out of the journal before it writes them anew, and enters them when they stand.
            if _published(self.path / JOURNAL) == published:
                return files

    def close(self) -> None:
        """Save what there is; a failure is said, for the command's own end is what matters."""
        if not self._ended.is_set():
            self._ended.set()
            if not self._told:
                self.try_save()


def take_up(path: Path, location: str, new: bool = False) -> bool:
    """Before a run is made or goes on: see that it can be saved, and fetch it where only storage holds it.

    Args:
        new: the run in the folder is to be set aside for another.

    Returns:
        Whether it was fetched.

    Raises:
        UserError: storage cannot be used, or holds something newer or other than the folder, or another command
            fetches it there now.
        Resumable: the disk is full, or storage fails.
        Interrupted: a signal came while it was fetched.
    """
    storage = Storage(location)
    storage.check_apart(path)
    storage.check()
    there = storage.index()
    if there and new:
        raise UserError(f"{location} holds a run already: --new needs another storage, or that one removed")
    if (path / JOURNAL).exists():
        _ours(path, storage)
    elif there and _vacant(path):
        _fetch(path, storage, there)
        return True
    return False


def _vacant(path: Path) -> bool:
    """Whether nothing is there but what a command left that was killed while it fetched."""
    if not path.exists():
        return True
    names = [p.name for p in path.iterdir()] if path.is_dir() else ["a file"]
    halves = [found for name in names if (found := atomic.HALF_WRITTEN.fullmatch(name))]
    return any(half[1] == FETCHED for half in halves) or set(names) <= {LOCK}


def _fetch(path: Path, storage: Storage, index: Index) -> None:
    """Under the run's lock: no two commands fetch into one folder, and none where another works."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made: {error.strerror}") from None
    lock = hold(path)
    try:
        if (path / JOURNAL).exists():  # another command was quicker, and has ended
            _ours(path, storage)
            return
        atomic.sweep(path)
        storage.take(path, index)
    except BaseException:
        if not (path / JOURNAL).exists():
            (path / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    finally:
        os.close(lock)


def _ours(path: Path, storage: Storage) -> Index | None:
    """What storage holds of the folder's run; None where it holds nothing. Raises as `Keeper`."""
    storage.check_apart(path)
    there = storage.index()
    if there and there.digest not in _noted(path).get(storage.place, ()):
        raise UserError(
            f"{storage.location} holds a state (of {there.saved}) that {path} did not save: name another --out to take "
            "that one up, or another storage for this one"
        )
    return there


def _noted(path: Path) -> dict[str, list[str]]:
    """For each place, the digests of the states that the folder saved there last, or was about to."""
    try:
        found = json.loads((path / NOTE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(v, list) for v in found.values())
    return found if whole else {}


def _remember(path: Path, storage: Storage, *states: Index | None) -> None:
    known = {**_noted(path), storage.place: [state.digest for state in states if state]}
    atomic.write_text(path / NOTE, note(known))


@contextlib.contextmanager
def _copied(journal: Path) -> Iterator[IO[bytes]]:
    """A copy of the journal as of now, also while it is written.

    In a folder of its own: SQLite writes a log beside it, and nobody else would remove that after a killed command.
    """
    with tempfile.TemporaryDirectory(dir=journal.parent, prefix=f".{journal.name}.", suffix=".incomplete") as folder:
        copy = Path(folder) / journal.name
        with (
            atomic.disk_errors(journal),
            contextlib.closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            # One file: whoever opens it makes its own log beside it.
            target.execute("PRAGMA journal_mode=DELETE")
        with copy.open("rb") as file:
            yield file


def _published(journal: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)) as source:
        return source.execute("SELECT stage, inputs, files FROM published ORDER BY stage").fetchall()
