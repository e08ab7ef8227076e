"""Before there is a run: the recipe with its engine, constitution and model checked, and what a run would take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from selfalign import constitution
from selfalign.data import user_data
from selfalign.errors import UserError
from selfalign.generation import engines, executors
from selfalign.generation.calibration import calibrate
from selfalign.model.base_model import Model
from selfalign.planning import capacity, clusters, costs
from selfalign.run import recipe as recipes
from selfalign.run.directory import frozen_kind, frozen_prompts
from selfalign.run.recipe import Recipe
from selfalign.system.console import Screen


def prepare(
    recipe: str,
    settings: Mapping[str, object] | list[str] | None,
    limit: int | None,
    prompts: str | Path | None,
    out: Path | None = None,
) -> tuple[Recipe, constitution.Constitution, Model | None]:
    """Recipe (with the engine chosen), constitution and model, checked before anything is written.

    Args:
        out: where a run may stand already: it keeps the engine that it chose.

    Raises:
        SelfAlignError: one of them is wrong.
    """
    loaded = recipes.load(recipe, _listed(settings), limit)
    if not loaded.model:
        raise UserError(
            f"recipe {recipe} names no model: give yours with --set model=NAME, a Hugging Face folder or a hub id such "
            "as Qwen/Qwen3-8B-Base"
        )
    data = frozen_prompts(out) if out is not None else None
    wanted = recipes.located(loaded, Path(prompts) if prompts is not None else None, recipe, data)
    kept = out is not None and wanted.engine.kind == "auto" and not (wanted.engine.url or wanted.engine.urls)
    kind = frozen_kind(out) if kept and out is not None else None
    engine = wanted.engine.model_copy(update={"kind": kind}) if kind else engines.resolve_kind(wanted.engine)
    executors.check(wanted.executor)
    if wanted.executor.kind == "local" or engine.kind == "openai":
        engines.check(engine)  # a worker says itself what its machine lacks
    wanted = wanted.model_copy(update={"engine": engine})
    texts = constitution.load(wanted.constitution)
    constitution.load_seeds(wanted.seeds)
    model = engines.base_model(wanted.model, wanted.engine)
    return wanted, texts, model


def plan(
    recipe: str = "quick",
    *,
    settings: Mapping[str, object] | list[str] | None = None,
    limit: int | None = None,
    prompts: str | Path | None = None,
    fresh: bool = False,
    screen: Screen | None = None,
) -> costs.Plan:
    """What a run of the recipe would cost on this machine. Nothing is generated but for the measurement of its speed.

    Args:
        fresh: measure this machine again; otherwise a measurement that is kept serves.

    Raises:
        SelfAlignError: as `create`.
    """
    wanted, texts, model = prepare(recipe, settings, limit, prompts)
    say = (screen or Screen(-1)).say
    speed = None
    if model and engines.kind(wanted.engine) == "llama_cpp":
        config = wanted.engine
        speed = calibrate(model.gguf, model.identity, config.context, config.threads, fresh, say)
    return costs.make(wanted, texts, model, speed, user_prompts(wanted))


def plan_cluster(
    recipe: str,
    cluster: str,
    *,
    settings: Mapping[str, object] | list[str] | None = None,
    limit: int | None = None,
    prompts: str | Path | None = None,
) -> capacity.Capacity:
    """What a run of the recipe would take on other machines. Neither the model nor a GPU is needed here.

    Args:
        cluster: as `gpus=2x8xH100,model=70b` (docs/capacity.md).

    Raises:
        SelfAlignError: the recipe, the cluster or the prompts are wrong.
    """
    loaded = recipes.load(recipe, _listed(settings), limit)
    machines = clusters.parse(cluster)
    wanted = recipes.located(loaded, Path(prompts) if prompts is not None else None, recipe)
    shape = clusters.shape_of(machines.model, wanted.model)
    texts = constitution.load(wanted.constitution)
    return capacity.plan(wanted, texts, machines, shape, user_prompts(wanted))


def _listed(settings: Mapping[str, object] | list[str] | None) -> list[str] | None:
    if isinstance(settings, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return settings


def user_prompts(recipe: Recipe) -> int | None:
    """How many prompts the user's own file holds; None where the run writes them.

    Raises:
        UserError: there are neither, or the file cannot be read.
    """
    check_prompts(recipe)
    if "prompts" not in recipe.stages or not recipe.prompts.file:
        return None
    return user_data.count_prompts(recipe.prompts)


def check_prompts(recipe: Recipe) -> None:
    wanted = recipe.prompts
    if "prompts" in recipe.stages and not (wanted.file or wanted.self_instruct.count or wanted.red_team.count):
        raise UserError("this recipe writes no prompts of its own: give yours with --prompts FILE (docs/formats.md)")
    if "align" in recipe.stages and recipe.align.form == "given" and not wanted.file:
        raise UserError("align.form: given takes the answers from your own rows: give them with --prompts FILE")
