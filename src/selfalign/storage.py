"""A run kept in shared storage (fsspec: s3://, gs://, a shared folder), so that another machine takes it up.

The run's folder stays where the command runs; what stands in storage is a state of it that is whole:

    index.json          what the state consists of: name, SHA-256 and size of each file; written last
    objects/<SHA-256>   the files, and the journal as SQLite copies it while it is written

A state is saved when a stage ends, every ten minutes meanwhile, and when the command ends. Its number is one more than
that of the state before, and the folder remembers the number that it saved: who goes on from an older one is told so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from selfalign import atomic
from selfalign.errors import Resumable, UserError
from selfalign.strict import Strict

EVERY_SECONDS = 600.0
JOURNAL, NOTE = "journal.sqlite", "storage.json"
_BLOCK = 1 << 22
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_LEFT_OUT = re.compile(r"(journal\.|view\.sqlite|export/|storage\.json).*|(.*/)?\..*")
"""The journal is copied by SQLite; exports and the viewer's cache are made anew from the rest."""


def _location(value: str) -> str:
    if not (re.fullmatch(r"[a-z][a-z0-9+]*://[^\s?#@]+", value) or Path(value).is_absolute()) or "::" in value:
        raise ValueError(f"{value!r} is neither an address as s3://BUCKET/RUN (no keys in it) nor an absolute path")
    return value


Location = Annotated[str, AfterValidator(_location)]
"""Where a run is kept: an address that fsspec knows, or an absolute path. Keys come from the environment."""


class _File(Strict):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class _Index(Strict):
    format: Literal[1] = 1
    number: int = Field(ge=1)
    """One more than the state's before."""
    saved: str
    """When, UTC."""
    files: dict[str, _File]


class Storage:
    """One run's place in storage.

    Args:
        location: see `Location`.

    Raises:
        UserError: no such kind of storage, or a package for it is missing.
    """

    def __init__(self, location: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise UserError("storage needs fsspec: pip install 'selfalign[storage]'") from None
        self.location = location.rstrip("/")
        kind = location.partition("://")[0] if "://" in location else "file"
        try:
            more = {"auto_mkdir": True} if kind == "file" else {}
            self._fs, root = url_to_fs(self.location, **more)
        except (ImportError, ValueError) as error:
            name = _PACKAGES.get(kind)
            how = f"it needs {name}: pip install {name}" if name else str(error)
            raise UserError(f"storage {location}: {how}") from None
        except Exception as error:  # what a library of a storage raises is its own
            raise UserError(f"storage {location} cannot be used ({_short(error)})") from None
        self._root = root.rstrip("/")
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def check(self) -> None:
        """Write, read and remove a small object. Raises UserError where that fails: before anything is spent."""
        name = f"{self._root}/objects/check"
        try:
            self._fs.pipe_file(name, b"selfalign")
            found = self._fs.cat_file(name)
            self._fs.rm_file(name)
        except Exception as error:
            raise UserError(f"storage {self.location} cannot be written ({_short(error)})") from None
        if found != b"selfalign":
            raise UserError(f"storage {self.location} does not give back what was written to it")

    def index(self) -> _Index | None:
        """What is kept there; None where nothing is.

        Raises:
            UserError: it cannot be read, or is no index of ours.
        """
        try:
            text = self._fs.cat_file(f"{self._root}/index.json")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise UserError(f"storage {self.location} cannot be read ({_short(error)})") from None
        try:
            found = _Index.model_validate_json(text)
        except ValidationError:
            raise UserError(
                f"{self.location}/index.json is not a run that selfalign keeps: name another place"
            ) from None
        for name in found.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name or _strange(name):
                raise UserError(f"{self.location}/index.json names {name!r}, which is no file of a run")
        return found

    def put(self, stream: IO[bytes], known: set[str]) -> _File:
        """Keep what an open file holds now, unless it is kept already. Raises what the storage raises."""
        size = stream.seek(0, 2)
        sha = _sha(_blocks(stream, size))
        if sha not in known:
            with self._fs.open(f"{self._root}/objects/{sha}", "wb") as target:
                for block in _blocks(stream, size):
                    target.write(block)
        return _File(sha256=sha, bytes=size)

    def publish(self, index: _Index) -> None:
        """Write the index: at once whole, in every kind of storage. Raises what the storage raises."""
        text, name = index.model_dump_json(indent=1).encode(), f"{self._root}/index.json"
        if self._local:
            atomic.write_bytes(Path(name), text)
        else:
            self._fs.pipe_file(name, text)

    def forget(self, hashes: set[str]) -> None:
        """Remove objects that no state needs; what cannot be removed stays."""
        for sha in hashes:
            with contextlib.suppress(Exception):
                self._fs.rm_file(f"{self._root}/objects/{sha}")

    def take(self, path: Path, index: _Index) -> None:
        """Make the run's folder from the state that is kept.

        Raises:
            UserError: an object is missing or is not what the index says.
            Resumable: the disk is full.
        """
        atomic.check_space(path, sum(f.bytes for f in index.files.values()))
        with atomic.new_folder(path) as folder:
            for name, file in index.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic.disk_errors(target), target.open("wb") as made:
                    self._fetch(file, made, name)
            (folder / NOTE).write_text(_note(self.location, index.number), "utf-8")

    def _fetch(self, file: _File, target: IO[bytes], name: str) -> None:
        digest = hashlib.sha256()
        try:
            with self._fs.open(f"{self._root}/objects/{file.sha256}", "rb") as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    target.write(block)
        except FileNotFoundError:
            raise UserError(
                f"{self.location} lacks {name} (objects/{file.sha256}): a command that saved there meanwhile may have "
                "replaced it; try again"
            ) from None
        if digest.hexdigest() != file.sha256:
            raise UserError(f"{self.location}: {name} is not what was saved (objects/{file.sha256})")


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
                    f"not saved to {self.storage.location} ({_short(error)}); the run in {self.path} is whole, and the "
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
        made = _Index(number=number, saved=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), files=files)
        self._check_mine()
        self.storage.publish(made)
        atomic.write_text(self.path / NOTE, _note(self.storage.location, number))
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

    def _put_all(self) -> dict[str, _File]:
        """The journal as of one moment and the files that belong to it."""
        known = {f.sha256 for f in self._index.files.values()} if self._index else set()
        while True:
            files: dict[str, _File] = {}
            with _copied(self.path / JOURNAL) as stream:
                published = _published(Path(stream.name))
                files[JOURNAL] = self.storage.put(stream, known)
            for file in sorted(p for p in self.path.rglob("*") if p.is_file() and not p.is_symlink()):
                name = file.relative_to(self.path).as_posix()
                if not _LEFT_OUT.fullmatch(name):
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


def _ours(path: Path, storage: Storage) -> _Index | None:
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


def _note(location: str, number: int) -> str:
    return json.dumps({"location": location, "number": number}) + "\n"


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


def _blocks(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes: what is appended meanwhile is part of the next state."""
    stream.seek(0)
    while size > 0 and (block := stream.read(min(_BLOCK, size))):
        size -= len(block)
        yield block


def _sha(blocks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _strange(name: str) -> bool:
    return not name.isprintable() or (name != JOURNAL and bool(_LEFT_OUT.fullmatch(name)))


def _short(error: Any) -> str:
    """The first line of what a library said."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
