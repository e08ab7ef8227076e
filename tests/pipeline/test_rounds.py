"""Rounds of stage 1: resuming, steering, and stopping without novel prompts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign.data.records import Prompt, read_jsonl
from selfalign.errors import Interrupted, TooManyFailed
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import default_script
from selfalign.pipeline import order, step1a_self_instruct
from selfalign.quality.novelty import NoveltyIndex
from selfalign.run.context import Context
from selfalign.system.signals import STOP

Runs = Callable[..., Context]
SIZES = (
    "prompts.self_instruct.count=60",
    "prompts.self_instruct.requests_per_round=4",
    "prompts.red_team.count=30",
    "prompts.red_team.topic_rounds=1",
    "prompts.steering.own_seeds=0.4",
)
LEDGERS = ("self_instruct", "topics", "red_team")


def files(context: Context) -> dict[str, bytes]:
    return {name: context.run.jsonl(name).read_bytes() for name in (*LEDGERS, "prompts")}


def ledger(context: Context, stage: str) -> list[tuple[object, ...]]:
    query = "SELECT id, position, state, reason, text FROM rows WHERE stage = ? ORDER BY position"
    return list(context.journal._db.execute(query, (stage,)))


@pytest.mark.parametrize("number", [1, 3, 5])
def test_resumed_stage_keeps_finished_rounds(
    fake_run: Runs, stop_after: Callable[[int], None], number: int, monkeypatch: pytest.MonkeyPatch
):
    whole = fake_run(*SIZES, name="whole")
    order.run_stage(whole, "prompts")
    stop_after(number)
    context = fake_run(*SIZES, name="stopped")
    with pytest.raises(Interrupted):
        order.run_stage(context, "prompts")
    STOP.clear()
    decided = sum(len(ledger(context, s)) for s in LEDGERS)
    context.journal.close()
    again = fake_run(*SIZES, name="stopped")
    looked_at: list[str] = []
    nearest_all = NoveltyIndex.nearest_all

    def watched(self: NoveltyIndex, texts: list[str], enter: bool = False) -> object:
        looked_at.extend(texts if enter else [])
        return nearest_all(self, texts, enter)

    monkeypatch.setattr(NoveltyIndex, "nearest_all", watched)
    order.run_stage(again, "prompts")
    assert files(again) == files(whole)
    assert decided > 0
    for stage in LEDGERS:
        assert ledger(again, stage) == ledger(whole, stage)
    # What a finished round decided is not decided again.
    kept = [p.instruction for p in read_jsonl(again.run.jsonl("self_instruct"), Prompt)]
    first_round = again.journal.rounds("self_instruct", rounds_inputs(again))[0]["accepted"]
    assert not {p["instruction"] for p in first_round} & set(looked_at)
    assert {p["instruction"] for p in first_round} <= set(kept)


def rounds_inputs(context: Context) -> str:
    return str(context.journal._db.execute("SELECT inputs FROM rounds WHERE stage = 'self_instruct'").fetchone()[0])


def test_round_with_failed_requests_is_decided_again(fake_run: Runs):
    probe = fake_run(*SIZES, name="probe")
    step1a_self_instruct.run(probe)
    shown_later = read_jsonl(probe.run.jsonl("self_instruct"), Prompt)[2].instruction
    context = fake_run(*SIZES, fail=shown_later)
    with pytest.raises(TooManyFailed):
        order.run_stage(context, "prompts")
    closed = len(context.journal.rounds("self_instruct", rounds_inputs(context)))
    assert 1 <= closed < context.journal.counts("self_instruct").notes["rounds"]
    context.journal.close()
    whole, again = fake_run(*SIZES, name="whole"), fake_run(*SIZES)
    for run in (whole, again):
        order.run_stage(run, "prompts")
    assert files(again) == files(whole)
    assert again.journal.counts("self_instruct").failed == {}


def test_stage_verb_decides_all_rounds_again(fake_run: Runs):
    context = fake_run(*SIZES)
    order.run_stage(context, "prompts")
    before, requests = files(context), context.engine().requests  # type: ignore[attr-defined]
    context.journal._db.execute("UPDATE rounds SET result = json_set(result, '$.accepted', json('[]'))")
    order.run_stage(context, "prompts", again=True)
    assert files(context) == before
    assert context.engine().requests == requests  # type: ignore[attr-defined]


def test_other_stage_verb_keeps_the_rounds(fake_run: Runs, stop_after: Callable[[int], None]):
    stop_after(2)
    context = fake_run(*SIZES)
    with pytest.raises(Interrupted):
        order.run_stage(context, "prompts")
    STOP.clear()
    inputs = rounds_inputs(context)
    order.run_stage(context, "report", again=True)
    assert len(context.journal.rounds("self_instruct", inputs)) == 2


def few_words(prompt: str, step: Step, rng: random.Random) -> str:
    """Tasks of so few words that they are soon used up."""
    if not prompt.rstrip().endswith("Instruction:"):
        return default_script(prompt, step, rng)
    number = prompt.rstrip().rsplit("\n", 1)[-1].split(".")[0]
    blocks = []
    for at in range(5):
        words = " ".join(rng.choices(["red", "green", "blue"], k=6))
        head = "" if at == 0 else f"{number}. Instruction:"
        blocks.append(f"{head} Sort {words}.\n{number}. Input:\n<noinput>\n")
    return "###\n".join(blocks) + "###\n"


def test_stage_stops_without_novel_candidates(fake_run: Runs, capsys: pytest.CaptureFixture[str]):
    context = fake_run(*SIZES, "prompts.self_instruct.requests_per_round=20", script=few_words)
    context.screen.verbosity = 0
    step1a_self_instruct.run(context)
    counts = context.journal.counts("self_instruct")
    assert "were new, fewer than 5%" in counts.notes["stopped"]
    assert 0 < counts.kept < 60
    assert counts.notes["rounds"] < 30
    assert f"only {counts.kept} of 60 prompts: of the last" in capsys.readouterr().err


def test_stage_stops_if_the_model_repeats_itself(fake_run: Runs):
    def same(prompt: str, step: Step, rng: random.Random) -> str:
        if not prompt.rstrip().endswith("Instruction:"):
            return default_script(prompt, step, rng)
        number = prompt.rstrip().rsplit("\n", 1)[-1].split(".")[0]
        return (
            f" {rng.choice(['Name a river in the north', 'Sort all of these words'])}.\n{number}. Input:\n<noinput>\n"
        )

    context = fake_run(*SIZES, "prompts.self_instruct.requests_per_round=20", script=same)
    step1a_self_instruct.run(context)
    notes = context.journal.counts("self_instruct").notes
    assert "were new, fewer than 5%" in notes["stopped"]
    assert notes["rounds"] <= 15


def test_stage_stops_without_usable_candidates(fake_run: Runs):
    context = fake_run(*SIZES, "prompts.self_instruct.requests_per_round=50", "filters.prompts.min_words=100")
    step1a_self_instruct.run(context)
    notes = context.journal.counts("self_instruct").notes
    assert notes["rounds"] <= 6
    assert "candidates was accepted" in notes["stopped"]


def test_paper_steering_continues_to_the_last_round(fake_run: Runs):
    sets = ("prompts.steering.least_novel=0", "prompts.self_instruct.max_rounds=40")
    context = fake_run(*SIZES, *sets, "prompts.self_instruct.requests_per_round=20", script=few_words)
    step1a_self_instruct.run(context)
    notes = context.journal.counts("self_instruct").notes
    assert notes["rounds"] == 40
    assert notes["stopped"] == "the recipe allows 40 rounds"


@pytest.mark.parametrize(("fraction", "own"), [(0.0, 0), (0.2, 1), (0.6, 3), (1.0, 5)])
def test_accepted_prompts_are_shown_as_seeds(fake_run: Runs, fraction: float, own: int):
    prompts: list[str] = []

    def watched(prompt: str, step: Step, rng: random.Random) -> str:
        prompts.append(prompt)
        return default_script(prompt, step, rng)

    context = fake_run(*SIZES, f"prompts.steering.own_seeds={fraction}", script=watched)
    step1a_self_instruct.run(context)
    accepted = {p.instruction for p in read_jsonl(context.run.jsonl("self_instruct"), Prompt)}
    shown = [sum(text in prompt for text in accepted) for prompt in prompts]
    assert shown[:4] == [0] * 4  # in the first round there are none
    assert set(shown[4:]) == {own}


def test_red_teaming_prefers_types_with_fewest_prompts(fake_run: Runs):
    types = [t.name for t in fake_run(name="names").run.constitution.question_types]
    poor = sorted(types)[:5]

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        last = prompt.rstrip().rsplit("\n", 1)[-1]
        if last.endswith(", question:") and any(f"kind: {name}," in last for name in poor) and rng.random() < 0.6:
            return " No.\n"
        return default_script(prompt, step, rng)

    spread = {}
    for rebalance in (True, False):
        sets = ("prompts.red_team.count=100", f"prompts.steering.rebalance={rebalance}")
        context = fake_run(*SIZES, *sets, name=str(rebalance), script=script)
        order.run_stage(context, "prompts")
        number = Counter(p.question_type for p in read_jsonl(context.run.jsonl("red_team"), Prompt))
        spread[rebalance] = max(number.values()) - min(number[name] for name in types)
    assert spread[True] <= 3 < spread[False]


def test_barren_type_gets_at_most_twice_its_fraction(fake_run: Runs):
    barren = fake_run(name="names").run.constitution.question_types[0].name

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        last = prompt.rstrip().rsplit("\n", 1)[-1]
        if last.endswith(", question:") and f"kind: {barren}," in last:
            return " No.\n"
        return default_script(prompt, step, rng)

    context = fake_run(*SIZES, "prompts.red_team.count=60", script=script)
    order.run_stage(context, "prompts")
    counts = context.journal.counts("red_team")
    assert counts.kept == 60
    assert counts.dropped["too short"] <= counts.notes["rounds"] * 2 + 2 * 60 / 20


def test_mean_similarity_is_stored_on_request(fake_run: Runs, tmp_path: Path):
    context = fake_run(*SIZES, "prompts.mean_similarity=true")
    order.run_stage(context, "prompts")
    prompts = read_jsonl(context.run.jsonl("self_instruct"), Prompt)
    assert all(0 < p.mean_similarity < 0.7 for p in prompts)  # type: ignore[operator]
    plain = fake_run(*SIZES, name="plain")
    order.run_stage(plain, "prompts")
    assert '"mean_similarity"' not in plain.run.jsonl("prompts").read_text()
    assert [p.id for p in read_jsonl(plain.run.jsonl("self_instruct"), Prompt)] == [p.id for p in prompts]
