"""Marks of the user: rows are dropped or edited and counted, and their stage runs again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.data.records import Drop, Example, Response, read_jsonl, write_jsonl
from selfalign.errors import UserError
from selfalign.pipeline import order
from selfalign.run import marks
from selfalign.run.context import Context
from selfalign.run.marks import Mark

IDS = [f"{n:016x}" for n in range(8)]
EXAMPLES = [Example(i, "standard", f"What is {n}?", f"It is {n}.", "red_team") for n, i in enumerate(IDS)]
MARK = st.builds(Mark, st.sampled_from(marks.STAGES), st.sampled_from([*IDS, "gone"]), st.just("drop")) | st.builds(
    Mark, st.sampled_from(marks.STAGES), st.sampled_from(IDS), st.just("edit"), st.text(min_size=1).filter(str.strip)
)
MARKS = st.lists(MARK).map(lambda stored: {(m.stage, m.id): m for m in stored})


@given(MARKS)
def test_every_example_is_kept_edited_or_dropped(user_marks: marks.Marks):
    kept, outcomes, _ = marks.apply(user_marks, "engrave", EXAMPLES)
    assert len(kept) + len(outcomes) == len(EXAMPLES)
    dropped = {m.id for m in user_marks.values() if (m.stage, m.mark) == ("engrave", "drop")} & set(IDS)
    assert {o.id for o in outcomes} == dropped
    assert {(o.state, o.reason) for o in outcomes} <= {("dropped", "dropped manually")}
    for example in kept:
        mark = user_marks.get(("engrave", example.id))
        original = EXAMPLES[IDS.index(example.id)]
        assert example.assistant == (mark.answer.strip() if mark else original.assistant)
        assert (example.user, example.prompt, example.source) == (original.user, original.prompt, original.source)


def answered(context: Context, rows: int = 8) -> None:
    responses = [Response(i, f"What is {n}?", "", f"It is {n}.") for n, i in enumerate(IDS[:rows])]
    write_jsonl(context.run.jsonl("responses"), responses)


def learnt(context: Context) -> dict[str, str]:
    return {e.id: e.assistant for e in read_jsonl(context.run.jsonl("engrave_examples"), Example)}


def check(context: Context) -> None:
    """The contract: drops with their reason, a ledger that balances, a stage that runs again where marks change."""
    run = context.run
    order.run_stage(context, "engrave")
    every = learnt(context)
    before = order.inputs_hash(context, "engrave")
    user_marks = {m.id: m for m in (Mark("engrave", IDS[1], "drop"), Mark("engrave", IDS[2], "edit", " It is two. "))}
    marks.write(run, {(m.stage, m.id): m for m in user_marks.values()})
    assert not run.done("engrave", order.inputs_hash(context, "engrave"))
    order.run_stage(context, "engrave")
    assert learnt(context) == {i: "It is two." if i == IDS[2] else a for i, a in every.items() if i != IDS[1]}
    drops = [d for d in read_jsonl(run.jsonl("drops"), Drop) if d.stage == "engrave"]
    assert [(d.id, d.reason) for d in drops] == [(IDS[1], "dropped manually")]
    counts = run.journal.counts("engrave")
    assert counts.rows_in == len(every) == counts.kept + 1
    assert run.done("engrave", order.inputs_hash(context, "engrave"))
    # A mark for the other training is none of this stage's affair; without marks all is as before.
    marks.write(run, {**marks.read(run), ("verbose_cloning", IDS[3]): Mark("verbose_cloning", IDS[3], "drop")})
    assert run.done("engrave", order.inputs_hash(context, "engrave"))
    run.jsonl("marks").unlink()
    assert order.inputs_hash(context, "engrave") == before
    order.run_stage(context, "engrave")
    assert learnt(context) == every


def test_marks_on_the_fake_engine(fake_run: Callable[..., Context]):
    context = fake_run("stages=[engrave]")
    answered(context)
    check(context)


def test_stage_4_applies_its_own_marks(fake_run: Callable[..., Context]):
    context = fake_run("verbose_cloning.prompts=6", *[f"prompts.{k}.count=6" for k in ("self_instruct", "red_team")])
    for stage in ("prompts", "align", "engrave", "verbose_cloning"):
        order.run_stage(context, stage)  # type: ignore[arg-type]
    examples = read_jsonl(context.run.jsonl("verbose_cloning_examples"), Example)
    gone, other = examples[0], examples[1]
    user_marks = [Mark("verbose_cloning", gone.id, "drop"), Mark("verbose_cloning", other.id, "edit", "Edited.")]
    marks.write(context.run, {(m.stage, m.id): m for m in user_marks})
    order.run_stage(context, "verbose_cloning")
    after = {e.id: e.assistant for e in read_jsonl(context.run.jsonl("verbose_cloning_examples"), Example)}
    assert gone.id not in after and after[other.id] == "Edited." and len(after) == len(examples) - 1
    # The answers themselves are as the model gave them.
    assert {gone.id, other.id} <= {r.id for r in read_jsonl(context.run.jsonl("verbose_responses"), Response)}


@pytest.mark.slow
def test_marks_on_a_real_training(tiny_run: Callable[..., Context]):
    context = tiny_run("engrave.epochs=1")
    answered(context)
    check(context)
    assert context.run.adapter_gguf("engrave").exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"stage": "engrave", "id": "a", "mark": "keep"}, "a mark needs"),
        ({"stage": "align", "id": "a", "mark": "drop"}, "a mark needs"),
        ({"stage": "engrave", "mark": "drop"}, "a mark needs"),
        ({"stage": "engrave", "id": "a", "mark": "edit"}, "an edit needs an answer"),
        ({"stage": "engrave", "id": "a", "mark": "edit", "answer": " \n"}, "an edit needs an answer"),
        ({"stage": "engrave", "id": 3, "mark": "drop"}, "id is 3, not text"),
        ({"stage": "engrave", "id": "a", "mark": "drop", "why": "x"}, "unknown key 'why'"),
    ],
)
def test_invalid_mark_is_refused(fake_run: Callable[..., Context], line: dict[str, object], why: str):
    context = fake_run("stages=[engrave]")
    answered(context)
    context.run.jsonl("marks").write_text(json.dumps(line) + "\n", "utf-8")
    with pytest.raises(UserError, match=f"marks.jsonl:1: {why}"):
        order.run_stage(context, "engrave")


def test_written_marks_are_read(fake_run: Callable[..., Context], tmp_path: Path):
    run = fake_run("stages=[engrave]").run
    user_marks = {
        ("engrave", "a"): Mark("engrave", "a", "edit", "</script> \u2028 naïve\n", "What?"),
        ("verbose_cloning", "b"): Mark("verbose_cloning", "b", "drop", "", "Why?"),
    }
    marks.write(run, user_marks)
    assert marks.read(run) == user_marks
    assert len(run.jsonl("marks").read_bytes().splitlines()) == 2
