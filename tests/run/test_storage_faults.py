"""Test faults between a run's folder and its storage: other commands, kills, unusual locations and names."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from test_storage import run_in

import selfalign
from selfalign.errors import Interrupted, Resumable, SelfAlignError, UserError
from selfalign.generation import engines
from selfalign.run import saving
from selfalign.run.saving import StateSaver, fetch_if_missing
from selfalign.run.storage import Storage
from selfalign.system import atomic
from selfalign.system.signals import STOP

pytestmark = pytest.mark.integration


def make_run(path: Path, text: str = "one") -> Path:
    """Make the least that `StateSaver` accepts as a run."""
    path.mkdir()
    (path / "run.jsonl").write_text(text)
    with sqlite3.connect(path / "journal.sqlite") as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE published(stage, inputs, files)")
    return path


def saver(path: Path, place: Storage) -> StateSaver:
    return StateSaver(path, place, lambda *_: None)


def test_two_commands_cannot_fetch_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Storage(f"memory://{uuid4().hex}")
    saver(make_run(tmp_path / "a"), place).save()
    fetch, refused = Storage.fetch, []

    def slow(self: Storage, *args: Any) -> None:
        monkeypatch.setattr(Storage, "fetch", fetch)
        with pytest.raises(UserError, match="in use by process"):
            fetch_if_missing(tmp_path / "b", place.location)
        refused.append(1)
        fetch(self, *args)

    monkeypatch.setattr(Storage, "fetch", slow)
    assert fetch_if_missing(tmp_path / "b", place.location)
    assert refused
    (tmp_path / "b/run.jsonl").write_text("what was done since")
    monkeypatch.setattr(saving, "_is_vacant", lambda _: True)  # as if the check came before the other fetch
    assert not fetch_if_missing(tmp_path / "b", place.location)
    assert (tmp_path / "b/run.jsonl").read_text() == "what was done since"


def test_states_with_the_same_number_are_distinct(tmp_path: Path):
    place = Storage(f"memory://{uuid4().hex}")
    saver(make_run(tmp_path / "a"), place).save()
    place._fs.rm(place._root, recursive=True)
    saver(make_run(tmp_path / "b", "another run"), place).save()
    with pytest.raises(UserError, match="did not save"):
        saver(tmp_path / "a", place)


def test_emptied_storage_is_filled_again(tmp_path: Path):
    place = Storage(f"memory://{uuid4().hex}")
    mine = saver(make_run(tmp_path / "a"), place)
    mine.save()
    place._fs.rm(place._root, recursive=True)
    (tmp_path / "a/more.jsonl").write_text("more")
    mine.save()
    fetch_if_missing(tmp_path / "b", place.location)
    assert (tmp_path / "b/run.jsonl").read_text() == "one"


def test_storage_emptied_after_a_failed_save_is_filled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Storage(f"memory://{uuid4().hex}")
    mine = saver(make_run(tmp_path / "a"), place)
    monkeypatch.setattr(Storage, "publish", lambda *_: (_ for _ in ()).throw(OSError("away")))
    assert not mine.try_save()
    monkeypatch.undo()
    place._fs.rm(place._root, recursive=True)
    mine.save()
    fetch_if_missing(tmp_path / "b", place.location)
    assert (tmp_path / "b/run.jsonl").read_text() == "one"


def test_kill_after_publishing_the_index_can_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Storage(f"memory://{uuid4().hex}")
    publish = Storage.publish

    def killed(self: Storage, index: Any) -> None:
        publish(self, index)
        raise KeyboardInterrupt

    mine = saver(make_run(tmp_path / "a"), place)
    monkeypatch.setattr(Storage, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        mine.save()
    monkeypatch.undo()
    (tmp_path / "a/more.jsonl").write_text("more")
    mine.save()
    saver(tmp_path / "a", place).save()


def test_storage_can_change_and_change_back(tmp_path: Path):
    one, two = Storage(f"memory://{uuid4().hex}"), Storage(f"memory://{uuid4().hex}")
    make_run(tmp_path / "a")
    for place in (one, two, one, two):
        saver(tmp_path / "a", place).save()


def test_one_location_can_be_spelled_in_several_ways(tmp_path: Path):
    make_run(tmp_path / "a")
    for spelling in ("/shared", "/shared/", "/./shared"):
        saver(tmp_path / "a", Storage(f"{tmp_path}{spelling}")).save()
        saver(tmp_path / "a", Storage(f"file://{tmp_path}{spelling}")).save()


def test_close_during_a_save_saves_the_last_rows(tmp_path: Path):
    place = Storage(f"memory://{uuid4().hex}")
    mine = saver(make_run(tmp_path / "a"), place)
    put, begun, go_on = place.put, threading.Event(), threading.Event()

    def slow(stream: Any, known: set[str]) -> Any:
        if "journal" not in stream.name:  # the files of the state are listed by now
            begun.set()
            go_on.wait(10)
        return put(stream, known)

    place.put = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=mine.try_save)
    thread.start()
    begun.wait(10)
    threading.Timer(0.2, go_on.set).start()
    (tmp_path / "a/last.jsonl").write_text("the rows of the last minutes")
    mine.close()
    thread.join()
    fetch_if_missing(tmp_path / "b", place.location)
    assert (tmp_path / "b/last.jsonl").exists()


def test_close_retries_a_failed_save(tmp_path: Path):
    place = Storage(f"memory://{uuid4().hex}")
    mine = saver(make_run(tmp_path / "a"), place)
    put = place.put
    place.put = lambda *_: (_ for _ in ()).throw(OSError("away"))  # type: ignore[method-assign,assignment]
    assert not mine.try_save()
    place.put = put  # type: ignore[method-assign]
    mine.close()
    assert place.index() is not None


def test_objects_of_failed_saves_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Storage(str(tmp_path / "shared"))
    mine = saver(make_run(tmp_path / "a"), place)
    monkeypatch.setattr(Storage, "publish", lambda *_: (_ for _ in ()).throw(OSError("away")))
    for text in "abc":
        (tmp_path / "a/run.jsonl").write_text(text)
        assert not mine.try_save()
    monkeypatch.undo()
    mine.save()
    index = place.index()
    assert index is not None
    assert {p.name for p in (tmp_path / "shared/objects").iterdir()} == {f.sha256 for f in index.files.values()}


@pytest.mark.parametrize("name", ["Screenshot 10.00\u202fAM.png", "a\nb", "back\\slash", "caf\udce9", "tab\t"])
def test_file_with_an_unusable_name_is_skipped(tmp_path: Path, name: str):
    place = Storage(f"memory://{uuid4().hex}")
    make_run(tmp_path / "a")
    (tmp_path / "a" / name).write_text("the user's")
    mine = saver(tmp_path / "a", place)
    mine.save()
    mine.save()
    fetch_if_missing(tmp_path / "b", place.location)
    assert (tmp_path / "b/run.jsonl").exists()


@pytest.mark.parametrize("name", ["what?", "#3", "50%25", "a b"])
def test_folder_name_with_url_characters(tmp_path: Path, name: str):
    saver(make_run(tmp_path / name), place := Storage(f"memory://{uuid4().hex}")).save()
    assert place.index() is not None


@pytest.mark.parametrize("inside", ["", "/storage", "/2_self_align/../deep/er"])
def test_storage_inside_the_run_is_refused(tmp_path: Path, inside: str):
    out = tmp_path / "run"
    for location in (f"{out}{inside}", f"file://{out}{inside}"):
        with pytest.raises(UserError, match="inside the run's folder"):
            run_in(out, location)
        assert not out.exists()
    run_in(out, str(tmp_path / "shared"))
    with pytest.raises(UserError, match="inside the run's folder"):
        run_in(out, f"{out}{inside}")


@pytest.mark.parametrize("location", ["/", "//", "s3://", "s3:///", "file:///", "file://shared/run", "memory:///"])
def test_location_without_a_path_is_refused(tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="neither an address"):
        run_in(tmp_path / "run", location)
    assert not list(tmp_path.iterdir())


def test_write_checks_do_not_disturb_each_other(tmp_path: Path):
    one = Storage(str(tmp_path / "shared"))
    failed: list[SelfAlignError] = []

    def check() -> None:
        try:
            for _ in range(60):
                one.check_writable()
        except SelfAlignError as error:
            failed.append(error)

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_failure_during_a_fetch_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Storage(f"memory://{uuid4().hex}")
    saver(make_run(tmp_path / "a"), place).save()

    class Broken:
        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None: ...

        def read(self, _: int) -> bytes:
            raise ValueError("Connection reset by peer")

    index = place.index()
    assert index is not None
    monkeypatch.setattr(type(place._fs), "open", lambda *_, **__: Broken())
    with pytest.raises(Resumable, match="Connection reset"):
        saving._fetch(tmp_path / "b", place, index)
    assert not (tmp_path / "b").exists()


def test_oversized_object_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Storage(f"memory://{uuid4().hex}")
    saver(make_run(tmp_path / "a"), place).save()
    read = []

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            read.append(1)
            assert len(read) < 9
            return b"x" * size

    index = place.index()
    assert index is not None
    monkeypatch.setattr(type(place._fs), "open", lambda *_, **__: Endless())
    with pytest.raises(UserError, match="differs from the saved file"):
        saving._fetch(tmp_path / "b", place, index)


def test_signal_ends_a_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Storage(f"memory://{uuid4().hex}")
    saver(make_run(tmp_path / "a"), place).save()
    monkeypatch.setattr(STOP, "_signum", 2)
    with pytest.raises(Interrupted):
        fetch_if_missing(tmp_path / "b", place.location)
    assert not (tmp_path / "b").exists()


def test_killed_fetch_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Storage(f"memory://{uuid4().hex}")
    saver(make_run(tmp_path / "a"), place).save()
    (tmp_path / "b/.fetched.a8b7c6d5.incomplete").mkdir(parents=True)
    (tmp_path / "b/.fetched.a8b7c6d5.incomplete/run.jsonl").write_text("hal")
    (tmp_path / "b/run.jsonl").write_text("moved already")
    (tmp_path / "b/journal.lock").touch()
    assert fetch_if_missing(tmp_path / "b", place.location)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "journal.lock",
        "journal.sqlite",
        "run.jsonl",
        "storage.json",
    ]


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/" * 2000 + "b",), ("n" * 300,)])
def test_invalid_file_names_in_an_index_are_refused(tmp_path: Path, names: tuple[str, ...]):
    place = Storage(f"memory://{uuid4().hex}")
    data = b"x"
    sha = hashlib.sha256(data).hexdigest()
    place._fs.pipe_file(f"{place._root}/objects/{sha}", data)
    files = {name: {"sha256": sha, "bytes": 1} for name in names}
    text = json.dumps({"format": 1, "number": 1, "saved": "2026", "files": files})
    place._fs.pipe_file(f"{place._root}/index.json", text.encode())
    with pytest.raises(UserError):
        fetch_if_missing(tmp_path / "b", place.location)


def test_engine_stays_the_same_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    location = str(tmp_path / "shared")
    with selfalign.create("quick", tmp_path / "a", settings={"storage": location}) as run:
        assert run.recipe.engine.kind == "llama_cpp"
        saver(tmp_path / "a", Storage(location)).save()
    monkeypatch.setattr(engines, "choose", lambda config: ("vllm", "another machine"))
    monkeypatch.setattr(engines, "find_spec", lambda _: True)
    with selfalign.create("quick", tmp_path / "b", settings={"storage": location}) as run:
        assert run.recipe.engine.kind == "llama_cpp"


def test_fetch_into_a_folder_that_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such as a mount point."""
    location = str(tmp_path / "shared")
    first = run_in(tmp_path / "a", location)
    (tmp_path / "real").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "real")
    assert run_in(tmp_path / "b", location) == first
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path / "c")
    assert run_in(Path(), location) == first


def test_user_prompts_can_have_another_path_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"engine.kind": "fake", "stages": ["prompts", "align"], "storage": str(tmp_path / "shared")}
    files = []
    for machine, more in (("a", ""), ("b", ""), ("c", '{"prompt": "What is a neap tide, and when does it come?"}\n')):
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        Path("own.jsonl").write_text('{"prompt": "Why does the sky look blue at noon?"}\n' + more)
        if more:
            with pytest.raises(UserError, match=r"another recipe \(prompts.file"):
                selfalign.create("quick", "run", settings=settings, prompts="own.jsonl")
            continue
        with selfalign.create("quick", "run", settings=settings, prompts="own.jsonl") as run:
            run.run_all()
        files.append(
            {p: (Path("run") / p).read_bytes() for p in ("1_prompts/prompts.jsonl", "2_self_align/responses.jsonl")}
        )
    assert files[0] == files[1]


def test_sweep_removes_all_temporary_files_of_a_killed_save(tmp_path: Path):
    code = """
import os, sqlite3, sys
from pathlib import Path
from selfalign.run import saving
from selfalign.run.storage import Storage
connect = sqlite3.connect

class Dying(sqlite3.Connection):
    def backup(self, target, **_):
        super().backup(target, pages=20, progress=lambda *_: os.kill(os.getpid(), 9))

saving.sqlite3.connect = lambda *given, **named: connect(*given, **named, factory=Dying)
saving.StateSaver(Path(sys.argv[1]), Storage("memory://place"), print).save()
"""
    with sqlite3.connect(make_run(tmp_path / "a") / "journal.sqlite") as db:
        db.execute("CREATE TABLE work(text)")
        db.executemany("INSERT INTO work VALUES (?)", [("x" * 1000,)] * 500)
    before = {p.name for p in (tmp_path / "a").iterdir()}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False).returncode == -9
    assert {p.name for p in (tmp_path / "a").iterdir()} > before
    atomic.sweep(tmp_path / "a")
    assert {p.name for p in (tmp_path / "a").iterdir()} - {"journal.sqlite-shm", "journal.sqlite-wal"} == before - {
        "journal.sqlite-shm",
        "journal.sqlite-wal",
    }
