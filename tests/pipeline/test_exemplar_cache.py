"""Stage 2 on the embedded model: the prefix cache keeps the principles, and each type's exemplars are computed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.constitution import Constitution
from selfalign.data.records import Prompt, prompt_id, write_jsonl
from selfalign.pipeline import step2_self_align
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen

pytestmark = pytest.mark.integration

SMALL = ("engine.slots=2", "engine.context=2048", "align.max_new_tokens=8", "align.max_thought_tokens=12")
QUESTIONS = {
    "opinions": ("Is tea better than coffee?", "Should parks be open at night?"),
    "general knowledge": ("What is a comet?", "Name a river in Spain."),
}


def test_prompts_of_two_types_come_from_the_cache(tmp_path: Path, default_constitution: Constitution):
    context = Context(RunDir.create(tmp_path / "run", recipes.load("quick", SMALL), default_constitution), Screen(-1))
    rows = [
        Prompt(prompt_id(text, ""), text, exemplar_type=name)
        for pair in zip(*QUESTIONS.values(), strict=True)
        for name, text in zip(QUESTIONS, pair, strict=True)
    ]
    write_jsonl(context.run.jsonl("prompts"), rows)
    try:
        step2_self_align.run(context)
        totals = context.journal.counts("align").generation
    finally:
        context.release_engine()
        context.journal.close()
    assert totals.hit_rate > 0.9
    assert totals.prompt_tokens < 4 * 120
