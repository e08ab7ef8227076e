"""Specifications of models that are not available."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.errors import UserError
from selfalign.evaluation import models
from selfalign.generation.settings import EngineSettings


def test_missing_judge_is_an_error_of_one_line(tmp_path: Path) -> None:
    for spec, match in (("nothing.gguf", "is not 'embedded'"), ("http://127.0.0.1:1/v1", "#ID")):
        with pytest.raises(UserError, match=match):
            models.judge_group(spec, EngineSettings())  # type: ignore[call-arg]
    with pytest.raises(UserError, match="not a PEFT adapter"):
        models.engines_of([f"embedded+{tmp_path}"], "standard", False)
