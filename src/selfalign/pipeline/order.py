"""Run the stages in order, and skip finished ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfalign.data import scenarios
from selfalign.data.records import content_hash, write_jsonl
from selfalign.errors import UserError
from selfalign.evaluation import evaluate
from selfalign.evaluation.evaluate import EvaluationRequest
from selfalign.evaluation.models import run_models
from selfalign.evaluation.scoring import ScoredTask
from selfalign.evaluation.tasks import TASKS, heldout
from selfalign.generation import engines
from selfalign.pipeline import (
    on_policy,
    step1_prompts,
    step1a_self_instruct,
    step1b_red_team,
    step2_self_align,
    step3_principle_engraving,
    step4_verbose_cloning,
)
from selfalign.planning import costs, gpu_fit
from selfalign.planning.prepare import check_prompts, user_prompts
from selfalign.report import page
from selfalign.run import marks
from selfalign.run.context import ADAPTER_STAGES, Context
from selfalign.run.directory import RunDir
from selfalign.run.recipe import Stage
from selfalign.system import atomic
from selfalign.system.atomic import file_hash
from selfalign.system.schedule import Schedule
from selfalign.system.signals import STOP
from selfalign.training import device


def _prompts(context: Context) -> list[Path]:
    if context.recipe.prompts.file:
        return step1_prompts.import_file(context)
    return [*step1a_self_instruct.run(context), *step1b_red_team.run(context), *step1_prompts.merge(context)]


def _evaluate(context: Context) -> list[Path]:
    files = heldout.run(context)
    evaluate.refresh(context)
    config = context.recipe.evaluate
    tasks = config.tasks
    evaluate.check_tasks(tasks, "evaluate.tasks")
    if context.model.is_fake and any(isinstance(TASKS[t], ScoredTask) for t in tasks):
        context.screen.say("  the fake engine runs no model: nothing is scored", "yellow")
        tasks = [t for t in tasks if not isinstance(TASKS[t], ScoredTask)]
    if tasks:
        models = () if config.prompted_base else tuple(run_models(context))
        files += evaluate.run(context, EvaluationRequest(tasks, models, limit=config.limit))
    return list(dict.fromkeys(files))


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of the pipeline: its title, its function, and the files that it reads and writes."""

    title: str
    run: Callable[..., list[Path]]
    inputs: Callable[[RunDir], list[Path]]
    outputs: Callable[[RunDir], list[Path]]


def _adapter(run: RunDir, stage: str) -> list[Path]:
    return [run.jsonl(f"{stage}_examples"), run.adapter(stage), run.adapter_gguf(stage)]


STEPS: dict[Stage, Step] = {
    "prompts": Step(
        "1  Prompts: Self-Instruct and topic-guided red-teaming",
        _prompts,
        lambda run: [],
        lambda run: [run.jsonl(n) for n in ("self_instruct", "topics", "red_team", "prompts")],
    ),
    "align": Step(
        "2  Principle-driven self-alignment",
        step2_self_align.run,
        lambda run: [run.jsonl("prompts")],
        lambda run: [run.jsonl("responses")],
    ),
    "engrave": Step(
        "3  Principle engraving",
        step3_principle_engraving.run,
        lambda run: [run.jsonl("responses")],
        lambda run: [run.jsonl("pairs"), run.jsonl("on_policy"), *_adapter(run, "engrave")],
    ),
    "verbose_cloning": Step(
        "4  Verbose cloning",
        step4_verbose_cloning.run,
        lambda run: [run.jsonl("prompts"), run.jsonl("engrave_examples"), run.adapter_gguf("engrave")],
        lambda run: [run.jsonl("verbose_responses"), *_adapter(run, "verbose_cloning")],
    ),
    "evaluate": Step(
        "5  Evaluation on held-out prompts",
        _evaluate,
        lambda run: [run.jsonl("prompts"), run.jsonl("responses"), *map(run.adapter_gguf, ADAPTER_STAGES)],
        lambda run: [run.jsonl("answers"), run.scores],
    ),
    "report": Step(
        "   Report",
        page.run,
        lambda run: [run.scores, run.jsonl("answers")],
        lambda run: [run.report, run.report_json],
    ),
}


def run_stage(context: Context, stage: Stage, again: bool = False, adapter: Path | None = None) -> None:
    """Run one stage, unless it is finished with the same inputs.

    Args:
        again: run it even if it is finished, with the raw outputs that are in the journal.
        adapter: for engrave and verbose_cloning, an adapter that was trained elsewhere, to publish instead of training.

    Raises:
        SelfAlignError: as in the stage.
    """
    STOP.check()
    step, run = STEPS[stage], context.run
    before = run.journal.published().get(stage)
    key = inputs_hash(context, stage)
    if not again and stage != "report" and run.done(stage, key):
        context.screen.say(f"{step.title}: done", "dim")
        return
    run.check_not_edited(step.outputs(run), context.force)
    run.journal.unpublish(stage)
    if stage in ("prompts", "align", "verbose_cloning"):
        # An unreadable benchmark file is reported before anything is generated.
        for name, items in context.benchmarks.sources.items():
            context.screen.say(f"  benchmark {name}: {items:,} texts, without overlap in prompts and responses", "dim")
    if again and stage == "prompts":
        run.journal.forget_rounds()
    context.screen.say(step.title, "bold")
    run.manifest.unlink(missing_ok=True)
    try:
        files = step.run(context, adapter=adapter) if adapter else step.run(context)
    except UserError:
        if adapter and before:  # an adapter that is refused changes nothing
            run.journal.publish(stage, *before)
        raise
    _add_notices(context, files)
    write_jsonl(run.jsonl("drops"), run.journal.drops())
    # `key` is from before the stage, so an input that changed in the meantime makes the stage run again.
    run.mark_done(stage, key, files)
    if context.saver:
        context.saver.try_save()


def run_benchmarks(context: Context, request: EvaluationRequest) -> None:
    """Evaluate the run's models on benchmarks; update the report if there is one.

    Raises:
        SelfAlignError: as in `evaluate.run`.
    """
    STOP.check()
    context.screen.say("5  Benchmarks", "bold")
    _add_notices(context, evaluate.run(context, request))
    write_jsonl(context.run.jsonl("drops"), context.journal.drops())
    if context.run.report.exists():
        run_stage(context, "report", again=True)
    write_manifest_if_done(context)


def run_all(context: Context) -> None:
    """Run the recipe's unfinished stages, then write the manifest."""
    check_ready(context)
    _plan(context)
    if (plan := costs.read(context.run.plan)) and plan.seconds is not None:
        context.screen.schedule = Schedule({stage.stage: stage.seconds or 0.0 for stage in plan.stages})
    for stage in context.recipe.stages:
        run_stage(context, stage)
    context.run.write_manifest()


def _plan(context: Context) -> None:
    """Write the run's expected cost, if it is not there yet, to compare it with the measured cost in the report."""
    if context.run.plan.exists() or context.model.is_fake:
        return
    recipe = context.recipe
    has_prompts, has_responses = recipe.prompts.file is not None, recipe.align.form == "given"
    idle = {
        "report",
        *(["engrave"] if recipe.engrave.method == "sft" else []),
        *(["prompts"] if has_prompts else []),
        *(["align"] if has_responses else []),
    }
    generates = set(recipe.stages) - idle
    # The speed is used only if the run measures it anyway.
    speed = context.speed() if generates and recipe.engine.slots == "auto" else None
    machine = costs.describe_machine(recipe, context.model, speed)
    costs.write(context.run.plan, costs.plan(recipe, context.run.constitution, machine, user_prompts(recipe)))


def write_manifest_if_done(context: Context) -> None:
    """Write the manifest if every stage of the recipe is finished with the current files."""
    if all(context.run.done(s, inputs_hash(context, s)) for s in context.recipe.stages):
        context.run.write_manifest()


def check_ready(context: Context) -> None:
    """Check before the first stage that no later stage will fail for a missing input.

    Raises:
        UserError: an input is missing and no earlier stage writes it, or the model cannot be trained here, or the
            GPU is too small.
    """
    check_prompts(context.recipe)
    if warning := engines.advice(context.recipe.engine):
        context.screen.say(f"  {warning}", "yellow")
    if problems := gpu_fit.problems(context.recipe, context.model):
        raise UserError(problems[0])
    config = context.recipe.engrave
    if {"engrave", "verbose_cloning"} & set(context.recipe.stages) and config.device == "cuda" and not config.elsewhere:
        device.choose(config)  # torch may lack support for the GPU
    if "engrave" in context.recipe.stages:
        on_policy.check(context)
    written: set[Path] = set()
    for stage in context.recipe.stages:
        step = STEPS[stage]
        needed = [] if stage in ("evaluate", "report") else step.inputs(context.run)
        for file in needed:
            trained = file.suffix == ".gguf"
            exists = context.model.has_adapter(file) if trained else file.exists()
            if not exists and file not in written:
                raise UserError(
                    f"the stage {stage!r} reads {file}, which does not exist and is not written by an earlier stage in "
                    "the recipe's `stages`"
                )
        written |= set(step.outputs(context.run))
    if "evaluate" in context.recipe.stages:
        evaluate.check_ready(context)
    if {"engrave", "verbose_cloning", "evaluate"} & set(context.recipe.stages):
        context.model.check_trainable(with_gguf=engines.kind(context.recipe.engine) == "llama_cpp")


_SETTINGS: dict[Stage, tuple[str, ...]] = {
    "prompts": ("seeds", "filters", "prompts", "evaluate"),
    "align": ("filters", "align"),
    "engrave": ("engrave",),
    "verbose_cloning": ("filters", "engrave", "verbose_cloning"),
    "evaluate": ("evaluate",),
    "report": ("seeds", "filters", "prompts", "align", "engrave", "verbose_cloning", "evaluate"),
}
"""The parts of the recipe that a stage's result depends on."""


def inputs_hash(context: Context, stage: Stage) -> str:
    """Return a hash of everything that the stage's result depends on."""
    run = context.run
    recipe = run.recipe.model_dump(mode="json")
    recipe["engrave"] = run.recipe.engrave.deciding()
    settings = {k: recipe[k] for k in ("seed", *_SETTINGS[stage])}
    if "evaluate" in settings and (stage != "evaluate" or not settings["evaluate"]["tasks"]):
        # A changed task affects only this stage, and without tasks the hash is that of versions without tasks.
        del settings["evaluate"]["tasks"]
    if "evaluate" in settings and "behaviour" not in settings["evaluate"].get("tasks", ()):
        del settings["evaluate"]["scenarios"]
    files = [file_hash(f) if f.exists() else "" for f in STEPS[stage].inputs(run)]
    seeds = Path(run.recipe.seeds)
    reads_seeds = stage == "prompts" or (stage == "engrave" and run.recipe.engrave.seed_repeats > 0)
    seeds_hash = file_hash(seeds) if reads_seeds and seeds.is_file() else ""
    benchmarks = [file_hash(Path(f)) for f in run.recipe.evaluate.benchmarks if Path(f).is_file()]
    engrave = run.recipe.engrave
    method = engrave.method
    compares = stage in ("prompts", "align", "verbose_cloning") or (
        stage == "engrave" and (method != "sft" or engrave.exemplar_repeats > 0 or reads_seeds)
    )
    if stage == "engrave" and method == "dpo" and run.jsonl("user_pairs").exists():
        files.append(file_hash(run.jsonl("user_pairs")))
    if compares:  # its texts are compared with the scenarios
        benchmarks.append(scenarios.digest())
    # Without marks the hash is that of versions without marks, so that their runs are not trained again.
    stage_marks = [digest] if stage in marks.STAGES and (digest := marks.digest(run, stage)) else []
    weights = context.identities()[None]
    return content_hash(
        stage, settings, run.constitution.digest(), weights, files, seeds_hash, benchmarks, *stage_marks
    )


def _add_notices(context: Context, files: list[Path]) -> None:
    """Write the base model's licence terms into the folders of the files that were generated with it."""
    if not context.model.notice:
        return
    for folder in {context.run.path, *(f.parent for f in files if f.suffix == ".jsonl")}:
        if not (folder / "NOTICE").exists():
            atomic.write_text(folder / "NOTICE", context.model.notice + "\n")
