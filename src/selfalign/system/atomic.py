"""Publish files and folders atomically: a temporary file in the same folder, fsync, rename, fsync of the folder.

Every file of a run is written by this module, so that a process killed at any time leaves the old or the new file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from selfalign.errors import Resumable

HALF_WRITTEN = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.(tmp|incomplete|old)")
"""Names of unfinished files and folders, created by tempfile: .NAME.xxxxxxxx.tmp"""
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise Resumable for errors of a full disk, with the path and the free bytes in the message."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise _no_space(path, f"{_free_bytes(path):,} bytes free") from error


def check_space(path: Path, needed: int) -> None:
    """Raise Resumable if `needed` bytes do not fit on the disk of `path`. Not every library reports a full disk."""
    if (free := _free_bytes(path)) < needed:
        raise _no_space(path, f"{needed:,} bytes; {free:,} free")


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.is_dir())).free


def _no_space(path: Path, numbers: str) -> Resumable:
    return Resumable(f"no space to write {path} ({numbers}); free some space, then run the same command again")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream, and publish its content as `path` when the block ends without an error.

    Readers see the complete old or new file. An existing file keeps its permissions; a new one gets those of the umask.

    Raises:
        Resumable: the disk is full.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_UMASK)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically. Raises as `new_file`."""
    with new_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises as `new_file`."""
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill, and publish it as `path` when the block ends without an error.

    An existing folder is replaced. Raises as `new_file`.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".incomplete"))
        try:
            yield building
            for folder, _, names in os.walk(building):
                for name in names:
                    with (Path(folder) / name).open("rb") as file:
                        os.fsync(file.fileno())
                _sync_folder(Path(folder))
            building.chmod(0o777 & ~_UMASK)
            if path.exists():
                old = building.with_suffix(".old")
                path.rename(old)
                try:
                    building.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                shutil.rmtree(old)
            else:
                building.rename(path)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove unfinished files of a killed process below `folder`, and restore a folder that it was replacing.

    Call it only while no other process writes there.
    """
    for path in sorted(folder.rglob(".*")):
        name = HALF_WRITTEN.fullmatch(path.name)
        if not name:
            continue
        if name[2] == "old" and not (path.parent / name[1]).exists():
            path.rename(path.parent / name[1])
        elif name[2] == "tmp":
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if file != path:
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
