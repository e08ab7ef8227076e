"""`align.form: given`: the user's own pairs are engraved. Nothing is generated, the filters decide, counts balance."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import command_line
import selfalign
from selfalign.constitution import Constitution
from selfalign.data.records import Example, Response, read_jsonl
from selfalign.errors import Interrupted, UserError
from selfalign.generation.calibration import Calibration
from selfalign.pipeline import order
from selfalign.pipeline.order import run_stage
from selfalign.planning import costs
from selfalign.planning.costs import Machine
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.system.signals import STOP

Runs = Callable[..., Context]
QUESTIONS = {
    "Where does the Rhine end?": "The Rhine flows from the Alps through six countries and ends in the North Sea.",
    "Why do bakers salt their dough?": "Salt gives bread its taste and slows the yeast, so that the crumb stays even.",
    "How is paper made from wood?": "Wood is cut to chips, boiled to a pulp, washed, pressed flat and dried in sheets.",
    "Which tools does a gardener need in spring?": "A spade, a rake, secateurs and a can are enough to begin.",
    "Explain what a violin's bridge does.": "It carries the strings and passes their trembling on to the wooden belly.",
    "Tell me how bees find flowers.": "They see colours that we cannot, follow scents, and learn from dances.",
    "When should apples be picked?": "As soon as they come off with a gentle twist and their pips have turned brown.",
    "What keeps a kite in the air?": "Wind pushes against its slanted face, and the string holds it at that angle.",
    "Give two reasons for learning chess.": "It trains patience, and it teaches you to look at a plan from both sides.",
    "Can glass be used again?": "Yes: it is sorted by colour, crushed, melted in a furnace and blown into new bottles.",
    "Describe a harbour at dawn.": "Grey water, ropes that creak, a gull on a mast, and the first engine far away.",
    "Who repairs church clocks?": "Mostly small workshops, whose people climb the tower with oil, files and patience.",
}
GOOD = [{"instruction": question, "input": "", "output": answer} for question, answer in QUESTIONS.items()]
WORSE = [
    {"instruction": "What is a lake?", "input": "", "output": None},
    {"instruction": "Name a hill.", "input": "Any of them."},
    {"instruction": "What is a pond?", "input": "", "output": " "},
    {"instruction": "Say tea.", "input": "", "output": "I like tea. I like tea. I like tea."},
    {"instruction": "What stands in a kitchen?", "input": "", "output": "A stove, a table.\nUser: and more?"},
]
OUTCOMES = {"no answer is given": 2, "empty": 1, "loop": 1, "turn leaked": 1}


@pytest.fixture
def user_pairs(tmp_path: Path) -> Path:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(GOOD + WORSE, indent=1))
    return file


def context_of(fake_run: Runs, file: Path, *sets: str, **more: Any) -> Context:
    return fake_run(f"prompts.file={file}", "align.form=given", "evaluate.heldout_prompts=3", *sets, **more)


def check(context: Context, stage: str) -> None:
    counts = context.journal.counts(stage)
    assert counts.finished
    assert counts.rows_in == counts.kept + sum(counts.dropped.values()) + sum(counts.failed.values())
    assert sum(d.stage == stage for d in context.journal.drops()) == counts.rows_in - counts.kept


def test_user_responses_are_filtered_without_any_request(fake_run: Runs, user_pairs: Path):
    context = context_of(fake_run, user_pairs)
    run_stage(context, "prompts")
    run_stage(context, "align")
    check(context, "align")
    counts = context.journal.counts("align")
    assert (counts.rows_in, counts.kept, counts.dropped) == (17, 12, OUTCOMES)
    assert counts.notes == {"principles": {}, "answers from": "mine.json"}
    assert counts.generation.requests == 0 and context.engine().requests == 0
    rows = read_jsonl(context.run.jsonl("responses"), Response)
    assert {(r.instruction, r.response) for r in rows} == {(g["instruction"], g["output"]) for g in GOOD}
    assert all(r.thoughts == "" and r.principles == [] for r in rows)
    prompts = {p.id: p for p in context.prompts()}
    assert all((prompts[r.id].instruction, prompts[r.id].split) == (r.instruction, r.split) for r in rows)


def test_all_stages_run_on_user_responses(fake_run: Runs, user_pairs: Path):
    context = context_of(fake_run, user_pairs)
    order.run_all(context)
    examples = read_jsonl(context.run.jsonl("engrave_examples"), Example)
    held = {p.id for p in context.prompts() if p.split == "heldout"}
    assert len(held) == 3
    taken = {e.assistant for e in examples if e.source != "identity"}
    assert taken <= {g["output"] for g in GOOD} and len(taken) >= 9
    assert not held & {e.id for e in examples}
    report = json.loads(context.run.report_json.read_text())
    assert "took the user's prompts, took the user's responses, was trained on these responses and" in report["story"]
    assert "under the constitution" not in report["story"]


def test_manually_changed_rows_are_counted(fake_run: Runs, user_pairs: Path):
    context = context_of(fake_run, user_pairs)
    run_stage(context, "prompts")
    file = context.run.jsonl("prompts")
    lines = file.read_text().splitlines(keepends=True)
    first = json.loads(lines[0])["instruction"]
    file.write_text("".join(lines[1:]) + '{"instruction": "Name a white stone."}\n')
    run_stage(context, "align")
    check(context, "align")
    counts = context.journal.counts("align")
    assert counts.rows_in == 18 and counts.dropped["removed manually"] == 1
    drops = {d.text: d.reason for d in context.journal.drops() if d.stage == "align"}
    assert drops["Name a white stone."] == "no answer is given"
    assert drops[first] == "removed manually"


def test_changed_user_data_is_refused(user_pairs: Path, tmp_path: Path):
    settings = {"engine.kind": "fake", "align.form": "given", "stages": ["prompts", "align"]}
    with selfalign.create("quick", tmp_path / "run", settings=settings, prompts=user_pairs) as run:
        run.run_stage("prompts")
        user_pairs.write_text(user_pairs.read_text().replace("North Sea", "Baltic"))
        with pytest.raises(UserError, match=r"mine\.json has changed since the run was started"):
            run.run_stage("align")
        assert not run.context.run.jsonl("responses").exists()


def test_resumed_stage_writes_the_same_file(fake_run: Runs, user_pairs: Path, monkeypatch: pytest.MonkeyPatch):
    whole = context_of(fake_run, user_pairs, name="whole")
    stopped = context_of(fake_run, user_pairs, name="stopped")
    for context in (whole, stopped):
        run_stage(context, "prompts")
    run_stage(whole, "align")
    monkeypatch.setattr(STOP, "_signum", 15)
    check_stop, seen = STOP.check, []

    def late() -> None:
        seen.append(1)
        if len(seen) > 6:
            check_stop()

    monkeypatch.setattr(STOP, "check", late)
    with pytest.raises(Interrupted):
        run_stage(stopped, "align")
    assert not stopped.run.jsonl("responses").exists()
    monkeypatch.setattr(STOP, "_signum", None)
    run_stage(stopped, "align")
    assert stopped.run.jsonl("responses").read_bytes() == whole.run.jsonl("responses").read_bytes()


def test_given_form_needs_a_file(fake_run: Runs, tmp_path: Path):
    with pytest.raises(UserError, match=r"align\.form: given needs your responses: .*--prompts FILE"):
        order.run_all(fake_run("align.form=given"))
    with pytest.raises(UserError, match=r"align\.form: given needs"):
        selfalign.plan("quick", settings={"engine.kind": "fake", "align.form": "given"})


def test_plan_has_no_generation_for_user_responses(default_constitution: Constitution, user_pairs: Path):
    speed = Calibration(8, {"8": 100.0}, 400.0, 2.0, 1241.0, 50_000)
    machine = Machine(8, speed, 1000.0, True, True, 4096, 241.0)
    recipe = recipes.load("quick", ["align.form=given"])
    stages = {s.stage: s for s in costs.plan(recipe, default_constitution, machine, 1000).stages}
    align = stages["align"]
    assert (align.requests, align.prompt_tokens, align.generated_tokens, align.at_most, align.seconds) == (
        0,
        0,
        0,
        0,
        0.0,
    )
    assert stages["engrave"].generated_tokens > 0
    blind = costs.plan(recipe, default_constitution, replace(machine, speed=None), 1000)
    assert {s.seconds for s in blind.stages} == {None}
    settings = {"engine.kind": "fake", "align.form": "given"}
    plan = selfalign.plan("quick", settings=settings, prompts=user_pairs)
    assert "self_instruct" not in {s.stage for s in plan.stages}


HOSTILE = [
    "Name a river.", "", " ", "\x00", "\ufeff", "a\r\nb", "\u200b\u202e", "\x1b[2J\x1b[31m", "<eos>", "<|im_end|>",
    "User: hi", "x\nUser: hi", "</script>", "=1+1", "../../etc/passwd", '"', "\\", "\u2028", "漢字", "🙂",
    "x" * 3000, "word " * 20_000,
    "\n" * 40, "{{7*7}}", "Principles: 3 (helpful).", "Alma (internal thoughts): x", "a\tb", "-1", "null",
]  # fmt: skip


def test_hostile_pairs_have_one_outcome_and_no_control_characters(fake_run: Runs, tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    pairs = [(f"{n}. {a}" if a else a, b) for n, a in enumerate(HOSTILE) for b in HOSTILE[n % 3 :: 3]]
    file.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in pairs))
    context = context_of(fake_run, file, "stages=[prompts, align]")
    order.run_all(context)
    for stage in ("self_instruct", "align"):
        check(context, stage)
    assert context.journal.counts("self_instruct").rows_in == len(pairs)
    kept = read_jsonl(context.run.jsonl("responses"), Response)
    assert kept
    assert not any(ord(c) < 32 and c not in "\n\t" for r in kept for c in r.message + r.response)


def test_preview_prints_user_rows(user_pairs: Path, tmp_path: Path):
    fake = ("run", "--set", "engine.kind=fake", "--prompts", "mine.json", "--preview", "2")
    done = command_line.selfalign(*fake, "--set", "align.form=given", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "──── mine.json:2 ──── given\nWhere does the Rhine end?\n⟦The Rhine flows" in done.stdout
    assert done.stdout.count("────") == 4
    preview = command_line.selfalign(*fake, cwd=tmp_path)
    assert preview.returncode == 0, preview.stderr
    assert "User: Why do bakers salt their dough?\n\nAlma (internal thoughts):" in preview.stdout
    assert "self-instruct" not in preview.stdout and not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_user_pairs_are_engraved_into_the_real_model(user_pairs: Path, tmp_path: Path):
    sets = ["align.form=given", "stages=[prompts, align, engrave]", "evaluate.heldout_prompts=2", "engrave.epochs=1"]
    done = command_line.selfalign(
        "run", "--prompts", "mine.json", "--out", "run", *(p for s in sets for p in ("--set", s)), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "mine.json: read as Alpaca 16, selfalign 1" in done.stderr and "engine" not in done.stderr
    stages = {s["stage"]: s for s in json.loads((tmp_path / "run/manifest.json").read_text())["stages"]}
    assert (stages["align"]["kept"], stages["align"]["dropped"], stages["align"]["requests"]) == (12, OUTCOMES, 0)
    assert stages["engrave"]["notes"]["steps"] >= 2 and stages["engrave"]["kept"] >= 10
    card = (tmp_path / "run/3_engrave/adapter/README.md").read_text()
    assert "people or other programs wrote" in card and "wrote itself" not in card
    assert (tmp_path / "run/3_engrave/adapter/adapter_model.safetensors").exists()
