"""Load and check a recipe, its constitution and its model before a run, and plan the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from selfalign import constitution
from selfalign.data import user_data
from selfalign.errors import UserError
from selfalign.generation import engines, executors
from selfalign.generation.calibration import calibrate
from selfalign.model import hub
from selfalign.model.base_model import Model
from selfalign.planning import capacity, clusters, costs, gpu_fit
from selfalign.run import recipe as recipes
from selfalign.run.directory import frozen_choices
from selfalign.run.recipe import Recipe
from selfalign.system.console import Screen


def prepare(
    recipe: str,
    settings: Mapping[str, object] | list[str] | None,
    limit: int | None,
    prompts: str | Path | None,
    out: Path | None = None,
) -> tuple[Recipe, constitution.Constitution, Model | None]:
    """Return the recipe (with its engine chosen), the constitution and the model, checked before anything is written.

    Args:
        out: the run directory; an existing run keeps its engine.

    Raises:
        SelfAlignError: one of them is invalid.
    """
    kind, data, base = frozen_choices(out) if out is not None else (None, None, None)
    chosen = _load(recipe, settings, limit, prompts, data)
    chosen = chosen.model_copy(update={"model": hub.with_frozen_commit(chosen.model, base)})
    if not chosen.model:
        raise UserError(
            f"recipe {recipe} names no model: set one with --set model=NAME, a Hugging Face folder or a hub id such as "
            "Qwen/Qwen3-8B-Base"
        )
    if chosen.engine.kind != "auto" or chosen.engine.url or chosen.engine.urls or kind is None:
        kind = engines.kind(chosen.engine)
    automatic = chosen.engine.kind == "auto"
    if kind == "vllm_server" and chosen.executor.kind == "ray":  # each worker has its own vLLM
        if chosen.engine.kind == "vllm_server":
            raise UserError("engine.kind vllm_server does not run on Ray workers: set engine.kind to vllm")
        kind = "vllm" if find_spec("vllm") else "llama_cpp"
    engine = chosen.engine.model_copy(update={"kind": kind})
    executors.check(chosen.executor)
    if chosen.executor.kind == "local" or engine.kind == "openai":
        engines.check(engine)  # a worker checks its own machine
    chosen = chosen.model_copy(update={"engine": engine})
    texts = constitution.load(chosen.constitution)
    constitution.load_seeds(chosen.seeds)
    model = engines.base_model(chosen.model, chosen.engine)
    if automatic and kind == "llama_cpp" and not model.is_fake and model.gguf_path is None:
        chosen = chosen.model_copy(update={"engine": engine.model_copy(update={"kind": "torch"})})
        engines.check(chosen.engine)
    if not model.is_fake and model.repository:  # with the commit
        chosen = chosen.model_copy(update={"model": model.source})
    return chosen, texts, model


def plan(
    recipe: str = "quick",
    *,
    settings: Mapping[str, object] | list[str] | None = None,
    limit: int | None = None,
    prompts: str | Path | None = None,
    fresh: bool = False,
    screen: Screen | None = None,
) -> costs.Plan:
    """Plan a run of the recipe on this machine. The only generation is to measure its speed.

    Args:
        fresh: measure the speed again, even if there is a saved measurement.

    Raises:
        SelfAlignError: as `create`.
    """
    chosen, texts, model = prepare(recipe, settings, limit, prompts)
    say = (screen or Screen(-1)).say
    speed = None
    if model and engines.kind(chosen.engine) == "llama_cpp":
        config = chosen.engine
        speed = calibrate(model.gguf, model.identity, config.context, config.threads, fresh, say)
    estimate = costs.plan(chosen, texts, costs.describe_machine(chosen, model, speed), user_prompts(chosen))
    return replace(estimate, problems=gpu_fit.problems(chosen, model))


def plan_cluster(
    recipe: str,
    cluster: str,
    *,
    settings: Mapping[str, object] | list[str] | None = None,
    limit: int | None = None,
    prompts: str | Path | None = None,
) -> capacity.Capacity:
    """Plan a run of the recipe on a cluster, without a model or a GPU on this machine.

    Args:
        cluster: for example `gpus=2x8xH100,model=70b` (docs/capacity.md).

    Raises:
        SelfAlignError: the recipe, the cluster or the prompts are invalid.
    """
    machines = clusters.parse(cluster)
    chosen = _load(recipe, settings, limit, prompts)
    shape = clusters.shape_of(machines.model, chosen.model)
    texts = constitution.load(chosen.constitution)
    return capacity.plan(chosen, texts, machines, shape, user_prompts(chosen))


def _load(
    recipe: str,
    settings: Mapping[str, object] | list[str] | None,
    limit: int | None,
    prompts: str | Path | None,
    frozen: str | None = None,
) -> Recipe:
    """Return the recipe with its settings, its files, and the user's prompts."""
    if isinstance(settings, Mapping):
        settings = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    loaded = recipes.load(recipe, settings, limit)
    return recipes.located(loaded, Path(prompts) if prompts is not None else None, recipe, frozen)


def user_prompts(recipe: Recipe) -> int | None:
    """Return the number of user prompts; None if the run writes its prompts.

    Raises:
        UserError: there are no prompts, or the file cannot be read.
    """
    check_prompts(recipe)
    if "prompts" not in recipe.stages or not recipe.prompts.file:
        return None
    return user_data.count_prompts(recipe.prompts)


def check_prompts(recipe: Recipe) -> None:
    """Raise UserError if the recipe neither writes prompts nor has user prompts."""
    prompts = recipe.prompts
    if "prompts" in recipe.stages and not (prompts.file or prompts.self_instruct.count or prompts.red_team.count):
        raise UserError("this recipe writes no prompts: pass your own with --prompts FILE (docs/formats.md)")
    if "align" in recipe.stages and recipe.align.form == "given" and not prompts.file:
        raise UserError("align.form: given needs your responses: pass them with --prompts FILE")
