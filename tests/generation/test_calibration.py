"""The measurement of llama.cpp on this machine, and its cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.generation import calibration
from selfalign.model import sources

pytestmark = pytest.mark.integration


def test_real_model_is_measured_once_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = sources.resolve("embedded")
    monkeypatch.setattr(calibration, "_SECONDS", 0.4)
    monkeypatch.setattr(calibration, "CANDIDATES", (1, 2, 4))
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path))
    measured = calibration.calibrate(model.gguf, model.identity, 4096, 1)
    assert str(measured.slots) in measured.by_slots
    assert measured.tokens_per_second == measured.by_slots[str(measured.slots)]
    assert measured.tokens_per_second >= measured.by_slots["1"]
    assert min(measured.by_slots.values()) > 0 and measured.prompt_tokens_per_second > measured.by_slots["1"]
    assert measured.megabytes > 200 and measured.cells >= 2048

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(calibration, "_measure", never)
    assert calibration.calibrate(model.gguf, model.identity, 4096, 1) == measured
    with pytest.raises(AssertionError, match="measured again"):
        calibration.calibrate(model.gguf, model.identity, 4096, 1, fresh=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"slots": 8}'])
def test_unreadable_cache_is_ignored(tmp_path: Path, text: str):
    (tmp_path / "cached.json").write_text(text)
    assert calibration._read(tmp_path / "cached.json") is None
    assert calibration._read(tmp_path / "none.json") is None
