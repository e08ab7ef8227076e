"""Marks on answers: kept, replaced, withdrawn; hostile texts stay texts; nothing of a run follows from them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.errors import UserError
from selfalign.pipeline import order
from selfalign.report.status import status
from selfalign.run import feedback, marks
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.atomic import file_hash

Run = Callable[..., Context]


def said(message: str = "Why?", answer: str = "So.", **more: Any) -> dict[str, Any]:
    """A mark as a page or a dialogue says it."""
    turns = [{"role": "user", "content": message}]
    return {"verdict": "bad", "turns": turns, "answer": answer, "model": "final", "source": "page", **more}


TEXT = st.text(st.characters(), max_size=60)  # lone surrogates, too
SAID = st.builds(
    said, TEXT.filter(str.strip), TEXT, note=TEXT, verdict=st.sampled_from(["good", "bad"]),
    source=st.sampled_from(["chat", "page", "view"]), principles=st.lists(st.integers(1, 999), max_size=5),
    settings=st.dictionaries(st.sampled_from(["temperature", "top_p", "seed"]), st.integers(0, 2**31)),
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(SAID, max_size=4))
def test_what_is_kept_is_read_and_one_answer_has_one_mark(tmp_path_factory: pytest.TempPathFactory, told: list[Any]):
    run = RunDir(tmp_path_factory.mktemp("run"), None, None)  # type: ignore[arg-type]
    made = [feedback.mark(run, value) for value in told]
    found = feedback.read(run)
    assert list(found) == list(dict.fromkeys(m.id for m in reversed(made)))[::-1]
    for mark in made:
        assert found[mark.id] == next(m for m in reversed(made) if m.id == mark.id)
    if made:
        assert len(run.jsonl("feedback").read_bytes().splitlines()) == len(found)
    for identity in list(found):
        gone = feedback.withdraw(run, identity)
        assert gone and gone.id == identity
    assert feedback.read(run) == {} and feedback.withdraw(run, "0" * 16) is None


def test_another_mark_replaces_and_says_when(fake_run: Run):
    run = fake_run().run
    feedback.mark(run, said(note="too long"))
    feedback.mark(run, said("What?"))
    last = feedback.mark(run, said(note=" fine after all\n", verdict="good"))
    found = list(feedback.read(run).values())
    assert [(m.message, m.verdict, m.note) for m in found] == [("What?", "bad", ""), ("Why?", "good", "fine after all")]
    assert last.time.endswith("Z") and feedback.counts(run) == {"good": 1, "bad": 1}
    assert status(run)["feedback"] == {"good": 1, "bad": 1}
    # Another model's same answer, or another prompt before it, is another one.
    feedback.mark(run, said(model="base"))
    feedback.mark(run, said(prompt="verbose"))
    assert len(feedback.read(run)) == 4


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"verdict": "fine"}, "needs a verdict"), ({"verdict": None}, "verdict is None"), ({"source": "x"}, "a source"),
        ({"model": ""}, "needs the model"), ({"turns": []}, "turns must be a list"), ({"turns": "Why?"}, "turns must"),
        ({"turns": [{"role": "system", "content": "x"}]}, "a turn has a role"),
        ({"turns": [{"role": "user", "content": "x", "name": "y"}]}, "a turn has a role"),
        ({"turns": [{"role": "user", "content": " "}]}, "last turn must be the user's"),
        ({"turns": [{"role": "assistant", "content": "x"}]}, "last turn must be the user's"),
        ({"note": "x" * 2001}, "2,001 characters"), ({"answer": "x" * 200_001}, "200,000"), ({"note": 3}, "note is 3"),
        ({"settings": {"temperature": "hot"}}, "settings are numbers"), ({"settings": [1]}, "settings are numbers"),
        ({"settings": {"seed": float("inf")}}, "settings are numbers"), ({"settings": {"file": 1}}, "settings are"),
        ({"principles": [True]}, "principles are"), ({"principles": "1"}, "principles are"), ({"path": "/etc"}, "path"),
        ({"model": "m" * 201}, "200 characters"),
    ],
)  # fmt: skip
def test_what_is_no_mark_is_refused_and_named(fake_run: Run, more: dict[str, Any], why: str):
    run = fake_run().run
    with pytest.raises(UserError, match=why):
        feedback.mark(run, said(**more))
    assert not run.jsonl("feedback").exists()
    try:
        run.jsonl("feedback").write_text(json.dumps(said(**more), allow_nan=False) + "\n", "utf-8")
    except ValueError:
        return
    with pytest.raises(UserError, match=f"feedback.jsonl:1: .*{why}"):
        feedback.read(run)
    assert status(run)["feedback"] == {}  # how far a run is can be said all the same


def test_there_is_an_end(fake_run: Run, monkeypatch: pytest.MonkeyPatch):
    run = fake_run().run
    monkeypatch.setattr(feedback, "MAX_MARKS", 2)
    for message in ("a", "b", "a"):
        feedback.mark(run, said(message))
    with pytest.raises(UserError, match="no more are kept"):
        feedback.mark(run, said("c"))


def test_marks_set_at_once_are_all_kept(fake_run: Run):
    run = fake_run().run
    threads = [
        threading.Thread(target=lambda k=k: [feedback.mark(run, said(f"{k} {n}")) for n in range(5)]) for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(feedback.read(run)) == 30


def made(run: RunDir) -> dict[str, str]:
    """Every file that stages made or exports hold, with its hash; clocks and measured times left out."""
    timed = ("journal", "plan.json", "manifest.json", "report/", "feedback.jsonl", "export/")
    names = {str(f.relative_to(run.path)): f for f in sorted(run.path.rglob("*")) if f.is_file()}
    return {n: file_hash(f) for n, f in names.items() if not n.startswith(timed)}


def test_nothing_that_a_run_makes_follows_from_feedback(fake_run: Run, tmp_path: Path):
    """Two runs of the same recipe, one with marks from the first stage on: the same rows, inputs, digests, exports."""
    from selfalign.export import dataset

    sizes = [f"prompts.{k}.count=6" for k in ("self_instruct", "red_team")]
    stages = ("prompts", "align", "engrave", "verbose_cloning", "evaluate")
    contexts = [
        fake_run("verbose_cloning.prompts=4", "evaluate.heldout_prompts=3", *sizes, name=name)
        for name in ("plain", "marked")
    ]
    unlikely = "zyzzyva"
    inputs = []
    for context in contexts:
        for stage in stages:
            if context.run.path.name == "marked":
                feedback.mark(context.run, said(f"{unlikely} {stage}", f"{unlikely} so", note=f"{unlikely}!"))
            order.run_stage(context, stage)  # type: ignore[arg-type]
        inputs.append([order.inputs_hash(context, stage) for stage in stages])  # type: ignore[arg-type]
        dataset.write(context, "messages", "engrave", None, False)
        context.run.write_manifest()
    one, other = (c.run for c in contexts)
    assert made(one) == made(other) and len(made(one)) > 8
    assert inputs[0] == inputs[1]
    assert one.recipe.digest() == other.recipe.digest() and one.constitution.digest() == other.constitution.digest()
    assert marks.digest(one, "engrave") == marks.digest(other, "engrave")
    assert "feedback.jsonl" not in json.loads(other.manifest.read_text("utf-8"))["files"]
    for file in other.path.rglob("*"):
        if file.is_file() and file.name != "feedback.jsonl":
            assert unlikely.encode() not in file.read_bytes(), file
    # A finished stage stays finished.
    feedback.mark(other, said("one more"))
    assert all(other.done(s, h) for s, h in zip(stages, inputs[1], strict=True))
