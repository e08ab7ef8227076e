"""Publish files and folders completely or not at all, whatever fails on the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from selfalign.errors import Resumable
from selfalign.system.atomic import disk_errors, new_folder, write_bytes, write_text


class Failed(Exception):
    """The error that the tests make system calls raise."""


def failing(error: BaseException):
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def break_write(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    if step == "write":

        class File:
            def __init__(self, handle: int, mode: str) -> None:
                self.handle = handle

            def __enter__(self) -> File:
                return self

            def __exit__(self, *_: object) -> None:
                os.close(self.handle)

            def write(self, data: bytes) -> None:
                os.write(self.handle, data[:2])
                raise error

        monkeypatch.setattr(os, "fdopen", File)
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", failing(error))
    else:
        monkeypatch.setattr(Path, step, failing(error))


STEPS = ["write", "fsync", "chmod", "replace"]


def test_write_creates_parent_folders(tmp_path: Path):
    write_text(tmp_path / "a/b/file.txt", "é\u2028")
    assert (tmp_path / "a/b/file.txt").read_bytes() == "é\u2028".encode()
    assert names(tmp_path / "a/b") == ["file.txt"]
    assert (tmp_path / "a/b/file.txt").stat().st_mode & 0o777 == 0o644


def test_write_keeps_permissions(tmp_path: Path):
    write_bytes(tmp_path / "file", b"old")
    (tmp_path / "file").chmod(0o600)
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_write_replaces_a_file(tmp_path: Path):
    write_bytes(tmp_path / "file", b"old")
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [Failed(), KeyboardInterrupt(), OSError(errno.EIO, "broken")], ids=repr)
def test_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
):
    write_bytes(tmp_path / "file", b"old")
    with monkeypatch.context() as broken:
        break_write(broken, step, error)
        with pytest.raises(type(error)):
            write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", STEPS)
def test_failed_first_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    with monkeypatch.context() as broken:
        break_write(broken, step, Failed())
        with pytest.raises(Failed):
            write_bytes(tmp_path / "file", b"new")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", STEPS)
def test_full_disk_is_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int):
    write_bytes(tmp_path / "file", b"old")
    with monkeypatch.context() as broken:
        break_write(broken, step, OSError(number, "full"))
        with pytest.raises(Resumable, match=r"no space to write .*file .*bytes free.*free some space") as caught:
            write_bytes(tmp_path / "file", b"new")
    assert caught.value.exit_code == 75
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_full_disk_for_the_parent_folder_is_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "mkdir", failing(OSError(errno.ENOSPC, "full")))
    with pytest.raises(Resumable):
        write_bytes(tmp_path / "new/file", b"x")


def test_file_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append("replace"), replace(self, to))[1])
    write_bytes(tmp_path / "file", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_other_errors_are_not_changed(tmp_path: Path):
    with pytest.raises(PermissionError), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(Resumable), disk_errors(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "full")


def old_folder(tmp_path: Path) -> Path:
    with new_folder(tmp_path / "adapter") as building:
        (building / "a").write_text("old")
    return tmp_path / "adapter"


def test_folder_appears_when_it_is_complete(tmp_path: Path):
    target = tmp_path / "deep/adapter"
    with new_folder(target) as building:
        (building / "sub").mkdir()
        (building / "sub/file").write_text("x")
        assert not target.exists()
        assert building.parent == target.parent
    assert (target / "sub/file").read_text() == "x"
    assert names(target.parent) == ["adapter"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_folder_replaces_the_old_one(tmp_path: Path):
    target = old_folder(tmp_path)
    with new_folder(target) as building:
        (building / "b").write_text("new")
    assert names(target) == ["b"]
    assert names(tmp_path) == ["adapter"]


@pytest.mark.parametrize("error", [Failed(), KeyboardInterrupt()], ids=repr)
def test_failure_while_filling_leaves_the_old_folder(tmp_path: Path, error: BaseException):
    target = old_folder(tmp_path)
    with pytest.raises(type(error)), new_folder(target) as building:
        (building / "b").write_text("new")
        raise error
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["adapter"]


def test_failed_sync_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = old_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(Failed()))
    with pytest.raises(Failed), new_folder(target) as building:
        (building / "b").write_text("new")
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["adapter"]


def test_failed_first_folder_leaves_nothing(tmp_path: Path):
    with pytest.raises(Failed), new_folder(tmp_path / "adapter") as building:
        (building / "b").write_text("new")
        raise Failed
    assert names(tmp_path) == []


@pytest.mark.parametrize("fails_at", [1, 2])
def test_failed_rename_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int):
    target = old_folder(tmp_path)
    rename, calls = Path.rename, []

    def sometimes(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == fails_at:
            raise Failed
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", sometimes)
    with pytest.raises(Failed), new_folder(target) as building:
        (building / "b").write_text("new")
    assert target.exists()
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["adapter"]


def test_full_disk_in_a_folder_is_resumable(tmp_path: Path):
    target = old_folder(tmp_path)
    with pytest.raises(Resumable, match="free some space"), new_folder(target):
        raise OSError(errno.ENOSPC, "full")
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["adapter"]


def test_sweep_removes_only_unfinished_files(tmp_path: Path):
    from selfalign.system import atomic

    other_files = [tmp_path / n for n in (".notes.tmp", ".syncthing.prompts.jsonl.tmp", "x.abcdefgh.tmp", "rows.jsonl")]
    for file in other_files:
        file.write_text("keep")
    (tmp_path / ".backup.old").mkdir()
    (tmp_path / ".rows.jsonl.a1b2c3_4.tmp").write_text("half")
    (tmp_path / "3_engrave/.adapter.a1b2c3_4.incomplete").mkdir(parents=True)
    # After a kill between the two renames the old folder is restored; after a later kill it is removed.
    (tmp_path / "3_engrave/.adapter.zzzzzzzz.old").mkdir()
    (tmp_path / "3_engrave/.adapter.zzzzzzzz.old/weights").write_text("old")
    (tmp_path / "4/other").mkdir(parents=True)
    (tmp_path / "4/.other.zzzzzzzz.old").mkdir()
    atomic.sweep(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert left == {f.name for f in other_files} | {
        ".backup.old", "3_engrave", "3_engrave/adapter", "3_engrave/adapter/weights", "4", "4/other",
    }  # fmt: skip
    assert (tmp_path / "3_engrave/adapter/weights").read_text() == "old"
