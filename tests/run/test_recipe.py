"""The recipe: shipped ones, --set, --limit, differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import selfalign
from selfalign.errors import UserError
from selfalign.quality.filter_settings import FilterSettings
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.recipe import SHIPPED, STAGES, differences, load, upgrade
from selfalign.system import strict_yaml


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_have_all_stages(name: str):
    recipe = load(name)
    assert recipe.stages == [s for s in STAGES if s != "verbose_cloning" or name != "two-stage"]
    assert recipe.model == ("" if name == "single-gpu" else "embedded")
    assert recipe.constitution == ("two-stage" if name == "two-stage" else "default")
    assert recipe.seed == 0


def test_quick_has_its_documented_values():
    recipe = load("quick")
    one, two, align, verbose_cloning = (
        recipe.prompts.self_instruct,
        recipe.prompts.red_team,
        recipe.align,
        recipe.verbose_cloning,
    )
    assert (one.count, one.seeds_per_request, one.temperature, one.top_p, one.max_new_tokens) == (20, 5, 0.9, 0.95, 384)
    assert (two.form, two.count, two.temperature, two.top_p, two.max_new_tokens) == ("by_type", 168, 0.7, 0.95, 80)
    assert (align.form, align.temperature, align.top_p, align.max_new_tokens) == ("guided", 0.5, 0.95, 128)
    assert (align.samples, align.exemplars) == (3, "by_type")
    assert align.hints is False
    assert recipe.filters.base == "default"
    assert (recipe.engrave.rank, recipe.engrave.alpha, recipe.engrave.dropout) == (16, 16, 0.05)
    assert (len(recipe.engrave.targets), recipe.engrave.identity_repeats) == (7, 3)
    assert (recipe.engrave.exemplar_repeats, recipe.engrave.seed_repeats) == (2, 1)
    assert (recipe.engrave.learning_rate, recipe.engrave.epochs) == (4.0e-4, 2)
    assert (
        verbose_cloning.prompts,
        verbose_cloning.temperature,
        verbose_cloning.top_p,
        verbose_cloning.max_new_tokens,
    ) == (30, 0.7, 0.9, 160)
    assert (verbose_cloning.start, verbose_cloning.replay, verbose_cloning.epochs) == ("engraved", 0.5, 1)
    assert recipe.evaluate.heldout_prompts == 16
    assert recipe.engine.kind == "auto"


def test_paper_has_the_values_of_the_paper():
    """Appendix D of arXiv 2305.03047; where the released scripts differ, the paper."""
    recipe = load("paper")
    one, two, align, train, verbose_cloning = (
        recipe.prompts.self_instruct, recipe.prompts.red_team, recipe.align, recipe.engrave, recipe.verbose_cloning
    )  # fmt: skip
    assert (one.count, two.count, one.count + two.count) == (267_597, 99_121, 366_718)
    assert (one.seeds_per_request, two.topic_rounds, two.topic_requests) == (5, 5, None)
    # Every sampling of stage 1 is the same one.
    assert {(part.temperature, part.top_p, part.max_new_tokens) for part in (one, two)} == {(1.0, 0.98, 384)}
    assert recipe.prompts.novelty == 0.7
    assert recipe.prompts.steering.model_dump() == {"own_seeds": 0.0, "rebalance": False, "least_novel": 0.0}
    assert (align.form, align.temperature, align.top_p, align.max_new_tokens) == ("paper", 0.5, 0.9, 256)
    assert (align.repetition, align.hints) == (0.0, False)
    assert (
        verbose_cloning.prompts,
        verbose_cloning.temperature,
        verbose_cloning.top_p,
        verbose_cloning.max_new_tokens,
    ) == (None, 0.3, 0.7, 512)
    assert verbose_cloning.end_penalty == 0.0
    assert recipe.filters == FilterSettings.model_validate("paper")
    assert (train.rank, train.alpha, train.dropout) == (16, 16, 0.05)
    assert train.targets == ["q_proj", "k_proj", "v_proj", "o_proj"]
    for stage, max_length in (("engrave", 512), ("verbose_cloning", 768)):
        config = recipe.training(stage)
        assert (config.learning_rate, config.epochs, config.batch_size) == (4e-4, 1, 768)
        assert (config.warmup_steps, config.schedule, config.max_length) == (100, "linear", max_length)
        assert config.gradient_checkpointing and config.elsewhere
    assert recipe.evaluate.heldout_prompts == 2000
    assert recipe.engine.top_k == 0


def test_two_stage_differs_from_its_source_as_documented():
    recipe = load("two-stage")
    align, train = recipe.align, recipe.engrave
    assert (align.form, align.temperature, align.repetition, recipe.engine.top_k) == ("guided", 0.5, 1.0, 1000)
    assert (train.rank, train.dropout, train.schedule, train.warmup_steps) == (16, 0.05, "linear", 5)
    assert (train.batch_size, train.epochs, train.max_grad_norm, train.max_length) == (2, 2, 1.0, 1024)
    # The same as in the source:
    assert (align.top_p, align.max_new_tokens, recipe.prompts.tokens) == (0.95, 512, [2, 256])
    assert (train.alpha, train.learning_rate, len(train.targets)) == (16, 1e-4, 7)
    changes = {"base": "paper", "responses": {"clause_ends": "\n.?!;:,`", "sorry": False}}
    assert FilterSettings.model_validate(changes).responses.min_chars == 149


def test_paper_rows_give_the_steps_of_the_paper():
    """258,878 kept pairs and 910 about identity, 2,000 of them held out: about 335 steps; 358,777: about 465."""
    batch = load("paper").engrave.batch_size
    assert round((258_878 + 910 - 2000) / batch) == 336
    assert round((358_777 - 2000) / batch) == 465


def test_longest_paper_request_fits_the_context():
    recipe = load("paper")
    # 1,045 words of rules and exemplars are about 1,800 tokens.
    assert 1800 + 256 + recipe.align.max_new_tokens <= recipe.engine.context


@pytest.mark.parametrize("verb", [selfalign.plan, selfalign.create])
def test_recipe_without_model_is_one_error_line(verb: Callable[..., object], tmp_path: Path):
    with pytest.raises(UserError, match="recipe single-gpu names no model: set one with --set model=") as error:
        verb("single-gpu", **({"out": tmp_path / "run"} if verb is selfalign.create else {}))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    assert load("single-gpu", ["model=ORG/BASE"]).model == "ORG/BASE"


def test_sizes_grow_from_quick_to_paper():
    counts = [load(n).prompts.self_instruct.count for n in ("quick", "standard", "paper")]
    assert counts == sorted(counts)
    assert len(set(counts)) == 3


def test_set_changes_values_at_every_depth():
    recipe = load("quick", ["seed=7", "align.temperature=0.7", "prompts.self_instruct.count=3", "model=/a/b=c.gguf"])
    assert recipe.seed == 7
    assert recipe.align.temperature == 0.7
    assert recipe.prompts.self_instruct.count == 3
    assert recipe.model == "/a/b=c.gguf"


def test_set_accepts_lists_and_null():
    recipe = load("quick", ["stages=[prompts, align]", "engrave.targets=[q_proj]", "verbose_cloning.prompts=null"])
    assert recipe.stages == ["prompts", "align"]
    assert recipe.engrave.targets == ["q_proj"]
    assert recipe.verbose_cloning.prompts is None


def test_set_adds_a_missing_group():
    assert load("quick", ["evaluate.temperature=0.1"]).evaluate.temperature == 0.1
    assert load("quick", ["prompts.novelty=0.5"]).prompts.novelty == 0.5


def test_last_of_two_settings_wins():
    assert load("quick", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("setting", ["seed", "=1", "align..temperature=1", ".seed=1", "seed.=1", ""])
def test_setting_without_key_and_value_is_refused(setting: str):
    with pytest.raises(UserError, match="write key=value"):
        load("quick", [setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("align.temprature=1", "unknown key 'align.temprature'; did you mean 'temperature'"),
        ("alin.temperature=1", "unknown key 'alin'; did you mean 'align'"),
        ("seed.x=1", "'seed' is a value, not a group"),
        ("seed=-1", "seed is -1"),
        ("seed=one", "seed is 'one'"),
        ("seed=[", "--set seed"),
        ("align.top_p=0", "align.top_p is 0"),
        ("align.top_p=1.01", "align.top_p is 1.01"),
        ("align.temperature=-0.1", "align.temperature is -0.1"),
        ("align.form=short", "align.form is 'short'"),
        ("engine.kind=vlm", "engine.kind is 'vlm'"),
        ("engrave.targets=[]", "engrave.targets"),
        ("engrave.targets=[x_proj]", "engrave.targets.0 is 'x_proj'"),
        ("engrave.dropout=1", "engrave.dropout is 1"),
        ("stages=[align, prompts]", "stages must be in the order prompts, align"),
        ("stages=[align, align]", "each at most once"),
        ("stages=[train]", "stages.0 is 'train'"),
    ],
)
def test_invalid_setting_is_one_error_line(setting: str, message: str):
    with pytest.raises(UserError) as error:
        load("quick", [setting])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_limit_cuts_every_size():
    recipe = load("standard", limit=10)
    assert recipe.prompts.self_instruct.count == 10
    assert recipe.prompts.red_team.count == 10
    assert recipe.verbose_cloning.prompts == 10
    assert recipe.evaluate.heldout_prompts == 5


def test_limit_increases_nothing():
    recipe, quick = load("quick", limit=1000), load("quick")
    assert recipe.prompts.rows == 1000
    assert recipe == quick.model_copy(update={"prompts": quick.prompts.model_copy(update={"rows": 1000})})
    assert load("quick", ["prompts.red_team.count=0"], limit=5).prompts.red_team.count == 0
    assert load("quick", limit=3).engrave == quick.engrave


def test_limit_of_one_row_keeps_an_evaluation():
    assert load("quick", limit=1).evaluate.heldout_prompts == 1


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one_is_refused(limit: int):
    with pytest.raises(UserError, match="at least 1"):
        load("quick", limit=limit)


def test_differences_list_values_with_their_path():
    old = load("quick").model_dump(mode="json")
    new = load("quick", ["seed=3", "align.temperature=0.9", "verbose_cloning.prompts=null"]).model_dump(mode="json")
    assert differences(old, old) == []
    assert differences(old, new) == [
        "seed: 0 -> 3",
        "align.temperature: 0.5 -> 0.9",
        "verbose_cloning.prompts: 30 -> null",
    ]


def test_differences_include_missing_keys():
    assert differences({"a": 1}, {"b": {"c": 2}}) == ["a: 1 -> null", 'b: null -> {"c": 2}']


def test_digest_depends_on_content():
    assert load("quick").digest() == load("quick", ["seed=0"]).digest()
    assert load("quick").digest() != load("quick", ["seed=1"]).digest()


def test_recipe_file_is_loaded(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "prompts:\n"
        "  self_instruct: {count: 1, temperature: 1.0, top_p: 1.0, max_new_tokens: 5}\n"
        "  red_team: {count: 1, temperature: 1.0, top_p: 1.0, max_new_tokens: 5}\n"
        "align: {temperature: 0, top_p: 1, max_new_tokens: 9}\n"
        "verbose_cloning: {temperature: 0, top_p: 1, max_new_tokens: 9}\n"
    )
    recipe = load(str(file))
    assert recipe.stages == list(STAGES)
    assert recipe.align.temperature == 0


@pytest.mark.parametrize(("text", "message"), [("", "must be a mapping"), ("- 1", "must be a mapping"), ("a: [", ":1")])
def test_invalid_recipe_file_is_named(tmp_path: Path, text: str, message: str):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load(str(file))
    assert str(file) in str(error.value)
    assert message in str(error.value)


def test_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(UserError, match=r"neither shipped \(quick, .*, single-gpu\) nor a YAML file"):
        load("quik")
    with pytest.raises(UserError, match="does not exist"):
        load("none.yaml")


def test_recipe_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        load("quick").seed = 3  # type: ignore[misc]


def test_json_schema_has_every_group():
    schema = recipes.Recipe.model_json_schema()
    assert {"model", "prompts", "align", "engrave", "verbose_cloning", "evaluate"} <= set(schema["properties"])


def test_filter_base_sets_its_values(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text(strict_yaml.dump(recipes.load("quick")), "utf-8")
    assert recipes.load(str(file), ["filters.base=paper"]).filters == recipes.load("paper").filters
    assert recipes.load("quick", ["filters=paper", "filters.responses.echo=0.5"]).filters.responses.min_chars == 149
    for value in ("papr", "[paper]", "3"):
        with pytest.raises(UserError, match="filters"):
            recipes.load("quick", [f"filters.base={value}"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("clone.prompts=5", "verbose_cloning.prompts=5"),
        ("evaluate.run_on=3", "evaluate.heldout_prompts=3"),
        ("engrave.tokens_at_once=64", "engrave.micro_batch_tokens=64"),
        ("engine.tensor_parallel=2", "engine.tensor_parallel_size=2"),
        ("engine.served.clone=id", "engine.served.verbose_cloning=id"),
        ("stages=[prompts,clone]", "stages=[prompts,verbose_cloning]"),
    ],
)
def test_set_takes_the_old_name_of_a_key(old: str, new: str):
    assert load("quick", [old]) == load("quick", [new]) != load("quick")


def test_recipe_file_may_use_old_names(tmp_path: Path):
    text = strict_yaml.dump(load("quick"))
    file = tmp_path / "old.yaml"
    file.write_text(text.replace("heldout_prompts", "run_on").replace("- verbose_cloning", "- clone"))
    assert load(str(file)) == load("quick")
    file.write_text(text.replace("  heldout_prompts:", "  run_on: 3\n  heldout_prompts:"))
    with pytest.raises(UserError, match=r"both 'evaluate\.heldout_prompts' and its old name 'evaluate\.run_on'"):
        load(str(file))


def test_frozen_recipe_of_version_0_1_is_upgraded():
    recipe = load("quick", ["engine.kind=openai", "engine.url=http://h/v1", "engine.served.verbose_cloning=id"])
    value = recipe.model_dump(mode="json")
    old = json.loads(json.dumps(value))
    old["clone"] = old.pop("verbose_cloning")
    old["stages"] = ["clone" if stage == "verbose_cloning" else stage for stage in old["stages"]]
    for group, key, old_key in (
        ("evaluate", "heldout_prompts", "run_on"),
        ("engrave", "micro_batch_tokens", "tokens_at_once"),
        ("engine", "tensor_parallel_size", "tensor_parallel"),
    ):
        old[group][old_key] = old[group].pop(key)
    old["engine"]["served"]["clone"] = old["engine"]["served"].pop("verbose_cloning")
    assert upgrade(old) == value


def test_run_of_version_0_1_opens_with_its_recipe(fake_run: Callable[..., Context]):
    run = fake_run().run
    file = run.path / "recipe.yaml"
    text = file.read_text()
    renamed = (("verbose_cloning", "clone"), ("heldout_prompts", "run_on"), ("micro_batch_tokens", "tokens_at_once"))
    for new, old in renamed:
        assert new in text
        text = text.replace(new, old)
    file.write_text(text)
    assert RunDir.load(run.path).recipe == run.recipe


def test_engraved_start_needs_training_in_the_run():
    assert load("quick", ["verbose_cloning.start=engraved"]).verbose_cloning.start == "engraved"
    with pytest.raises(UserError, match=r"verbose_cloning\.start is engraved: set it to base"):
        load("quick", ["verbose_cloning.start=engraved", "engrave.elsewhere=true"])
    assert load("quick", ["engrave.elsewhere=true", "stages=[prompts,align,engrave]"]).engrave.elsewhere
