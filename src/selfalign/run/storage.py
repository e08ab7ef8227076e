"""A run kept in shared storage (fsspec: s3://, gs://, a shared folder), so that another machine takes it up.

The run's folder stays where the command runs; what stands in storage is a state of it that is whole:

    index.json          what the state consists of: name, SHA-256 and size of each file; written last
    objects/<SHA-256>   the files, and the journal as SQLite copies it while it is written

`keeping` says when, and by whom.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from selfalign.errors import Resumable, UserError
from selfalign.system import atomic
from selfalign.system.signals import STOP
from selfalign.system.strict_yaml import Strict

JOURNAL, NOTE, FETCHED = "journal.sqlite", "storage.json", "fetched"
_BLOCK = 1 << 22
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
LEFT_OUT = re.compile(r"(journal\.|view\.sqlite|export/|storage\.json).*|(.*/)?\..*")
"""The journal is copied by SQLite; exports and the viewer's cache are made anew from the rest."""


def _location(value: str) -> str:
    kind, colon, rest = value.rpartition("://")
    address = re.fullmatch(r"[a-z][a-z0-9+]*://[^\s?#@]+", value) and kind not in ("file", "local")
    path = (not colon or kind in ("file", "local")) and Path(rest).is_absolute()
    if not (address or path) or not os.path.normpath(rest).strip("/.") or "::" in value:
        raise ValueError(f"{value!r} is neither an address as s3://BUCKET/RUN (no keys in it) nor an absolute path")
    return value


Location = Annotated[str, AfterValidator(_location)]
"""Where a run is kept: an address that fsspec knows, or an absolute path. Keys come from the environment."""


class File(Strict):
    """What one file of a state holds."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Index(Strict):
    """A state: its number and its files."""

    format: Literal[1] = 1
    number: int = Field(ge=1)
    """One more than the state's before."""
    saved: str
    """When, UTC."""
    files: dict[str, File]

    @property
    def digest(self) -> str:
        """What no other state has, of whatever run."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


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
            raise UserError(f"storage {location} cannot be used ({short(error)})") from None
        self._root = root.rstrip("/")
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        if self._local:
            self._root = os.path.normpath(self._root)
        self.place = str(self._fs.unstrip_protocol(self._root))
        """The same, however the recipe spells it."""

    def check_apart(self, path: Path) -> None:
        """Raises UserError where the place lies inside the run's folder: each state would hold those before it."""
        if self._local and path.resolve() in (root := Path(self._root).resolve(), *root.parents):
            raise UserError(f"storage {self.location} is inside the run's folder {path}: name a place outside it")

    def check(self) -> None:
        """Write, read and remove a small object. Raises UserError where that fails: before anything is spent."""
        name = f"{self._root}/objects/check-{secrets.token_hex(8)}"
        try:
            self._fs.pipe_file(name, b"selfalign")
            found = self._fs.cat_file(name)
            self._fs.rm_file(name)
        except Exception as error:
            raise UserError(f"storage {self.location} cannot be written ({short(error)})") from None
        if found != b"selfalign":
            raise UserError(f"storage {self.location} does not give back what was written to it")

    def index(self) -> Index | None:
        """What is kept there; None where nothing is.

        Raises:
            UserError: it cannot be read, or is no index of ours.
        """
        try:
            text = self._fs.cat_file(f"{self._root}/index.json")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise UserError(
                f"storage {self.location} cannot be read ({short(error)}): see to it, or go on without it (`storage: "
                "null` in the run's recipe.yaml)"
            ) from None
        try:
            found = Index.model_validate_json(text)
        except ValidationError:
            raise UserError(
                f"{self.location}/index.json is not a run that selfalign keeps: name another place"
            ) from None
        for name in found.files:
            if not is_kept(name) or any(str(folder) in found.files for folder in PurePosixPath(name).parents):
                raise UserError(f"{self.location}/index.json names {name[:200]!r}, which is no file of a run")
        return found

    def put(self, stream: IO[bytes], known: set[str]) -> File:
        """Keep what an open file holds now, unless it is kept already. Raises what the storage raises."""
        size = stream.seek(0, 2)
        sha = _sha(_blocks(stream, size))
        if sha not in known:
            name = f"{self._root}/objects/{sha}"
            with atomic.new_file(Path(name)) if self._local else self._fs.open(name, "wb") as target:
                if _sha(_blocks(stream, size), target) != sha:
                    raise OSError("a file was changed while it was read")
        return File(sha256=sha, bytes=size)

    def publish(self, index: Index) -> None:
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

    def take(self, path: Path, index: Index) -> None:
        """Make the run's folder from the state that is kept; the journal, with which it is a run, comes last.

        Raises:
            UserError: an object is missing or is not what the index says, or the folder cannot be made.
            Resumable: the disk is full, or storage fails.
            Interrupted: a signal came.
        """
        atomic.check_space(path, sum(f.bytes for f in index.files.values()))
        folder: Path | None = None
        try:
            with atomic.disk_errors(path):
                path.mkdir(parents=True, exist_ok=True)
                folder = Path(tempfile.mkdtemp(dir=path, prefix=f".{FETCHED}.", suffix=".incomplete"))
                for name, file in index.files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    with (folder / name).open("wb") as made:
                        self._fetch(file, made, name)
                        os.fsync(made.fileno())
                (path / NOTE).write_text(note({self.place: [index.digest]}), "utf-8")
                for name in sorted(index.files, key=lambda n: n == JOURNAL):
                    (path / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).replace(path / name)
        except OSError as error:
            raise UserError(f"{path} cannot be made: {error.strerror}") from None
        finally:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            if not (path / JOURNAL).exists():
                (path / NOTE).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.rmdir()  # unless something else is in it

    def _fetch(self, file: File, target: IO[bytes], name: str) -> None:
        digest, size = hashlib.sha256(), 0
        for block in self._object(file, name):
            STOP.check()
            digest.update(block)
            size += len(block)
            if size > file.bytes:
                break
            target.write(block)
        if digest.hexdigest() != file.sha256 or size != file.bytes:
            raise UserError(f"{self.location}: {name} is not what was saved (objects/{file.sha256})")

    def _object(self, file: File, name: str) -> Iterator[bytes]:
        """Its content, block by block."""
        try:
            with self._fs.open(f"{self._root}/objects/{file.sha256}", "rb") as source:
                while block := source.read(_BLOCK):
                    yield block
        except FileNotFoundError:
            raise UserError(
                f"{self.location} lacks {name} (objects/{file.sha256}): a command that saved there meanwhile may have "
                "replaced it; try again"
            ) from None
        except Exception as error:  # what a library of a storage raises is its own
            raise Resumable(f"{name} cannot be fetched from {self.location} ({short(error)}): try again") from None


def note(known: dict[str, list[str]]) -> str:
    """What the folder remembers: for each place, the states there that are its own."""
    return json.dumps(known) + "\n"


def _blocks(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes: what is appended meanwhile is part of the next state."""
    stream.seek(0)
    while size > 0 and (block := stream.read(min(_BLOCK, size))):
        size -= len(block)
        yield block


def _sha(blocks: Iterator[bytes], target: IO[bytes] | None = None) -> str:
    """Of the blocks, which are written to the target."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        if target:
            target.write(block)
    return digest.hexdigest()


def is_kept(name: str) -> bool:
    """Whether a file of this name, below the run's folder, is part of a state."""
    path = PurePosixPath(name)
    whole = name.isprintable() and str(path) == name and "\\" not in name and not path.is_absolute()
    fits = whole and len(name) <= 1000 and all(len(part.encode()) <= 255 for part in path.parts)
    return fits and ".." not in path.parts and (name == JOURNAL or not LEFT_OUT.fullmatch(name))


def short(error: Any) -> str:
    """The first line of what a library said."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
