"""The plan of a run: sizes from the recipe, times from the measured speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import selfalign
from selfalign.constitution import Constitution
from selfalign.generation.calibration import Calibration
from selfalign.planning import costs
from selfalign.planning.costs import Machine, Plan
from selfalign.run import recipe as recipes
from selfalign.run.recipe import Recipe

SPEED = Calibration(8, {"1": 40.0, "8": 100.0, "16": 90.0}, 400.0, 2.0, 1241.0, 50_000)
MACHINE = Machine(8, SPEED, 1000.0, True, True, 4096, 241.0)
SIZES = (
    "prompts.self_instruct.count=60", "prompts.red_team.count=60", "prompts.red_team.form=by_topic", "align.samples=1",
    "align.max_new_tokens=160", "verbose_cloning.prompts=64", "verbose_cloning.replay=0", "evaluate.heldout_prompts=40",
    "evaluate.tasks=[]",
)  # fmt: skip
"""One request for each row, so that the numbers of requests are exact."""


def load(*sets: str) -> Recipe:
    return recipes.load("quick", [*SIZES, *sets])


def stage_plans(
    recipe: Recipe, texts: Constitution, machine: Machine = MACHINE, own: int | None = None
) -> dict[str, Any]:
    return {s.stage: s for s in costs.plan(recipe, texts, machine, own).stages}


def test_every_stage_of_the_recipe_is_planned(default_constitution: Constitution):
    stages = stage_plans(load(), default_constitution)
    assert list(stages) == [
        "self_instruct",
        "topics",
        "red_team",
        "align",
        "engrave",
        "verbose_responses",
        "verbose_cloning",
        "evaluate",
    ]
    assert stages["align"].requests == 120
    assert stages["evaluate"].requests == 3 * 40
    assert stages["verbose_responses"].requests == 64 + len({p.question for p in default_constitution.identity})
    for stage in stages.values():
        assert 0 < stage.generated_tokens <= stage.at_most
        assert stage.seconds > 0


@pytest.mark.parametrize("count", [0, 60])
def test_types_that_all_have_weight_0_are_planned(default_constitution: Constitution, count: int):
    types = [t.model_copy(update={"weight": 0}) for t in default_constitution.question_types]
    texts = default_constitution.model_copy(update={"question_types": types})
    recipe = load("prompts.red_team.form=by_type", f"prompts.red_team.count={count}", "verbose_cloning.replay=1")
    assert stage_plans(recipe, texts)["verbose_responses"].requests >= 0


def test_sizes_follow_the_recipe(default_constitution: Constitution):
    small, large = (stage_plans(load(f"prompts.red_team.count={n}"), default_constitution) for n in (60, 600))
    assert large["align"].requests == small["align"].requests + 540
    assert large["align"].seconds > 3 * small["align"].seconds
    assert large["self_instruct"] == small["self_instruct"]


def test_questions_by_type_have_no_topics_stage(default_constitution: Constitution):
    assert "topics" not in stage_plans(load("prompts.red_team.form=by_type"), default_constitution)


def test_questions_by_type_are_planned_as_measured(default_constitution: Constitution):
    sets = ("prompts.red_team.form=by_type", "prompts.red_team.count=200", "prompts.red_team.max_new_tokens=160")
    plan = stage_plans(load(*sets), default_constitution)["red_team"]
    # The embedded model needed 419 requests for 200 prompts.
    assert plan.requests == pytest.approx(419, rel=0.1)
    assert plan.generated_tokens == pytest.approx(8_055, rel=0.1)
    assert plan.prompt_tokens + plan.cached_tokens == pytest.approx(73_110, rel=0.2)
    assert plan.cached_tokens > 2 * plan.prompt_tokens


def test_lists_without_topics_need_fewer_and_longer_requests(default_constitution: Constitution):
    kinds = [t.model_copy(update={"about": ""}) for t in default_constitution.question_types]
    lists = default_constitution.model_copy(update={"question_types": kinds})
    recipe = load("prompts.red_team.form=by_type")
    few, many = (stage_plans(recipe, texts)["red_team"] for texts in (lists, default_constitution))
    assert few.requests < many.requests / 2
    assert few.generated_tokens > many.generated_tokens


def test_several_samples_add_expected_responses(default_constitution: Constitution):
    plans = [stage_plans(load(f"align.samples={n}"), default_constitution)["align"] for n in (1, 2, 3, 16)]
    assert [p.requests for p in plans] == [120, 151, 158, 161]
    # 162 prompts of the embedded model took 214 responses with at most three samples.
    many = stage_plans(load("align.samples=3"), default_constitution, own=162)["align"]
    assert many.requests == pytest.approx(214, rel=0.02)
    ranked = stage_plans(load("align.samples=3", "align.rank=contrast"), default_constitution, own=162)["align"]
    assert ranked.requests == 3 * 162


def test_replay_trains_on_the_engraving_examples_again(default_constitution: Constitution):
    none, some, every = (
        stage_plans(load(f"verbose_cloning.replay={share}", "verbose_cloning.epochs=null"), default_constitution)
        for share in (0, 0.5, 1)
    )
    identity = len({p.question for p in default_constitution.identity})
    assert none["verbose_responses"].requests - identity >= some["verbose_responses"].requests
    assert some["verbose_responses"] == every["verbose_responses"]
    assert some["verbose_cloning"].generated_tokens < every["verbose_cloning"].generated_tokens
    assert every["verbose_cloning"].generated_tokens > every["engrave"].generated_tokens


def test_user_prompts_replace_stage_1(default_constitution: Constitution):
    stages = stage_plans(load(), default_constitution, own=1000)
    assert "self_instruct" not in stages
    assert stages["align"].requests == 1000


def test_copied_prefix_is_computed_once(default_constitution: Constitution):
    once = stage_plans(load(), default_constitution)["align"]
    per_slot = stage_plans(load(), default_constitution, replace(MACHINE, reads_prefix_once=False))["align"]
    assert per_slot.prompt_tokens - once.prompt_tokens == once.cached_tokens - per_slot.cached_tokens > 7 * 650
    # The total is the same with both kinds of engines.
    assert once.prompt_tokens + once.cached_tokens == per_slot.prompt_tokens + per_slot.cached_tokens


def test_paper_form_has_its_own_limits(default_constitution: Constitution):
    guided, paper = (stage_plans(load(f"align.form={f}"), default_constitution)["align"] for f in ("guided", "paper"))
    assert guided.at_most == 120 * (160 + 80 + 64)
    assert paper.at_most == 120 * 160
    assert paper.cached_tokens < guided.cached_tokens


def test_no_times_without_a_measured_speed(default_constitution: Constitution):
    plan = costs.plan(load(), default_constitution, replace(MACHINE, speed=None))
    assert plan.seconds is None
    assert plan.memory_mb is None
    assert plan.disk_mb > 0


def test_memory_grows_with_slots_and_context(default_constitution: Constitution):
    sets = "stages=[prompts, align]"
    few, many = (costs.plan(load(sets), default_constitution, replace(MACHINE, slots=n)) for n in (4, 32))
    assert many.memory_mb is not None and few.memory_mb is not None
    assert many.memory_mb - few.memory_mb == pytest.approx(28 * 4096 * 1000 / 50_000)


def test_conversion_costs_time_and_disk(default_constitution: Constitution):
    there = costs.plan(load(), default_constitution, MACHINE)
    new = costs.plan(load(), default_constitution, replace(MACHINE, converted=False))
    assert (there.cache_mb, new.cache_mb) == (0.0, 1000.0)
    assert new.seconds is not None and there.seconds is not None and new.seconds > there.seconds


def test_plan_is_written_and_read(default_constitution: Constitution, tmp_path: Path):
    plan = costs.plan(load(), default_constitution, MACHINE)
    costs.write(tmp_path / "plan.json", plan)
    assert costs.read(tmp_path / "plan.json") == plan
    assert costs.read(tmp_path / "none.json") is None
    assert json.loads((tmp_path / "plan.json").read_text())["slots"] == 8


def test_fake_engine_and_server_have_no_times(tmp_path: Path):
    plan: Plan = selfalign.plan("quick", settings={"engine.kind": "fake"}, limit=5)
    assert {s.seconds for s in plan.stages} == {None}
    mine = tmp_path / "mine.txt"
    mine.write_text("One question?\n\nAnother question?\n")
    server = {"engine.url": "http://127.0.0.1:1", "align.samples": 1}
    stages = {s.stage: s for s in selfalign.plan("quick", settings=server, prompts=mine).stages}
    assert stages["align"].requests == 2
    assert stages["align"].seconds is None


def test_rate_uses_the_nearest_measured_slots():
    assert SPEED.rate(3) == 40.0
    assert SPEED.rate(12) == SPEED.rate(8) == SPEED.tokens_per_second == 100.0
    assert SPEED.rate(64) == 90.0
