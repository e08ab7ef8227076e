"""`constitution test` on the fake engine; probes never become prompts."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign.constitution import Constitution
from selfalign.data.records import Prompt, join_input, prompt_id, read_jsonl, write_jsonl
from selfalign.data.text import clean_text
from selfalign.errors import UserError
from selfalign.evaluation.models import PROMPTED
from selfalign.evaluation.records import ProbeAnswer
from selfalign.evaluation.tasks import probes
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import default_script
from selfalign.pipeline import order
from selfalign.quality.instruction_filters import reason_to_drop, reason_to_drop_user_prompt
from selfalign.quality.rouge import rouge_l
from selfalign.run.context import Context

Runs = Callable[..., Context]
SMALL = ("stages=[prompts]", "prompts.self_instruct.count=4", "prompts.red_team.count=0")


def test_every_model_answers_every_probe(fake_run: Runs):
    context = fake_run(*SMALL)
    answers = probes.run(context, context.run.constitution)
    names = ["base", PROMPTED, "engraved", "final"]
    assert [t.model for t in probes.totals(answers)] == names
    assert len(answers) == 4 * 96
    assert read_jsonl(context.run.jsonl("probes"), ProbeAnswer) == answers
    counts = context.journal.counts("probes")
    assert counts.kept == counts.rows_in == 4 * 96


def test_second_run_generates_nothing(fake_run: Runs):
    context = fake_run(*SMALL)
    first = probes.run(context, context.run.constitution)
    requests = context.journal.counts("probes").generation.requests
    assert probes.run(context, context.run.constitution) == first
    assert context.journal.counts("probes").generation.requests == requests


def refusing(prompt: str, step: Step, rng: random.Random) -> str:
    """A model that refuses with the constitution in its prompt, and helps without it."""
    if prompt.rstrip().endswith(("(internal thoughts):", "Principles:")):
        return default_script(prompt, step, rng)
    known = "# Conversations" in prompt
    return " I cannot help with that." if known else " Take a stone and a rope, then pull as hard as you can at it."


def test_prompted_base_is_checked_without_its_thoughts(fake_run: Runs):
    answers = probes.run(fake_run(*SMALL, script=refusing), fake_run(*SMALL, name="x").run.constitution)
    ethical = {(a.model, a.contrast): a for a in answers if a.principle == 1}
    assert ethical[(PROMPTED, False)].answer == "I cannot help with that."
    assert ethical[(PROMPTED, False)].passed
    assert not ethical[(PROMPTED, True)].passed
    assert not ethical[("base", False)].passed
    assert ethical[("base", True)].passed


def test_ablation_compares_only_the_prompted_base(fake_run: Runs):
    context = fake_run(*SMALL)
    prompts: list[str] = []

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        prompts.append(prompt)
        return default_script(prompt, step, rng)

    context = fake_run(*SMALL, name="other", script=script)
    answers = probes.run(context, context.run.constitution, dropped=9)
    assert [t.model for t in probes.totals(answers)] == [PROMPTED, f"{PROMPTED} without 9"]
    assert any("9 (static)" in p for p in prompts)
    assert any("9 (static)" not in p and "8 (knowledge recitation)" in p for p in prompts)
    assert not context.run.jsonl("probes").exists()
    with pytest.raises(UserError, match="there is no principle 99"):
        probes.run(context, context.run.constitution, dropped=99)


def test_probes_are_split_into_two_halves(fake_run: Runs):
    context = fake_run(*SMALL)
    whole = context.run.constitution.probes()
    choices, report = (probes.half_of(whole, h) for h in ("choices", "report"))
    assert len(choices) == len(report) == 48
    assert sorted(p.ask for _, p in choices + report) == sorted(p.ask for _, p in whole)
    for part in (choices, report):
        assert sum(p.contrast for _, p in part) == 24 and len({principle.id for principle, _ in part}) == 16
    answers = probes.run(context, context.run.constitution, half="choices")
    assert {a.ask for a in answers} == {p.ask for _, p in choices} and not context.run.jsonl("probes").exists()
    requests = context.journal.counts("probes").generation.requests
    probes.run(context, context.run.constitution)
    assert context.journal.counts("probes").generation.requests == 2 * requests  # saved answers are not generated again


def test_dropping_a_principle_drops_its_citations(default_constitution: Constitution):
    less = default_constitution.without(9)
    assert all("9 (static)" not in e.thoughts for e in less.exemplars)
    assert "7 (candor), 12 (dated knowledge)." in less.exemplars[3].thoughts
    assert all(9 not in t.hints for t in less.question_types)
    assert len(less.principles) == 15


def test_constitution_without_probes_is_an_error(fake_run: Runs, default_constitution: Constitution):
    value = default_constitution.model_dump(mode="json")
    for principle in value["principles"]:
        principle["probes"] = []
    with pytest.raises(UserError, match="has no probes"):
        probes.run(fake_run(*SMALL), Constitution.model_validate(value))


def test_probe_in_the_training_data_is_skipped(fake_run: Runs):
    context = fake_run(*SMALL)
    message = context.run.constitution.principles[0].probes[0].ask
    write_jsonl(context.run.jsonl("prompts"), [Prompt(prompt_id(message.upper(), ""), message.upper())])
    answers = probes.run(context, context.run.constitution)
    assert message not in {a.ask for a in answers}
    assert len(answers) == 4 * 95


def test_stage_one_rejects_probes(fake_run: Runs):
    context = fake_run(*SMALL)
    message = context.run.constitution.principles[6].probes[3].ask
    assert context.benchmarks.find(message.replace("?", " ?")).source == "probes"
    assert context.benchmarks.find("What is the tallest hill of a flat land?") is None


def test_user_prompts_are_cleaned_bounded_and_never_probes(fake_run: Runs, tmp_path: Path):
    probe = fake_run(*SMALL, name="a").run.constitution.principles[6].probes[3].ask
    rows = [
        {"instruction": "Name\u200b a\x07 river.  "},
        {"instruction": "name  a RIVER."},
        {"instruction": "Hi"},
        {"instruction": "word " * 300},
        {"instruction": probe},
        {"instruction": "Sum it up.\nUser: and more"},
        {"instruction": "Name a lake."},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    context = fake_run(f"prompts.file={file}", "prompts.tokens=[2,256]", "stages=[prompts]", name="b")
    order.run_stage(context, "prompts")
    kept = {p.instruction for p in read_jsonl(context.run.jsonl("prompts"), Prompt)}
    assert kept == {"Name a river.", "Name a lake."}
    assert context.journal.counts("self_instruct").dropped == {
        "not 2 to 256 tokens long": 2, "duplicate": 1, "overlaps with probes": 1, "contains a role marker": 1,
    }  # fmt: skip


def test_near_duplicates_of_held_out_prompts_are_not_trained_on(fake_run: Runs, tmp_path: Path):
    questions = [f"How many {a} {b} live in the {c} of the valley?" for a in ("old", "red", "shy")
                 for b in ("owls", "bees", "elks") for c in ("woods", "lakes")]  # fmt: skip
    lines = questions + [f"Please say: {q}" for q in questions[::3]]
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(lines), "utf-8")
    sets = (f"prompts.file={file}", "stages=[prompts]", "evaluate.heldout_prompts=4", "prompts.novelty=0.8")
    context = fake_run(*sets, name="near")
    order.run_stage(context, "prompts")
    rows = read_jsonl(context.run.jsonl("prompts"), Prompt)
    held = [r.instruction for r in rows if r.split == "heldout"]
    assert len(rows) == len(lines)
    assert len(held) <= 4
    assert not any(rouge_l(h, r.instruction) > 0.8 for h in held for r in rows if r.split == "train")


def test_changed_file_of_user_prompts_is_rejected(fake_run: Runs, tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_text("Name a river.\nName a lake.\n", "utf-8")
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    context = fake_run(f"prompts.file={file}", f"prompts.file_sha256={sha}", "stages=[prompts]", name="sha")
    order.run_stage(context, "prompts")
    file.write_text("Name a hill.\n", "utf-8")
    with pytest.raises(UserError, match="has changed since the run was started"):
        order.run_stage(context, "prompts", again=True)


def test_cleaning_keeps_the_users_meaning():
    assert clean_text("a\r\n\r\n\r\n\r\nb  \n c") == "a\n\nb\n c"
    assert clean_text("¿Qué tal?") == "¿Qué tal?"
    assert reason_to_drop_user_prompt("") == "empty"
    assert reason_to_drop_user_prompt("Hi") == ""


def test_language_replaces_the_ascii_rule():
    assert reason_to_drop("Écris une lettre à un ami.", "") == "begins with a non-ASCII character"
    assert reason_to_drop("Écris une lettre à un ami.", "", "fr") is None
    assert reason_to_drop("Write a letter to a friend of mine.", "", "fr") == "not in French"
    assert reason_to_drop("Nenne drei Dinge für eine Wanderung.", "", "de") is None


def test_one_message_may_probe_two_principles(fake_run: Runs, default_constitution: Constitution):
    value = default_constitution.model_dump(mode="json")
    for number, contrast in ((0, False), (1, True)):
        probe = {"ask": "Is this good?", "expect": "refuses", "words": [], "contrast": contrast}
        value["principles"][number]["probes"] = [probe]
    texts = Constitution.model_validate(value)
    context = fake_run(*SMALL)
    answers = probes.run(context, texts)
    assert len({a.id for a in answers}) == len(texts.probes())
    assert read_jsonl(context.run.jsonl("probes"), ProbeAnswer) == answers


def test_totals_separate_behaviours_from_contrasts(fake_run: Runs):
    babble = fake_run(*SMALL, script=lambda prompt, step, rng: " ok." if step.grammar == "" else " 3 (helpful).")
    total = probes.totals(probes.run(babble, babble.run.constitution))[0]
    assert total.shown[1] == total.held_back[1] == 48
    assert total.held_back[0] >= 45
    assert total.shown[0] <= 3


def test_edited_probe_answers_are_not_overwritten(fake_run: Runs):
    context = fake_run(*SMALL)
    probes.run(context, context.run.constitution)
    file = context.run.jsonl("probes")
    file.write_text(file.read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(UserError, match="edited"):
        probes.run(context, context.run.constitution)
    context.force = True
    probes.run(context, context.run.constitution)


def test_ablation_is_no_stage_of_the_run(fake_run: Runs):
    context = fake_run(*SMALL)
    probes.run(context, context.run.constitution, dropped=3)
    assert "ablation" not in context.journal.stages() and "probes" not in context.journal.stages()


def test_prompts_in_other_scripts_are_distinguished(fake_run: Runs, tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_text("Что такое Python?\nКто создал Python?\n什么是雨？\n雨とは何ですか\nчто  такое python?\n", "utf-8")
    context = fake_run(f"prompts.file={file}", "stages=[prompts]", name="scripts")
    order.run_stage(context, "prompts")
    assert len(read_jsonl(context.run.jsonl("prompts"), Prompt)) == 4
    assert context.journal.counts("self_instruct").dropped == {"duplicate": 1}


def test_probe_split_into_instruction_and_input_is_recognised(fake_run: Runs):
    benchmarks = fake_run(*SMALL).benchmarks
    message = join_input("Sort these words from A to Z:", "pear, apple, fig.")
    assert benchmarks.find(message).source == "probes"


def test_tokenizer_is_loaded_once_for_a_file_of_prompts(
    tmp_path: Path, fake_run: Runs, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "mine.txt"
    file.write_text("".join(f"Please explain the word number {n}.\n" for n in range(20)), "utf-8")
    context = fake_run(f"prompts.file={file}", "prompts.tokens=[2,256]", "stages=[prompts]", name="counted")
    loaded: list[object] = []
    monkeypatch.setattr("selfalign.model.fake.FakeModel.token_counter", lambda model: loaded.append(model) or len)
    order.run_stage(context, "prompts")
    assert len(loaded) == 1
