"""The choice of an engine for `auto`, and its checks before a run is created."""

from __future__ import annotations

from pathlib import Path

import pytest

import selfalign
from selfalign.data.prompt_text import BOS
from selfalign.errors import UserError
from selfalign.generation import engines
from selfalign.generation.engines import vllm_environment
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.generation.settings import EngineSettings
from selfalign.model import base_model, sources
from selfalign.run.directory import RunDir


def config(**settings: object) -> EngineSettings:
    return EngineSettings.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "devices", "vllm", "kind", "why"),
    [
        ({"url": "http://h/v1"}, ["cuda"], True, "openai", "engine.url"),
        ({}, ["cuda"], True, "vllm_server", "accelerator"),
        ({}, ["rocm"], False, "torch", "(rocm), is not installed"),
        ({}, [], True, "llama_cpp", "no accelerator"),
        ({"kind": "fake", "url": "http://h/v1"}, ["cuda"], True, "fake", "names it"),
    ],
)
def test_auto_selects_the_available_engine_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], devices: list[str], vllm: bool, kind: str, why: str
):
    monkeypatch.setattr(engines, "accelerators", lambda: devices)
    monkeypatch.setattr(vllm_environment, "find", lambda config: Path("python") if vllm else None)
    chosen, reason = engines.choose(config(**settings))
    assert chosen == kind == engines.kind(config(**settings))
    assert why in reason


def test_engine_errors_are_reported_before_the_run_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    for settings, message in (
        ({"engine.kind": "openai"}, "needs engine.url"),
        ({"engine.url": "ftp://h"}, "http:// or https://"),
        ({"engine.kind": "vllm"}, "vLLM is not installed"),
    ):
        for verb in (selfalign.plan, lambda *a, **k: selfalign.create(*a, out=tmp_path / "run", **k)):
            with pytest.raises(UserError, match=message):
                verb("quick", settings=settings)
    assert not (tmp_path / "run").exists()


def test_run_keeps_the_engine_that_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with selfalign.create("quick", tmp_path / "run", settings={"prompts.red_team.count": 3}) as run:
        assert run.recipe.engine.kind == "llama_cpp"
    monkeypatch.setattr(engines, "accelerators", lambda: ["cuda"])
    monkeypatch.setattr(vllm_environment, "find", lambda config: Path("python"))
    with selfalign.create("quick", tmp_path / "run", settings={"prompts.red_team.count": 3}) as run:
        assert run.recipe.engine.kind == "llama_cpp"
    with pytest.raises(UserError, match=r'engine\.kind: "llama_cpp" -> "fake"'):
        selfalign.create("quick", tmp_path / "run", settings={"prompts.red_team.count": 3, "engine.kind": "fake"})


def test_run_of_the_first_version_with_auto_opens(tmp_path: Path):
    settings = {"prompts.red_team.count": 3}
    selfalign.create("quick", tmp_path / "run", settings=settings).close()
    file = tmp_path / "run/recipe.yaml"
    file.write_text(file.read_text().replace("kind: llama_cpp", "kind: auto"))
    assert "kind: auto" in file.read_text()
    opened = RunDir.open(tmp_path / "run")
    assert opened.recipe.engine.kind == "llama_cpp"
    opened.journal.close()
    selfalign.create("quick", tmp_path / "run", settings=settings).close()
    with pytest.raises(UserError, match=r'engine\.kind: "llama_cpp" -> "fake"'):
        selfalign.create("quick", tmp_path / "run", settings={**settings, "engine.kind": "fake"})


@pytest.mark.integration
def test_llama_cpp_encodes_prompts_without_the_training_packages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base_model, "find_spec", lambda name: None)
    settings = config(kind="llama_cpp", context=256)
    started = engines.start(settings, sources.resolve("embedded"), {}, 1)
    try:
        assert "encodes the prompts itself" in started.note and "selfalign[train]" in started.note
        assert isinstance(started, LlamaCpp)
        assert started.encode((BOS, "Hi")) == started._bos + started._tokenize("Hi", special=False)
    finally:
        started.close()
