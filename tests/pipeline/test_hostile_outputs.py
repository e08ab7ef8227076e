"""Test thousands of malformed model outputs: nothing crashes, and every row has an outcome."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from selfalign.data.records import Prompt, Response, prompt_id, read_jsonl, write_jsonl
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import default_script
from selfalign.pipeline.order import run_stage
from selfalign.run.context import Context

Runs = Callable[..., Context]

PIECES = [
    "\x00",
    "\x1b[2J\x1b[31m",
    "\u2028",
    "\u202e",
    "\ud83d",
    "\udc00",
    "\ufeff",
    "🙂",
    "漢字",
    "é",
    "\r\n",
    "\t",
    " ",
    "\n" * 40,
    "###",
    "6. Instruction:",
    "6. Input:",
    "5. Input:\n<noinput>\n",
    "User:",
    "\n\nUser: and then?",
    "Alma:",
    "Alma (internal thoughts):",
    " Principles: 2 (informative)",
    " 99 (nothing)",
    "3 (helpful), 3 (helpful)",
    "(",
    ")",
    "```",
    "```python\n",
    "{",
    "[[[",
    '"',
    "\\",
    "</s>",
    "<|im_end|>",
    "<eos>",
    "{{7*7}}",
    "%s%n",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "-1",
    "1e999",
    "NaN",
    "null",
    "a" * 4000,
    "so on and " * 200,
    "1. a\n" * 60,
    "kind: x, topic: y, question:",
    "?",
    "!!!",
    "The sea is blue, cold and wide.",
    "Why is that so?",
]


def malformed(prompt: str, step: Step, rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(0, 10)))


def count_outcomes(context: Context, stage: str) -> int:
    counts = context.journal.counts(stage)
    assert counts.rows_in == counts.kept + sum(counts.dropped.values()) + sum(counts.failed.values())
    return counts.rows_in


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_malformed_responses_are_counted_exactly(fake_run: Runs, count: int):
    context = fake_run(script=malformed)
    texts = [f"Describe item {n} of the list in two sentences." for n in range(count)]
    write_jsonl(context.run.jsonl("prompts"), (Prompt(prompt_id(t, ""), t) for t in texts))
    run_stage(context, "align")
    assert count_outcomes(context, "align") == count
    counts = context.journal.counts("align")
    assert counts.failed == {}
    assert len(counts.dropped) >= 5
    assert len(read_jsonl(context.run.jsonl("responses"), Response)) == counts.kept
    run_stage(context, "engrave")
    run_stage(context, "verbose_cloning")
    assert count_outcomes(context, "verbose_responses") >= context.recipe.verbose_cloning.prompts


def test_malformed_prompts_and_topics_are_counted_exactly(fake_run: Runs):
    def half(prompt: str, step: Step, rng: random.Random) -> str:
        return malformed(prompt, step, rng) if rng.random() < 0.7 else default_script(prompt, step, rng)

    sizes = (
        "prompts.self_instruct.count=150",
        "prompts.self_instruct.requests_per_round=64",
        "prompts.red_team.count=60",
    )
    context = fake_run(*sizes, script=half)
    run_stage(context, "prompts")
    for stage in ("self_instruct", "topics", "red_team"):
        assert count_outcomes(context, stage) > 0
    prompts = read_jsonl(context.run.jsonl("prompts"), Prompt)
    assert len(prompts) == sum(context.journal.counts(s).kept for s in ("self_instruct", "red_team"))
    assert not any("\ud83d" in p.message or "\x00" in p.message for p in prompts)
