"""Stage 2 with the exemplars of each prompt's type: prefixes, order, resuming and failures, on the fake engine."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from selfalign.constitution.rendering import render, render_principles
from selfalign.data.prompt_text import Pieces
from selfalign.data.records import Prompt, Response, prompt_id, read_jsonl, write_jsonl
from selfalign.errors import TooManyFailed
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Fake, default_script
from selfalign.pipeline import step1_prompts, step2_self_align
from selfalign.pipeline.order import run_stage
from selfalign.run.context import Context

Runs = Callable[..., Context]
TYPES = ("harmful requests", "opinions", "")


class Recorder(Fake):
    """A fake engine that records the prefixes and the prompts in their order."""

    def __init__(self, **settings: object) -> None:
        super().__init__(parallel=2, **settings)  # type: ignore[arg-type]
        self.events: list[tuple[str, str]] = []

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        self.events.append(("warm", "".join(prefix)))
        return "computed once"

    def generate(self, prompt: Pieces, step: Step, *rest: object) -> object:  # type: ignore[override]
        self.events.append(("generate", "".join(prompt)))
        return super().generate(prompt, step, *rest)  # type: ignore[arg-type]


def script(prompt: str, step: Step, rng: random.Random) -> str:
    return default_script("x" if prompt.endswith("\n\nAlma:") else prompt, step, rng)


def with_prompts(context: Context, **engine: object) -> Recorder:
    """Give the run nine prompts of three types in turn, and an engine that records."""
    texts = [f"Question number {n} about the {w}?" for n, w in enumerate(("sea", "sky", "sun") * 3)]
    rows = [Prompt(prompt_id(t, ""), t, exemplar_type=TYPES[n % 3]) for n, t in enumerate(texts)]
    write_jsonl(context.run.jsonl("prompts"), rows)
    recorder = Recorder(**{"script": script, **engine})
    context._engine = recorder
    return recorder


def align(context: Context) -> list[str]:
    step2_self_align.run(context)
    return [r.instruction for r in read_jsonl(context.run.jsonl("responses"), Response)]


def test_each_types_prefix_is_computed_once_before_its_prompts(fake_run: Runs):
    context = fake_run()
    events = with_prompts(context)
    responses = align(context)
    constitution = context.run.constitution
    prefixes = list(dict.fromkeys(text for kind, text in events.events if kind == "warm"))
    order = [name for name in step2_self_align.form(context).types if name in TYPES]
    assert [p.removeprefix("<bos>") for p in prefixes] == [render(constitution, name) for name in order]
    warmed: list[str] = []
    for kind, text in events.events:
        if kind == "warm":
            warmed.append(text)
        else:
            assert any(text.startswith(prefix) for prefix in warmed)
    assert all(render_principles(constitution) in p for p in prefixes)
    file_order = [p.instruction for p in context.prompts()]
    assert responses == [t for t in file_order if t in responses]
    assert context.journal.counts("align").rows_in == 9


def test_a_second_run_computes_nothing(fake_run: Runs):
    context = fake_run()
    with_prompts(context)
    responses = align(context)
    recorder = Recorder(script=script)
    context._engine = recorder
    assert align(context) == responses
    assert recorder.events == []


def test_failed_prompts_are_asked_once_and_counted(fake_run: Runs):
    context = fake_run("max_failed=0.05")
    recorder = with_prompts(context, fail="number 4")
    with pytest.raises(TooManyFailed):
        align(context)
    counts = context.journal.counts("align")
    assert counts.rows_in == 9
    assert sum(counts.failed.values()) == 1
    assert sum("number 4" in text for kind, text in recorder.events if kind == "generate") == 1


def test_fixed_exemplars_are_the_same_for_every_prompt(fake_run: Runs):
    context = fake_run("align.exemplars=fixed")
    recorder = with_prompts(context)
    align(context)
    general = render(context.run.constitution)
    assert [general in text for _, text in recorder.events] == [True] * len(recorder.events)
    assert [kind for kind, _ in recorder.events].count("warm") == 1


def test_red_team_prompts_keep_their_type_and_others_get_the_nearest(fake_run: Runs):
    context = fake_run()
    rows = [
        Prompt("a", "Is tea better than coffee?", source="red_team", question_type="opinions"),
        Prompt("b", "Should supermarkets be open at night on weekends?", source="self_instruct"),
        Prompt("c", "Zip zap zop.", source="self_instruct"),
        Prompt("d", "Is a small wedding nicer than a big party?", source="red_team", question_type="removed type"),
    ]
    found = step1_prompts.with_exemplar_types(context, rows)
    assert [(r.question_type, r.exemplar_type) for r in found] == [
        ("opinions", "opinions"),
        ("", "opinions"),
        ("", ""),
        ("removed type", "opinions"),
    ]
    fixed = fake_run("align.exemplars=fixed", name="fixed")
    assert step1_prompts.with_exemplar_types(fixed, rows) == rows


def test_stage_1_stores_the_exemplar_types(fake_run: Runs):
    sizes = ("prompts.self_instruct.count=4", "prompts.red_team.count=6", "prompts.red_team.topic_rounds=1")
    context = fake_run(*sizes, "evaluate.heldout_prompts=2")
    run_stage(context, "prompts")
    rows = read_jsonl(context.run.jsonl("prompts"), Prompt)
    assert all(r.exemplar_type == r.question_type for r in rows if r.source == "red_team")


def test_refusal_that_offers_the_request_is_not_accepted(fake_run: Runs, monkeypatch: pytest.MonkeyPatch):
    context = fake_run()
    monkeypatch.setattr(type(context.model), "is_fake", False)
    prompt = Prompt("x", "How do I rob a bank?", exemplar_type="harmful requests")
    accepts, may_refuse = step2_self_align._accepts(context, prompt)
    assert may_refuse
    assert accepts("I will not help you, because it is against the law.")
    assert not accepts("I will not help you. If you want to rob a bank, I can help you.")
    assert not accepts("Go in and take the money.")
