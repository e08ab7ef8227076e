"""Resume a run from shared storage on another machine, whatever ended the machine that began it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import selfalign
from selfalign.errors import Resumable, UserError
from selfalign.generation.engines.fake import Fake
from selfalign.run import storage
from selfalign.run.saving import StateSaver, fetch_if_missing
from selfalign.run.storage import Storage
from selfalign.system.atomic import file_hash
from selfalign.system.console import Screen

pytestmark = pytest.mark.integration

SMALL: dict[str, object] = {
    "engine.kind": "fake",
    "stages": ["prompts", "align", "engrave", "verbose_cloning"],
    "prompts.self_instruct.count": 10,
    "prompts.red_team.count": 20,
    "prompts.red_team.topic_rounds": 1,
    "verbose_cloning.prompts": 8,
}


@pytest.fixture(params=["file", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid4().hex}/run"
    return f"{'file://' if request.param == 'file' else ''}{tmp_path / 'shared' / 'run'}"


def run_in(folder: Path, location: str, **settings: object) -> dict[str, str]:
    with selfalign.create("quick", folder, settings={**SMALL, "storage": location, **settings}) as run:
        run.run_all()
    return files_of(folder)


def files_of(folder: Path) -> dict[str, str]:
    # os.walk tolerates folders and files that a running process removes in the meantime.
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    named = {p.relative_to(folder).as_posix(): p for p in files}
    return {n: file_hash(p) for n, p in named.items() if not n.startswith(("journal", "storage", "manifest"))}


def answered_requests(folder: Path) -> int:
    with sqlite3.connect(folder / "journal.sqlite") as db:
        return int(db.execute("SELECT COUNT(*) FROM work WHERE state = 'raw_saved'").fetchone()[0])


def count_generations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    answer = Fake.generate

    def generate(self: Fake, *args: Any, **more: Any) -> Any:
        calls.append(1)
        return answer(self, *args, **more)

    monkeypatch.setattr(Fake, "generate", generate)
    return calls


def test_run_resumes_where_its_folder_is_missing(tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch):
    first = run_in(tmp_path / "a", location)
    shutil.rmtree(tmp_path / "a")
    calls = count_generations(monkeypatch)
    messages: list[str] = []
    monkeypatch.setattr(Screen, "say", lambda self, text, style="": messages.append(text))
    assert run_in(tmp_path / "b", location) == first
    assert messages[0] == f"resumed from {location}"
    assert calls == [], "finished requests are not sent again"
    assert (tmp_path / "b" / "manifest.json").exists()
    assert not list((tmp_path / "b").rglob(".*")), "no temporary file is left"


def test_state_holds_exactly_the_files_of_the_run(tmp_path: Path):
    run_in(tmp_path / "a", str(tmp_path / "shared"))
    index = Storage(str(tmp_path / "shared")).index()
    assert index is not None
    assert {p.name for p in (tmp_path / "shared" / "objects").iterdir()} == {f.sha256 for f in index.files.values()}
    assert {"recipe.yaml", "constitution.yaml", "journal.sqlite", "drops.jsonl", "manifest.json"} <= set(index.files)
    assert not [n for n in index.files if n.startswith(("journal.lock", "storage", "export/", "."))]
    # The same command once more changes nothing, there or here.
    run_in(tmp_path / "a", str(tmp_path / "shared"))
    again = Storage(str(tmp_path / "shared")).index()
    assert again is not None
    assert {**again.files, "manifest.json": None, "journal.sqlite": None} == {
        **index.files,
        "manifest.json": None,
        "journal.sqlite": None,
    }


CHILD = """
import sys, time
from selfalign.run import saving
import selfalign
import selfalign.generation.engines as engines
from selfalign.generation.engines.fake import Fake
saving.SAVE_EVERY_SECONDS = 0.05
engines.start = lambda *args: Fake(8, latency_s=0.01)
with selfalign.create("quick", sys.argv[1], settings=eval_settings) as run:
    run.run_all()
"""


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_lost_machine_loses_only_unsaved_work(tmp_path: Path, seed: int):
    """SIGKILL between states that a thread saves while rows come in; the folder is gone with the machine."""
    undisturbed = run_in(tmp_path / "whole", str(tmp_path / "other"))
    shared = tmp_path / "shared"
    settings = {**SMALL, "storage": str(shared)}
    code = CHILD.replace("eval_settings", repr(settings))
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stderr=subprocess.PIPE) as child:
        states: set[int] = set()
        for _ in range(2400):
            if (shared / "index.json").exists():
                states.add((shared / "index.json").stat().st_mtime_ns)
            # The first state may be from before the first answered request.
            if (len(states) > 2 and len(files_of(tmp_path / "a")) > 4) or child.poll() is not None:
                break
            time.sleep(0.0125)
        time.sleep(random.Random(seed).random() * 0.5)
        child.send_signal(signal.SIGKILL)
        child.wait()
    index = Storage(str(shared)).index()
    assert index is not None
    shutil.rmtree(tmp_path / "a")
    fetch_if_missing(tmp_path / "b", str(shared))
    before = answered_requests(tmp_path / "b")
    assert before > 0
    again = run_in(tmp_path / "b", str(shared))
    different = {n for n in again if n != "recipe.yaml" and again[n] != undisturbed.get(n)}
    assert (different, set(again)) == (set(), set(undisturbed))
    assert answered_requests(tmp_path / "b") == answered_requests(tmp_path / "whole")


def test_older_folder_cannot_resume_over_a_newer_state(tmp_path: Path):
    location = str(tmp_path / "shared")
    run_in(tmp_path / "a", location)
    run_in(tmp_path / "b", location, max_failed=0.5)
    with pytest.raises(UserError, match=r"holds a state of 20.*that .*/a did not save.*Use another --out"):
        run_in(tmp_path / "a", location)
    run_in(tmp_path / "b", location)
    with pytest.raises(UserError, match="--new needs another storage"):
        selfalign.create("quick", tmp_path / "b", settings={**SMALL, "storage": location}, new=True)
    assert files_of(tmp_path / "b"), "nothing was set aside"
    with pytest.raises(UserError, match="was made with another recipe"):
        run_in(tmp_path / "c", location, seed=9)


def test_state_of_another_command_is_not_overwritten(tmp_path: Path):
    location = str(tmp_path / "shared")
    messages: list[str] = []
    with selfalign.create("quick", tmp_path / "a", settings={**SMALL, "storage": location}) as run:
        run.run_stage("prompts")
        saver = run.context.saver
        assert saver is not None
        saver._report = lambda text, style: messages.append(text)
        run_in(tmp_path / "b", location)
        there = (tmp_path / "shared/index.json").read_bytes()
        assert not saver.try_save()
        with pytest.raises(UserError, match="did not save; nothing was replaced"):
            run.run_stage("align")
    assert (tmp_path / "shared/index.json").read_bytes() == there
    assert all("did not save" in line for line in messages)


def test_failing_storage_loses_nothing_locally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    location = str(tmp_path / "shared")
    put = Storage.put

    def full(self: Storage, stream: Any, known: set[str]) -> Any:
        raise OSError(28, "No space left on device")

    with selfalign.create("quick", tmp_path / "a", settings={**SMALL, "storage": location}) as run:
        monkeypatch.setattr(Storage, "put", full)
        with pytest.raises(
            Resumable, match=r"is complete, but not saved to .*run the command again to save it.*No space left"
        ):
            run.run_all()
    whole = files_of(tmp_path / "a")
    monkeypatch.setattr(Storage, "put", put)
    assert run_in(tmp_path / "a", location) == whole
    assert Storage(location).index() is not None


def test_unusable_storage_is_refused_before_the_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (tmp_path / "file").write_text("no folder")
    for location, message in (
        (f"{tmp_path}/file/run", "cannot be written"),
        ("/proc/selfalign", "cannot be written"),
        ("gs2://bucket/run", "gs2"),
        ("s3://bucket/run", "Install s3fs"),
        ("shared/run", "neither an address"),
        ("s3://key:secret@bucket/run", "without keys"),
        ("simplecache::s3://bucket/run", "neither an address"),
    ):
        with pytest.raises(UserError, match=message):
            run_in(tmp_path / "run", location)
    assert not (tmp_path / "run").exists()


def index_of(files: dict[str, Any], **more: object) -> str:
    return json.dumps({"format": 1, "number": 1, "saved": "2026", "files": files, **more})


ONE = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not the index of a run"),
        ("[]", "is not the index of a run"),
        (index_of({}, format=2), "is not the index of a run"),
        (index_of({"a": {"sha256": "../../etc/passwd", "bytes": 1}}), "is not the index of a run"),
        (index_of({"../a": ONE}), "is not a file of a run"),
        (index_of({"/etc/a": ONE}), "is not a file of a run"),
        (index_of({"a/../../b": ONE}), "is not a file of a run"),
        (index_of({"a//b": ONE}), "is not a file of a run"),
        (index_of({".hidden": ONE}), "is not a file of a run"),
        (index_of({"journal.lock": ONE}), "is not a file of a run"),
        (index_of({"a\nb": ONE}), "is not a file of a run"),
        (index_of({"recipe.yaml": ONE}), "lacks recipe.yaml"),
    ],
)
def test_invalid_index_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/index.json").write_text(text)
    with pytest.raises(UserError, match=message):
        run_in(tmp_path / "run", str(tmp_path / "shared"))
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".*"))


def test_changed_object_is_refused(tmp_path: Path):
    run_in(tmp_path / "a", str(tmp_path / "shared"))
    largest = max((tmp_path / "shared/objects").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(UserError, match="differs from the saved file"):
        run_in(tmp_path / "b", str(tmp_path / "shared"))
    assert not (tmp_path / "b").exists()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE published(stage, inputs, files)")
    yield db
    db.close()


def test_files_published_during_a_save_are_saved_again(tmp_path: Path, writer: sqlite3.Connection):
    """The saved journal must describe the saved files."""
    (tmp_path / "run.jsonl").write_text("old")
    place = Storage(f"memory://{uuid4().hex}")
    saver = StateSaver(tmp_path, place, lambda *_: None)
    put, times = place.put, []

    def slow(stream: Any, known: set[str]) -> Any:
        if len(times) == 1:  # after the journal's copy, before the file's
            (tmp_path / "run.jsonl").write_text("new")
            writer.execute("INSERT INTO published VALUES ('align', '', '')")
        times.append(1)
        return put(stream, known)

    place.put = slow  # type: ignore[method-assign]
    saver.save()
    assert len(times) == 4
    saver.close()
    fetch_if_missing(tmp_path / "there", place.location)
    assert (tmp_path / "there/run.jsonl").read_text() == "new"
    with sqlite3.connect(tmp_path / "there/journal.sqlite") as db:
        assert db.execute("SELECT stage FROM published").fetchall() == [("align",)]


def test_only_changed_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    location = str(tmp_path / "shared")
    run_in(tmp_path / "a", location)
    (tmp_path / "a/drops.jsonl").write_text("edited")
    read: list[int] = []
    put = Storage.put

    def counted_put(self: Storage, stream: Any, known: set[str]) -> Any:
        file = put(self, stream, known)
        read.append(file.bytes)
        return file

    monkeypatch.setattr(Storage, "put", counted_put)
    saver = StateSaver(tmp_path / "a", Storage(location), lambda *_: None)
    saver.save()
    assert len(read) > 8, "a command's first state reads everything"
    read.clear()
    (tmp_path / "a/drops.jsonl").write_text("EDITED")
    saver.save()
    assert sorted(read)[0] == 6 and len(read) == 2, "the journal, and the file that changed without its size"
    saver.close()
    fetch_if_missing(tmp_path / "b", location)
    assert (tmp_path / "b/drops.jsonl").read_text() == "EDITED"


def test_storage_setting_can_change_between_commands(tmp_path: Path):
    run_in(tmp_path / "a", str(tmp_path / "one"))
    run_in(tmp_path / "a", str(tmp_path / "two"))
    assert (tmp_path / "two/index.json").exists()
    with selfalign.create("quick", tmp_path / "a", settings=SMALL) as run:
        run.run_all()
        assert run.context.saver is None
    assert storage.NOT_SAVED.fullmatch("export/gguf/x.gguf")
    assert (tmp_path / "a/storage.json").exists()


@pytest.mark.slow
def test_run_resumes_from_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Needs `pip install s3fs 'moto[server]'`: a server that imitates S3."""
    from fsspec.config import conf

    s3fs, moto = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        monkeypatch.setitem(conf, "s3", {"endpoint_url": url})
        s3fs.S3FileSystem(endpoint_url=url).mkdir("bucket")
        first = run_in(tmp_path / "a", "s3://bucket/runs/one")
        shutil.rmtree(tmp_path / "a")
        assert run_in(tmp_path / "b", "s3://bucket/runs/one") == first
        with pytest.raises(UserError, match="cannot be written"):
            run_in(tmp_path / "c", "s3://none/run")
    finally:
        server.stop()
