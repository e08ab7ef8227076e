"""Before there is a run: the recipe with its engine, constitution and model checked, and what a run would take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from selfalign import capacity, constitution, costs, engines, executors, models, pipeline
from selfalign import cluster as clusters
from selfalign import recipe as recipes
from selfalign.calibrate import calibration
from selfalign.errors import UserError
from selfalign.progress import Screen
from selfalign.recipe import Recipe
from selfalign.run import frozen_kind, frozen_prompts


def prepare(
    recipe: str,
    settings: Mapping[str, object] | list[str] | None,
    limit: int | None,
    prompts: str | Path | None,
    out: Path | None = None,
) -> tuple[Recipe, constitution.Constitution, models.Model | None]:
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
    engine = wanted.engine.model_copy(update={"kind": kind}) if kind else engines.chosen(wanted.engine)
    executors.check(wanted.executor)
    if wanted.executor.kind == "local" or engine.kind == "openai":
        engines.check(engine)  # a worker says itself what its machine lacks
    wanted = wanted.model_copy(update={"engine": engine})
    texts = constitution.load(wanted.constitution)
    constitution.load_seeds(wanted.seeds)
    model = models.resolve(wanted.model) if engines.needs_weights(wanted.engine) else None
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
        speed = calibration(model.gguf, model.identity, config.context, config.threads, fresh, say)
    return costs.make(wanted, texts, model, speed, pipeline.own_prompts(wanted))


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
    return capacity.plan(wanted, texts, machines, shape, pipeline.own_prompts(wanted))


def _listed(settings: Mapping[str, object] | list[str] | None) -> list[str] | None:
    if isinstance(settings, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return settings
