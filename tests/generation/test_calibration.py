"""The measurement of the machine: on the real model, kept, and not believed where it cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.generation import calibration
from selfalign.model import sources


def test_the_real_model_is_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch):
    model = sources.resolve("embedded")
    found = calibration.calibrate(model.gguf, model.identity, 4096, 0)
    assert str(found.slots) in found.by_slots
    assert found.tokens_per_second == found.by_slots[str(found.slots)]
    assert found.tokens_per_second >= found.by_slots["1"]
    assert min(found.by_slots.values()) > 0 and found.prompt_tokens_per_second > found.by_slots["1"]
    assert found.megabytes > 200 and found.cells >= 2048

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(calibration, "_measure", never)
    assert calibration.calibrate(model.gguf, model.identity, 4096, 0) == found
    with pytest.raises(AssertionError, match="measured again"):
        calibration.calibrate(model.gguf, model.identity, 4096, 0, fresh=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"slots": 8}'])
def test_what_another_version_kept_is_measured_again(tmp_path: Path, text: str):
    (tmp_path / "kept.json").write_text(text)
    assert calibration._read(tmp_path / "kept.json") is None
    assert calibration._read(tmp_path / "none.json") is None
