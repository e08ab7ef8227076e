"""`engrave.method: on_policy`: rounds of own responses, their file and ledger, the teacher's prompt, resuming."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfalign.constitution import Constitution
from selfalign.constitution.rendering import render_exemplars, render_principles
from selfalign.data.records import Example, OwnResponse, Prompt, Response, prompt_id, read_jsonl, write_jsonl
from selfalign.errors import Interrupted, UserError
from selfalign.export import launch
from selfalign.generation import executors
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Fake
from selfalign.model.dialogue import Encoded
from selfalign.pipeline import on_policy, order
from selfalign.planning import costs
from selfalign.report import run_summary
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.marks import Mark, write
from selfalign.system.console import Screen
from selfalign.training import loop
from selfalign.training.batches import held_out_ids
from selfalign.training.response_rows import ResponseRow

Runs = Callable[..., Context]
KINDS = ("good", "good", "good", "cut", "empty", "loop", "forged")
THOUGHTS = "A question about a habit. Principles: 2 (informative)."


def answer(prompt: str, step: Step, rng: random.Random) -> str:
    """Each prompt names its kind of response."""
    if "loop" in prompt:
        return " Salt is salt, and salt is salt." * 9 + "\n\nUser:"
    if "empty" in prompt:
        return "\n\nUser:"
    if "forged" in prompt:
        return " Salt gives taste.\nAssistant: And more.\n\nUser:"
    text = f" Salt gives bread taste number {rng.randrange(1000)}, and it slows the yeast."
    return text + "".join(f" {n}," for n in range(1000)) if "cut" in prompt else f"{text}\n\nUser:"


class Engines:
    """Starts fake engines, and records their adapters and prompts."""

    def __init__(self) -> None:
        self.adapters: list[list[str]] = []
        self.prompts: list[str] = []

    def __call__(self, executor: Any, config: Any, model: Any, adapters: dict[str, Path], *_: Any) -> Fake:
        assert all((folder / "adapter_model.safetensors").exists() for folder in adapters.values())
        self.adapters.append(list(adapters))

        def script(prompt: str, step: Step, rng: random.Random) -> str:
            self.prompts.append(prompt)
            return answer(prompt, step, rng)

        return Fake(parallel=2, script=script)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()
    monkeypatch.setattr(executors, "start", made)
    return made


def prepare(tiny_run: Runs, *sets: str, name: str = "run", kinds: tuple[str, ...] = KINDS) -> Context:
    rounds = ("engrave.on_policy.rounds=2", "engrave.on_policy.prompts=20")
    context = tiny_run(
        "engrave.method=on_policy", "engine.kind=vllm", "engine.url=null", "engine.slots=2", "engrave.epochs=1",
        "engrave.max_length=700", *rounds, *sets, name=name,
    )  # fmt: skip
    texts = context.run.constitution
    # A constitution that the tiny base's context holds.
    context.run.constitution = texts.model_copy(
        update={"principles": texts.principles[:2], "exemplars": texts.exemplars[:1], "identity": texts.identity[:2]}
    )
    messages = [f"Why do bakers use salt, {kind} {n}?" for n, kind in enumerate(kinds)]
    write_jsonl(
        context.run.jsonl("responses"),
        [Response(prompt_id(m, ""), m, "", "For its taste.", THOUGHTS, [2]) for m in messages],
    )
    types = ("opinions", "")
    write_jsonl(
        context.run.jsonl("prompts"),
        [Prompt(prompt_id(m, ""), m, exemplar_type=types[n % 2]) for n, m in enumerate(messages)],
    )
    return context


def own_responses(context: Context) -> list[OwnResponse]:
    return read_jsonl(context.run.jsonl("on_policy"), OwnResponse)


def test_every_round_responds_with_the_adapter_before(tiny_run: Runs, engines: Engines) -> None:
    context = prepare(tiny_run)
    order.run_stage(context, "engrave")
    assert engines.adapters == [["engrave-0"], ["engrave-1"]]
    constitution = context.run.constitution
    assert all(constitution.system_prompt("standard") in prompt for prompt in engines.prompts)
    assert not any(p.rule in prompt for prompt in engines.prompts for p in constitution.principles)
    counts, rows = context.journal.counts("on_policy"), own_responses(context)
    assert counts.finished and counts.rows_in == 2 * len(KINDS) and counts.kept == len(rows) == 2 * 4
    assert counts.rows_in == counts.kept + sum(counts.dropped.values()) + sum(counts.failed.values())
    assert counts.dropped == {"empty": 2, "loop": 2, "turn leaked": 2}
    assert [row.round for row in rows] == [1] * 4 + [2] * 4
    assert sum(row.complete for row in rows) == 6 and len({row.assistant for row in rows}) == 8
    assert not context.run.rounds.exists() and (context.run.adapter("engrave") / "adapter_model.safetensors").exists()
    examples = read_jsonl(context.run.jsonl("engrave_examples"), Example)
    assert len(examples) == len(KINDS) + 2 == context.journal.counts("engrave").kept


def test_notes_and_cards_describe_the_rounds(tiny_run: Runs, engines: Engines) -> None:
    context = prepare(tiny_run, "engrave.validation=0.4", kinds=("good",) * 8)
    order.run_stage(context, "engrave")
    notes, examples = (
        context.journal.counts("engrave").notes,
        read_jsonl(context.run.jsonl("engrave_examples"), Example),
    )
    held_out = held_out_ids([example.id for example in examples], 0.4)
    assert held_out and not held_out & {row.prompt_id for row in own_responses(context)}
    assert [part["responses"] for part in notes["on_policy"]] == [4, 4]
    assert notes["steps"] == 2 + 1 + 1 and [step for step, _ in notes["heldout"]] == [2, 3, 4]
    card = (context.run.adapter("engrave") / "README.md").read_text()
    assert "Trained on 6 single-turn examples" in card and "8 responses of its own" in card
    stages = [{**context.journal.counts(s).as_dict(), "title": s} for s in context.journal.stages()]
    (record,) = run_summary.training(stages)
    assert record["on_policy"] == notes["on_policy"] and record["heldout"]
    assert "on responses of its own" in run_summary.story(context.run)
    with pytest.raises(UserError, match=r"engrave\.method is on_policy"):
        launch._rows(prepare(tiny_run, name="other"), "engrave")


def test_teacher_reads_principles_exemplars_of_the_type_and_thoughts(tiny_run: Runs, engines: Engines) -> None:
    context, seen = prepare(tiny_run), list[ResponseRow]()

    def train(name: str, start: str | None = None, rows: list[Encoded] | None = None, *_: Any) -> dict[str, Any]:
        seen.extend(row for row in rows or () if isinstance(row, ResponseRow))
        return {"steps": 1, "training_tokens": 1, "training_seconds": 1.0, "loss_first": 1, "loss_last": 1} | {
            "computed": "", "parity": {}
        }  # fmt: skip

    examples = [Example(r.id, "standard", r.message, r.response, "") for r in context.responses()]
    settings = context.recipe.engrave.on_policy.model_copy(update={"warmup": "none", "rounds": 1})
    engrave = context.recipe.engrave.model_copy(update={"on_policy": settings})
    context.run.recipe = context.recipe.model_copy(update={"engrave": engrave})
    on_policy.Rounds(context, list(context.responses()))(examples, train)
    constitution, tokenizer = context.run.constitution, context.model.tokenizer()
    texts = {tokenizer.text(row.teacher.ids) for row in seen}
    assert len(seen) == 4
    for row in own_responses(context):
        kind = "opinions" if int(row.user[-2]) % 2 == 0 else ""
        before = render_principles(constitution) + render_exemplars(constitution, kind)
        text = f"{before}User: {row.user}\n\nAlma (internal thoughts): {THOUGHTS}\n\nAlma: {row.assistant}"
        assert f"<bos>{text}" + ("\n" if row.complete else "") in texts
    for row in seen:
        student, teacher = (
            [token for token, counts in zip(r.ids, r.mask, strict=True) if counts] for r in (row, row.teacher)
        )
        assert student[-1] == teacher[-1] or (student[-1], teacher[-1]) == (257, tokenizer.ids("\n")[0])
        assert student[:-1] == teacher[:-1]


def stop_before(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, calls: int) -> None:
    """Interrupt at the n-th call of a function, as a signal would."""
    whole, made = getattr(target, name), []

    def counted(*args: Any, **more: Any) -> Any:
        made.append(name)
        if len(made) == calls:
            raise Interrupted(15)
        return whole(*args, **more)

    monkeypatch.setattr(target, name, counted)


@pytest.mark.parametrize(
    ("target", "name", "calls"),
    [
        (loop.Trainer, "step", 3),
        (Context, "release_engine", 2),
        (Context, "write_ledger", 1),
    ],
)
def test_stage_that_was_stopped_resumes_with_the_same_result(
    tiny_run: Runs, engines: Engines, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, calls: int
) -> None:
    sets = ("engrave.checkpoint_seconds=0", "engrave.on_policy.rounds=1")
    whole = prepare(tiny_run, *sets, name="whole", kinds=KINDS[:4])
    order.run_stage(whole, "engrave")
    asked = len(engines.prompts)
    context = prepare(tiny_run, *sets, name="stopped", kinds=KINDS[:4])
    with monkeypatch.context() as patch:
        stop_before(patch, target, name, calls)
        with pytest.raises(Interrupted):
            order.run_stage(context, "engrave")
    order.run_stage(context, "engrave")
    assert len(engines.prompts) == 2 * asked, "no request is repeated"
    assert own_responses(context) == own_responses(whole)
    files = (c.run.adapter("engrave") / "adapter_model.safetensors" for c in (whole, context))
    expected, resumed = (load_file(file) for file in files)
    assert all(torch.allclose(resumed[name], value, rtol=0, atol=1e-6) for name, value in expected.items())
    assert context.journal.counts("on_policy").kept == whole.journal.counts("on_policy").kept
    assert not context.run.rounds.exists()


def test_method_that_changes_removes_the_own_responses(tiny_run: Runs, engines: Engines) -> None:
    context = prepare(tiny_run)
    order.run_stage(context, "engrave")
    before = order.inputs_hash(context, "engrave")
    engrave = context.recipe.engrave.model_copy(update={"method": "sft"})
    context.run.change_recipe(context.recipe.model_copy(update={"engrave": engrave}))
    assert order.inputs_hash(context, "engrave") != before
    order.run_stage(context, "engrave")
    assert not context.run.jsonl("on_policy").exists() and context.journal.counts("on_policy").rows_in == 0
    assert "on_policy" not in context.journal.counts("engrave").notes


def test_prompts_that_the_user_dropped_get_no_response(tiny_run: Runs, engines: Engines) -> None:
    context = prepare(tiny_run, kinds=("good",) * 4)
    dropped = prompt_id("Why do bakers use salt, good 0?", "")
    write(context.run, {("engrave", dropped): Mark("engrave", dropped, "drop", "")})
    order.run_stage(context, "engrave")
    assert context.journal.counts("on_policy").rows_in == 6


def test_no_usable_response_is_an_error_with_advice(tiny_run: Runs, engines: Engines) -> None:
    context = prepare(tiny_run, kinds=("empty", "empty"))
    with pytest.raises(UserError, match=r"round 1.*no usable response.*empty.*engrave\.method to sft"):
        order.run_stage(context, "engrave")


def test_servers_and_training_elsewhere_are_refused(tiny_run: Runs) -> None:
    with pytest.raises(UserError, match="elsewhere supports sft only, and method is on_policy"):
        tiny_run("engrave.method=on_policy", "engrave.elsewhere=true")
    with pytest.raises(UserError, match=r"engine\.kind to llama_cpp, torch or vllm"):
        order.run_stage(tiny_run("engrave.method=on_policy", name="server"), "engrave")


def test_settings_of_other_methods_keep_their_hash(tiny_run: Runs) -> None:
    settings = tiny_run().recipe.engrave
    assert "on_policy" not in settings.deciding()
    dpo = settings.model_copy(update={"method": "dpo"}).deciding()
    assert "on_policy" not in dpo and {"method", "beta"} <= dpo.keys()
    own = settings.model_copy(update={"method": "on_policy"}).deciding()
    assert own["on_policy"]["rounds"] == 3 and "beta" not in own


def test_fake_engine_trains_nothing(fake_run: Runs) -> None:
    context = fake_run("engrave.method=on_policy", "stages=[engrave]")
    write_jsonl(context.run.jsonl("responses"), [Response("a" * 16, "Why salt?", "", "For its taste.")])
    order.run_stage(context, "engrave")
    assert context.journal.counts("engrave").kept and not context.run.jsonl("on_policy").exists()


def test_plan_includes_the_rounds(fake_run: Runs) -> None:
    sft, own = (fake_run(f"engrave.method={m}", name=m) for m in ("sft", "on_policy"))
    machine = costs.Machine(4, None, 1072.0, True, True, 4096, 300.0)
    plans = [costs.plan(c.recipe, c.run.constitution, machine) for c in (sft, own)]
    before, after = ({s.stage: s for s in plan.stages} for plan in plans)
    assert after["on_policy"].requests == 3 * 64 and "on_policy" not in before
    assert after["engrave"].generated_tokens > before["engrave"].generated_tokens


@pytest.mark.slow
@pytest.mark.integration
def test_embedded_model_learns_from_its_own_responses(tmp_path: Path, default_constitution: Constitution) -> None:
    settings = (
        "stages=[engrave]", "engrave.method=on_policy", "engrave.on_policy.rounds=1", "engrave.on_policy.prompts=4",
        "engrave.epochs=1", "align.max_new_tokens=32", "engrave.identity_repeats=1", "engine.slots=2",
        "engrave.exemplar_repeats=0", "engrave.seed_repeats=0",
    )  # fmt: skip
    texts = default_constitution.model_copy(update={"identity": default_constitution.identity[:2]})
    context = Context(RunDir.create(tmp_path / "run", recipes.load("quick", list(settings)), texts), Screen(-1))
    things = ("salt in bread", "a bridge over a river", "the moon at night", "old books")
    rows = [
        Response(f"{n:016x}", f"Tell me something about {thing}.", "", f"{thing.capitalize()} is useful.", THOUGHTS)
        for n, thing in enumerate(things)
    ]
    write_jsonl(context.run.jsonl("responses"), rows)
    try:
        order.run_stage(context, "engrave")
        counts, notes = context.journal.counts("on_policy"), context.journal.counts("engrave").notes
        assert counts.rows_in == 4 == counts.kept + sum(counts.dropped.values()) and counts.kept >= 2
        assert notes["on_policy"][0]["responses"] == counts.kept and notes["parity"]["positions"] > 0
    finally:
        context.release_engine()
        context.journal.close()


def test_notes_have_the_last_divergence_from_anchors() -> None:
    part = {"steps": 3, "training_tokens": 9, "training_seconds": 1.0, "computed": "float32 on cpu", "parity": {}}
    own = {**part, "responses": 5, "loss_first": 0.4, "loss_last": 0.2, "divergence": 0.01}
    joined = on_policy._joined([{**part, "divergence": 0.03}, own], True)
    assert joined["divergence"] == 0.01 and joined["steps"] == 6
    assert joined["on_policy"] == [{"responses": 5, "divergence_first": 0.4, "divergence_last": 0.2}]
