"""The planner's constants equal those fitted by its benchmark, and its plans fit an unseen run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from selfalign.planning import capacity


@pytest.fixture(scope="module")
def planner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planner", Path(__file__).parents[2] / "benchmarks/planner.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_constants_equal_the_fit_on_quick(planner: ModuleType):
    runs = [planner.load("quick"), planner.load("again")]
    fitted = planner.fit(runs[0]) | {"throughput_factor": planner.throughput_factor(runs)}
    used = planner.constants()
    assert {key: used[key] for key in fitted} == pytest.approx(fitted, rel=0.01)
    # This run has no behaviour, and questions by topic.
    assert set(used) - set(fitted) == {"behaviour", "typed_question", "listed_questions"}
    entry = planner.load("behaviour")["stages"]["behaviour"]
    assert used["behaviour"] == pytest.approx(entry["generated"] / entry["requests"], rel=0.01)


@pytest.mark.parametrize("name", ["quick", "again", "behaviour", "standard"])
def test_records_keep_the_recipe_of_their_run(planner: ModuleType, name: str):
    run = planner.load(name)
    recipe, stages = planner.recipe_of(run), run["stages"]
    prompts = recipe.prompts.self_instruct.count + recipe.prompts.red_team.count
    assert prompts == stages["align"]["requests"]
    assert recipe.prompts.red_team.form == "by_topic"
    if "evaluate" in stages:
        assert stages["evaluate"]["requests"] == 3 * recipe.evaluate.heldout_prompts


def test_tokens_of_an_unseen_run_are_within_20_percent(planner: ModuleType):
    run = planner.load("standard")
    plans = planner.planned(run)
    assert len(plans) == 9
    for stage, plan in plans.items():
        entry = run["stages"][stage]
        tokens = entry["generated"] if plan.requests else entry["training_tokens"]
        if stage == "behaviour":  # the recorded run asked fewer scenarios
            tokens *= plan.requests / entry["requests"]
        assert plan.generated_tokens == pytest.approx(tokens, rel=0.2), stage


def test_public_throughputs_are_within_the_range(planner: ModuleType):
    ratios = [ours / row["published"] for row, ours in planner.public() if not row["seen"]]
    inside = sum(1 / capacity.SPEED_RANGE < ratio < capacity.SPEED_RANGE for ratio in ratios)
    assert len(ratios) == 48 and inside >= 46
    assert all(0.5 < ratio < 2 for ratio in ratios)
