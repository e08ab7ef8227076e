"""Specifications of models that are not available."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfalign.errors import UserError
from selfalign.evaluation import models
from selfalign.generation import engines
from selfalign.generation.settings import EngineSettings
from selfalign.model import gguf_adapter


def test_missing_judge_is_an_error_of_one_line(tmp_path: Path) -> None:
    for spec, match in (("nothing.gguf", "is not 'embedded'"), ("http://127.0.0.1:1/v1", "#ID")):
        with pytest.raises(UserError, match=match):
            models.judge_group(spec, EngineSettings())  # type: ignore[call-arg]
    with pytest.raises(UserError, match="not a PEFT adapter"):
        models.engines_of([f"embedded+{tmp_path}"], "standard", False)


def test_adapter_without_gguf_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(adapter: Path, base: Path, target: Path, notice: str) -> None:
        written.append(target)
        target.write_text("GGUF", "utf-8")

    monkeypatch.setattr(gguf_adapter, "write", write)
    monkeypatch.setattr(engines, "start", lambda *args: args[2])
    model: Any = SimpleNamespace(
        gguf_path=tmp_path / "base.gguf", notice="", folder=lambda: tmp_path, check_adapter=lambda folder: None
    )
    adapters = {"mine": tmp_path / "mine-0.1", "other": tmp_path / "mine-0.2"}
    for folder in adapters.values():
        folder.mkdir()
        (folder / "adapter_model.safetensors").touch()
    settings = EngineSettings(kind="llama_cpp", slots=2)  # type: ignore[call-arg]
    for _ in range(2):
        assert models._start_engine(model, adapters, settings) == adapters
    assert written == [tmp_path / "mine-0.1.gguf", tmp_path / "mine-0.2.gguf"]
    os.utime(adapters["mine"] / "adapter_model.safetensors", (time.time() + 60,) * 2)  # trained again in place
    models._start_engine(model, adapters, settings)
    assert written[2:] == [tmp_path / "mine-0.1.gguf"]
    written[0].unlink()
    monkeypatch.setattr(
        gguf_adapter, "write", lambda *args: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    with pytest.raises(UserError, match=r"mine-0\.1\.gguf cannot be written: Read-only"):
        models._start_engine(model, adapters, settings)
