"""Kill runs at random instants and at named points; the resumed run must have the same files.

A child process is forked (so that it need not import everything anew), does the real work of a run on the fake engine
and is killed by SIGKILL. Every resumed run must end with the files of an undisturbed one, byte for byte. The fast tests
are a sample of the slow ones.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import selfalign
from selfalign.generation.engines.fake import Fake
from selfalign.generation.local import LocalExecutor
from selfalign.generation.loop import _Loop
from selfalign.pipeline import order as stage_order
from selfalign.run import directory
from selfalign.run.journal import Journal
from selfalign.system import atomic

LARGE: dict[str, Any] = {
    "engine.kind": "fake",
    "stages": ["prompts", "align", "engrave", "verbose_cloning"],
    "prompts.self_instruct.count": 250,
    "prompts.red_team.count": 250,
    "verbose_cloning.prompts": 200,
}
SMALL = LARGE | {"prompts.self_instruct.count": 90, "prompts.red_team.count": 60, "verbose_cloning.prompts": 80}
IN_FLIGHT = 8 * 4

Arm = Callable[[], None]
"""Prepares a child process for the kill."""

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed."""

    settings: dict[str, Any]
    files: dict[str, bytes]
    seconds: float
    requests: int


def work(folder: Path, settings: dict[str, Any], arm: Arm | None = None, seconds: float | None = None) -> int:
    """Run in a forked child, killed after so many seconds if it still runs; returns its wait status."""
    child = os.fork()
    if child:
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)  # a child that ended is a zombie until it is waited for: no harm
        return os.waitpid(child, 0)[1]
    try:
        if arm:
            arm()
        with selfalign.create("quick", folder, settings=settings) as run:
            run.run_all()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(1)


def killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def files(folder: Path) -> dict[str, bytes]:
    """What the run published, but for the manifest, whose date differs."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    contents = {name: (folder / name).read_bytes() for name in manifest["files"]}
    half = [p.name for p in folder.rglob(".*") if p.suffix in (".tmp", ".incomplete", ".old")]
    assert half == []
    # The counts, not the seconds or the number of sessions.
    counts = [{k: s[k] for k in ("stage", "rows_in", "kept", "dropped", "failed")} for s in manifest["stages"]]
    return contents | {"counts": json.dumps(counts).encode()}


def paid(folder: Path) -> dict[str, tuple[str, float]]:
    """Key -> (raw output, seconds) of every request that was answered and saved."""
    if not (folder / "journal.sqlite").exists():
        return {}
    with sqlite3.connect(folder / "journal.sqlite") as db:
        try:
            rows = db.execute("SELECT key, raw, seconds FROM work WHERE state = 'raw_saved'").fetchall()
        except sqlite3.OperationalError:
            rows = []
    db.close()
    return {key: (raw, seconds) for key, raw, seconds in rows}


def resume(folder: Path, undisturbed: Undisturbed) -> None:
    """Check that the files are the same and that no saved request was sent again, under any key."""
    before = paid(folder)
    assert work(folder, undisturbed.settings) == 0
    assert files(folder) == undisturbed.files
    after = paid(folder)
    assert len(after) == undisturbed.requests
    assert {key: after.get(key) for key in before} == before


def running(folder: Path) -> int:
    """Requests that were with the engine, or finished but not yet saved, when the process died."""
    if not (folder / "journal.sqlite").exists():
        return 0
    with sqlite3.connect(folder / "journal.sqlite") as db:
        try:
            number = db.execute("SELECT COUNT(*) FROM work WHERE state = 'running'").fetchone()[0]
        except sqlite3.OperationalError:  # killed before the tables were created
            number = 0
    db.close()
    return int(number)


def undisturbed(folder: Path, settings: dict[str, Any], prompts: int) -> Undisturbed:
    # The forked processes inherit what a run has loaded.
    with selfalign.create("quick", folder.with_name("first"), settings=settings, limit=4) as run:
        run.run_all()
    start = time.monotonic()
    assert work(folder, settings) == 0
    seconds = time.monotonic() - start
    rows = [n for n in files(folder) if n.endswith(".jsonl")]
    assert {"1_prompts/prompts.jsonl", "2_self_align/responses.jsonl", "4_verbose_clone/responses.jsonl"} <= set(rows)
    assert files(folder)["1_prompts/prompts.jsonl"].count(b"\n") == prompts
    return Undisturbed(settings, files(folder), seconds, len(paid(folder)))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(tmp_path_factory.mktemp("whole") / "run", LARGE, 500)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(tmp_path_factory.mktemp("whole") / "run", SMALL, 150)


@pytest.mark.slow
def test_ten_random_kills(tmp_path: Path, large: Undisturbed):
    kill_at_random(tmp_path, large, 10)


@pytest.mark.slow
def test_fifty_random_kills(tmp_path: Path, large: Undisturbed):
    kill_at_random(tmp_path, large, 50)


def kill_at_random(tmp_path: Path, large: Undisturbed, number: int) -> None:
    rng = random.Random(number)
    died, lost = 0, []
    for attempt in range(number):
        folder = tmp_path / str(attempt)
        died += killed(work(folder, LARGE, seconds=rng.uniform(0.02, 0.95) * large.seconds))
        lost.append(running(folder))
        resume(folder, large)
        shutil.rmtree(folder)
    assert died >= number * 0.5  # the others finished before the signal
    assert max(lost) <= IN_FLIGHT


# -- named points ----------------------------------------------------------------------------------------------------

POINTS: dict[str, tuple[Any, str]] = {
    "journal: begin a session": (Journal, "begin_session"),
    "journal: enter requests": (Journal, "begin"),
    "journal: commit a turn": (Journal, "progress"),
    "journal: look up": (Journal, "saved"),
    "journal: delete outcomes": (Journal, "restart"),
    "journal: record outcomes": (Journal, "record"),
    "journal: close a stage": (Journal, "finish"),
    "journal: files to be written": (Journal, "unpublish"),
    "journal: files written": (Journal, "publish"),
    "journal: drops": (Journal, "drops"),
    "loop: submit": (_Loop, "_submit"),
    "loop: collect": (_Loop, "_collect"),
    "loop: commit": (_Loop, "_commit"),
    "executor: give": (LocalExecutor, "give"),
    "executor: close": (LocalExecutor, "close"),
    "engine: generate": (Fake, "generate"),
    "file: fsync": (os, "fsync"),
    "file: rename": (Path, "replace"),
    "file: mode": (Path, "chmod"),
    "file: folder's fsync": (atomic, "_sync_folder"),
    "file: temporary": (atomic.tempfile, "mkstemp"),
    "run: sweep": (atomic, "sweep"),
    "run: make": (directory.RunDir, "create"),
    "run: stage done": (directory.RunDir, "mark_done"),
    "run: check edits": (directory.RunDir, "check_not_edited"),
    "run: manifest": (directory.RunDir, "write_manifest"),
    "run: old manifest": (Path, "unlink"),
    "stage: begin": (stage_order, "run_stage"),
    "stage: inputs": (stage_order, "inputs_hash"),
    "stage: licence": (stage_order, "_add_notices"),
}


def at(point: str, when: str, call: int) -> Arm:
    """Dies before or after the n-th call of a function."""
    owner, name = POINTS[point]

    def arm() -> None:
        real = getattr(owner, name)
        raw = vars(owner).get(name)
        calls = itertools.count(1)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            number_of_call = next(calls)
            if number_of_call == call and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if number_of_call == call and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, staticmethod(wrapped) if isinstance(raw, classmethod | staticmethod) else wrapped)

    return arm


def test_ten_kills_of_one_run(tmp_path: Path, small: Undisturbed):
    """Each time it is resumed it comes two turns of the loop further."""
    folder = tmp_path / "run"
    for number in range(10):
        when = "before" if number % 2 else "after"
        assert killed(work(folder, SMALL, at("journal: commit a turn", when, 2)))
        assert running(folder) <= IN_FLIGHT
    resume(folder, small)


def kill_at(tmp_path: Path, undisturbed: Undisturbed, point: str, call: int) -> int:
    """Kill before and after that call; returns how often the process died."""
    died = 0
    for when in ("before", "after"):
        folder = tmp_path / when
        died += killed(work(folder, undisturbed.settings, at(point, when, call)))
        assert running(folder) <= IN_FLIGHT
        resume(folder, undisturbed)
        shutil.rmtree(folder)
    return died


FAST = ("journal: commit a turn", "journal: record outcomes", "file: rename", "run: stage done")


@pytest.mark.parametrize("point", FAST)
def test_kills_at_important_points(tmp_path: Path, small: Undisturbed, point: str):
    assert kill_at(tmp_path, small, point, 3) == 2


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_kills_at_every_point(tmp_path: Path, large: Undisturbed, point: str):
    died = sum(kill_at(tmp_path / str(call), large, point, call) for call in (1, 2, 5))
    assert died >= 1
