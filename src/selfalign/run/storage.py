"""Read and write a run's state in shared storage: s3://, gs://, a shared folder, or another system of fsspec.

    index.json          the state: name, SHA-256 and size of each file; written last
    objects/<SHA-256>   the contents of the files

`saving` decides when a state is written, and resumes a run from one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from selfalign.errors import Resumable, SelfAlignError, UserError
from selfalign.system import atomic
from selfalign.system.signals import STOP
from selfalign.system.strict_yaml import Strict

JOURNAL = "journal.sqlite"
NOT_SAVED = re.compile(r"(journal\.|view\.sqlite|export/|logs/|storage\.json).*|(.*/)?\..*")
"""Files that are not part of a state. Exports and caches can be created again; the journal is saved as a copy."""
_BLOCK = 1 << 22


def _check_location(value: str) -> str:
    kind, colon, rest = value.rpartition("://")
    local = not colon or kind in ("file", "local")
    valid = Path(rest).is_absolute() if local else re.fullmatch(r"[a-z][a-z0-9+]*://[^\s?#@]+", value)
    if not valid or not os.path.normpath(rest).strip("/.") or "::" in value:
        raise ValueError(f"{value!r} is neither an address like s3://BUCKET/RUN (without keys) nor an absolute path")
    return value


Location = Annotated[str, AfterValidator(_check_location)]
"""An address that fsspec supports, or an absolute path. Keys are read from the environment only."""


def can_save(name: str) -> bool:
    """Return whether a file of this name, relative to the run's folder, can be part of a state."""
    path = PurePosixPath(name)
    plain = name.isprintable() and str(path) == name and "\\" not in name and not path.is_absolute()
    return plain and len(name) <= 1000 and ".." not in path.parts and (name == JOURNAL or not NOT_SAVED.fullmatch(name))


def _check_name(name: str) -> str:
    if not can_save(name):
        raise ValueError(f"{name[:200]!r} is not a file of a run")
    return name


class File(Strict):
    """The content of one file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Index(Strict):
    """A state of a run."""

    format: Literal[1] = 1
    number: int = Field(ge=1)
    """One more than the number of the state before."""
    saved: str
    """UTC."""
    files: dict[Annotated[str, AfterValidator(_check_name)], File]

    @property
    def digest(self) -> str:
        """A hash that identifies this state."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@contextlib.contextmanager
def library_errors(kind: type[SelfAlignError], text: str) -> Iterator[None]:
    """Turn an exception of fsspec, or of a library behind it, into `kind` with the text and the reason."""
    try:
        yield
    except SelfAlignError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise kind(f"{text} ({reason})") from error


class Storage:
    """The storage of one run.

    Args:
        location: see `Location`.

    Raises:
        UserError: fsspec does not support the location, or a package is missing.
    """

    def __init__(self, location: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise UserError("storage needs fsspec: pip install 'selfalign[storage]'") from None
        self.location = location.rstrip("/")
        kind = location.partition("://")[0] if "://" in location else "file"
        with library_errors(UserError, f"storage {location} cannot be used"):
            self._fs, root = url_to_fs(self.location, **({"auto_mkdir": True} if kind in ("file", "local") else {}))
        self._local = kind in ("file", "local")
        self._root = os.path.normpath(root) if self._local else root.rstrip("/")
        self.address = str(self._fs.unstrip_protocol(self._root))
        """The normal form of the location, the same for all spellings."""

    def check_outside(self, path: Path) -> None:
        """Raise UserError if the storage lies inside the run's folder: each state would contain those before it."""
        if self._local and path.resolve() in (root := Path(self._root).resolve(), *root.parents):
            raise UserError(f"storage {self.location} is inside the run's folder {path}; use a location outside it")

    def check_writable(self) -> None:
        """Write, read and remove a small object, before a run spends anything. Raises UserError if that fails."""
        name = f"{self._root}/objects/check-{secrets.token_hex(8)}"
        with library_errors(UserError, f"storage {self.location} cannot be written"):
            self._fs.pipe_file(name, b"selfalign")
            if self._fs.cat_file(name) != b"selfalign":
                raise OSError("it returns other data than were written")
            self._fs.rm_file(name)

    def index(self) -> Index | None:
        """Return the state in storage; None if there is none.

        Raises:
            UserError: storage cannot be read, or `index.json` is not the index of a run.
        """
        hint = "repair the access, or set `storage: null` in the run's recipe.yaml to continue without storage"
        with library_errors(UserError, f"storage {self.location} cannot be read; {hint}"):
            try:
                text = self._fs.cat_file(f"{self._root}/index.json")
            except FileNotFoundError:
                return None
        try:
            return Index.model_validate_json(text)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(
                f"{self.location}/index.json is not the index of a run ({reason}); use another location"
            ) from None

    def put(self, stream: IO[bytes], stored: set[str]) -> File:
        """Store the content that an open file has now, unless it is among the `stored` hashes."""
        size = stream.seek(0, 2)
        sha = _copy(stream, size)
        if sha not in stored:
            name = f"{self._root}/objects/{sha}"
            with atomic.new_file(Path(name)) if self._local else self._fs.open(name, "wb") as target:
                if _copy(stream, size, target) != sha:
                    raise OSError("a file changed while it was read")
        return File(sha256=sha, bytes=size)

    def publish(self, index: Index) -> None:
        """Replace the index in one step; its state becomes the run's state."""
        text, name = index.model_dump_json(indent=1).encode(), f"{self._root}/index.json"
        if self._local:
            atomic.write_bytes(Path(name), text)
        else:
            self._fs.pipe_file(name, text)

    def remove(self, hashes: Iterable[str]) -> None:
        """Remove objects that no state needs, and ignore errors."""
        for sha in hashes:
            with contextlib.suppress(Exception):
                self._fs.rm_file(f"{self._root}/objects/{sha}")

    def fetch(self, file: File, name: str, target: IO[bytes]) -> None:
        """Write the content of a file to `target`.

        Raises:
            UserError: the object is missing, or its hash or size is wrong.
            Resumable: storage failed.
            Interrupted: a signal came.
        """
        failed = f"{name} cannot be fetched from {self.location}; run the command again"
        lost = (
            f"{self.location} lacks {name} (objects/{file.sha256}); if another command was saving, run this one again"
        )
        digest, left = hashlib.sha256(), file.bytes
        with library_errors(Resumable, failed):
            try:
                with self._fs.open(f"{self._root}/objects/{file.sha256}", "rb") as source:
                    while left >= 0 and (block := source.read(_BLOCK)):
                        STOP.check()
                        digest.update(block)
                        left -= len(block)
                        target.write(block)
            except FileNotFoundError:
                raise UserError(lost) from None
        if digest.hexdigest() != file.sha256 or left != 0:
            raise UserError(f"{self.location}: {name} differs from the saved file (objects/{file.sha256})")


def _copy(stream: IO[bytes], size: int, target: IO[bytes] | None = None) -> str:
    """Copy the first `size` bytes, since the file may grow, and return their SHA-256. Without a target, only hash."""
    digest = hashlib.sha256()
    stream.seek(0)
    while size > 0 and (block := stream.read(min(_BLOCK, size))):
        size -= len(block)
        digest.update(block)
        if target:
            target.write(block)
    return digest.hexdigest()
