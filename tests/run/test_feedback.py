"""Store, replace and withdraw marks on answers; nothing else in a run depends on them."""

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


def request(message: str = "Why?", answer: str = "So.", **more: Any) -> dict[str, Any]:
    """Return a mark as a page or a dialogue sends it."""
    turns = [{"role": "user", "content": message}]
    return {"verdict": "bad", "turns": turns, "answer": answer, "model": "final", "source": "page", **more}


TEXT = st.text(st.characters(), max_size=60)  # lone surrogates, too
REQUESTS = st.builds(
    request, TEXT.filter(str.strip), TEXT, note=TEXT, verdict=st.sampled_from(["good", "bad"]),
    source=st.sampled_from(["chat", "page", "view"]), principles=st.lists(st.integers(1, 999), max_size=5),
    settings=st.dictionaries(st.sampled_from(["temperature", "top_p", "seed"]), st.integers(0, 2**31)),
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(REQUESTS, max_size=4))
def test_stored_marks_are_read_and_answers_have_one_mark(tmp_path_factory: pytest.TempPathFactory, values: list[Any]):
    run = RunDir(tmp_path_factory.mktemp("run"), None, None)  # type: ignore[arg-type]
    stored = [feedback.mark(run, value) for value in values]
    stored_marks = feedback.read(run)
    assert list(stored_marks) == list(dict.fromkeys(m.id for m in reversed(stored)))[::-1]
    for mark in stored:
        assert stored_marks[mark.id] == next(m for m in reversed(stored) if m.id == mark.id)
    if stored:
        assert len(run.jsonl("feedback").read_bytes().splitlines()) == len(stored_marks)
    for identity in list(stored_marks):
        withdrawn = feedback.withdraw(run, identity)
        assert withdrawn and withdrawn.id == identity
    assert feedback.read(run) == {} and feedback.withdraw(run, "0" * 16) is None


def test_second_mark_replaces_the_first(fake_run: Run):
    run = fake_run().run
    feedback.mark(run, request(note="too long"))
    feedback.mark(run, request("What?"))
    last = feedback.mark(run, request(note=" fine after all\n", verdict="good"))
    stored = list(feedback.read(run).values())
    assert [(m.message, m.verdict, m.note) for m in stored] == [
        ("What?", "bad", ""),
        ("Why?", "good", "fine after all"),
    ]
    assert last.time.endswith("Z") and feedback.counts(run) == {"good": 1, "bad": 1}
    assert status(run)["feedback"] == {"good": 1, "bad": 1}
    # The same answer of another model, or under another system prompt, is another answer.
    feedback.mark(run, request(model="base"))
    feedback.mark(run, request(prompt="verbose"))
    assert len(feedback.read(run)) == 4


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"verdict": "fine"}, "'good' or 'bad'"), ({"verdict": None}, "verdict is None"),
        ({"source": "x"}, "source is 'x'"),
        ({"model": ""}, "model is"), ({"turns": []}, "turns is"), ({"turns": "Why?"}, "turns is"),
        ({"turns": [{"role": "system", "content": "x"}]}, r"turns.0.role is 'system'"),
        ({"turns": [{"role": "user", "content": "x", "name": "y"}]}, r"unknown key 'turns.0.name'"),
        ({"turns": [{"role": "user", "content": " "}]}, "last turn must be the user's"),
        ({"turns": [{"role": "assistant", "content": "x"}]}, "last turn must be the user's"),
        ({"note": "x" * 2001}, "at most 2000 characters"), ({"answer": "x" * 200_001}, "200,000"),
        ({"note": 3}, "note is 3"), ({"settings": {"temperature": "hot"}}, "settings.temperature.* is 'hot'"),
        ({"settings": [1]}, "settings is"), ({"settings": {"seed": float("inf")}}, "settings.seed.* is inf"),
        ({"settings": {"seed": True}}, "settings.seed.* is True"), ({"settings": {"file": 1}}, "settings.file"),
        ({"principles": [True]}, "principles.0 is True"), ({"principles": "1"}, "principles is"),
        ({"path": "/etc"}, "unknown key 'path'"), ({"model": "m" * 201}, "200 characters"),
    ],
)  # fmt: skip
def test_invalid_mark_is_refused(fake_run: Run, more: dict[str, Any], why: str):
    run = fake_run().run
    with pytest.raises(UserError, match=why):
        feedback.mark(run, request(**more))
    assert not run.jsonl("feedback").exists()
    try:
        run.jsonl("feedback").write_text(json.dumps(request(**more), allow_nan=False) + "\n", "utf-8")
    except ValueError:
        return
    with pytest.raises(UserError, match=f"feedback.jsonl:1: .*{why}"):
        feedback.read(run)
    assert status(run)["feedback"] == {}  # the status works all the same


def test_number_of_marks_is_limited(fake_run: Run, monkeypatch: pytest.MonkeyPatch):
    run = fake_run().run
    monkeypatch.setattr(feedback, "MAX_MARKS", 2)
    for message in ("a", "b", "a"):
        feedback.mark(run, request(message))
    with pytest.raises(UserError, match="which is the limit"):
        feedback.mark(run, request("c"))


def test_concurrent_marks_are_all_stored(fake_run: Run):
    run = fake_run().run
    threads = [
        threading.Thread(target=lambda k=k: [feedback.mark(run, request(f"{k} {n}")) for n in range(5)])
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(feedback.read(run)) == 30


def output_hashes(run: RunDir) -> dict[str, str]:
    """Return the hash of every file of stages and exports, except those with times."""
    timed = ("journal", "plan.json", "manifest.json", "report/", "feedback.jsonl", "export/")
    timed = (*timed, "5_evaluation/benchmarks.json")
    names = {str(f.relative_to(run.path)): f for f in sorted(run.path.rglob("*")) if f.is_file()}
    return {n: file_hash(f) for n, f in names.items() if not n.startswith(timed)}


def test_outputs_do_not_depend_on_marks(fake_run: Run, tmp_path: Path):
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
                feedback.mark(context.run, request(f"{unlikely} {stage}", f"{unlikely} so", note=f"{unlikely}!"))
            order.run_stage(context, stage)  # type: ignore[arg-type]
        inputs.append([order.inputs_hash(context, stage) for stage in stages])  # type: ignore[arg-type]
        dataset.write(context, "messages", "engrave", None, False)
        context.run.write_manifest()
    one, other = (c.run for c in contexts)
    assert output_hashes(one) == output_hashes(other) and len(output_hashes(one)) > 8
    assert inputs[0] == inputs[1]
    assert one.recipe.digest() == other.recipe.digest() and one.constitution.digest() == other.constitution.digest()
    assert marks.digest(one, "engrave") == marks.digest(other, "engrave")
    assert "feedback.jsonl" not in json.loads(other.manifest.read_text("utf-8"))["files"]
    for file in other.path.rglob("*"):
        if file.is_file() and file.name != "feedback.jsonl":
            assert unlikely.encode() not in file.read_bytes(), file
    # A finished stage stays finished.
    feedback.mark(other, request("one more"))
    assert all(other.done(s, h) for s, h in zip(stages, inputs[1], strict=True))
