"""Summarise a run: its settings, human-written items, the counts from seeds to examples, training and costs."""

from __future__ import annotations

from typing import Any

from selfalign.constitution import load_seeds
from selfalign.data.records import Prompt, stream_jsonl
from selfalign.errors import UserError
from selfalign.planning import costs
from selfalign.run.directory import RunDir
from selfalign.run.ledger import TITLES
from selfalign.run.recipe import Recipe
from selfalign.system import environment
from selfalign.training.settings import TrainingSettings


def gather(run: RunDir, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return story, facts, machine, supervision, funnel, training and costs of the report.

    Args:
        stages: the counts of each stage, with its title.
    """
    human = supervision(run)
    return {
        "story": story(run),
        "facts": facts(run),
        "machine": environment.facts(),
        "supervision": human,
        "funnel": funnel(run, stages, human["counts"]),
        "training": training(stages),
        "costs": plan_and_actual(run, stages),
    }


def story(run: RunDir) -> str:
    """Return a sentence on the stages of the recipe."""
    user_prompts, user_responses = run.recipe.prompts.file is not None, run.recipe.align.form == "given"
    steps = {
        "prompts": "took the user's prompts" if user_prompts else "wrote prompts",
        "align": "took the user's responses" if user_responses else "responded to them under the constitution",
        "engrave": "was trained on these responses"
        + ("" if user_responses else " without the constitution")
        + _ALSO.get(run.recipe.engrave.method, ""),
        "verbose_cloning": "was trained on its own verbose responses",
    }
    parts = [text for stage, text in steps.items() if stage in run.recipe.stages] or ["was evaluated"]
    joined = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    text = f"The base model {joined}. This page shows the results of each step"
    if "evaluate" in run.recipe.stages:
        text += ", and the models' responses to prompts that none of them was trained on"
    return f"{text}."


def facts(run: RunDir) -> list[list[str]]:
    """Return (name, value) of the most important settings; the recipe has all."""
    recipe, constitution = run.recipe, run.constitution
    size = f"{len(constitution.principles)} principles, {len(constitution.exemplars)} exemplars"
    engrave, user_responses = recipe.engrave, recipe.align.form == "given"
    hints = ", hints by question type" if recipe.align.hints else ""
    by_stage = {
        "prompts": ["prompts", _prompts(recipe)],
        "align": [
            "responses",
            "from the user" if user_responses else f"{recipe.align.form} form, {_sampling(recipe.align)}{hints}",
        ],
        "engrave": [
            "engraving",
            f"LoRA rank {engrave.rank}, alpha {engrave.alpha}, on {', '.join(engrave.targets)}; learning rate "
            f"{engrave.learning_rate:g}, epochs {engrave.epochs}, batch {engrave.batch_size}" + _method(engrave),
        ],
        "verbose_cloning": ["verbose responses", _sampling(recipe.verbose_cloning)],
        "evaluate": [
            "evaluation",
            f"{recipe.evaluate.heldout_prompts} held-out prompts, {_sampling(recipe.evaluate)}",
        ],
    }
    slots = "measured" if recipe.engine.slots == "auto" else str(recipe.engine.slots)
    return [
        ["base model", recipe.model],
        ["engine", f"{recipe.engine.kind} (requests at once: {slots})"],
        ["constitution", f"{constitution.name} ({size}; language {constitution.language})"],
        ["assistant", f"{constitution.assistant.name}, knowledge until {constitution.assistant.cutoff}"],
        ["stages", ", ".join(recipe.stages)],
        ["seed", str(recipe.seed)],
        *(row for stage, row in by_stage.items() if stage in recipe.stages),
    ]


_ALSO = {"dpo": ", and on preference pairs", "on_policy": ", and on responses of its own"}
"""What stage 3 also trains on, by its method."""


def _method(engrave: TrainingSettings) -> str:
    """Return the settings of a method other than sft."""
    if engrave.method == "dpo":
        return f"; DPO, beta {engrave.beta:g}, sft weight {engrave.sft_weight:g}"
    if engrave.method == "on_policy":
        own = engrave.on_policy
        return (
            f"; on-policy distillation, warm-up {own.warmup}, {own.rounds} rounds of {own.prompts} prompts, divergence "
            f"{own.divergence}, clip {own.clip:g}, learning rate {own.learning_rate:g}"
        )
    return ""


def _prompts(recipe: Recipe) -> str:
    if recipe.prompts.file:
        return "from the user's file"
    tasks, questions = recipe.prompts.self_instruct, recipe.prompts.red_team
    return (
        f"{tasks.count:,} by Self-Instruct ({_sampling(tasks)}), {questions.count:,} by red-teaming "
        f"({_sampling(questions)})"
    )


def _sampling(config: Any) -> str:
    return f"temperature {config.temperature:g}, top-p {config.top_p:g}, at most {config.max_new_tokens} tokens"


def supervision(run: RunDir) -> dict[str, Any]:
    """Count the human-written items that generation or training used, by kind.

    `missing` names what could not be counted.
    """
    user_prompts = run.recipe.prompts.file is not None
    missing, seeds = "", 0
    uses_seeds = not user_prompts or run.recipe.engrave.seed_repeats > 0
    if uses_seeds:
        try:
            seeds = len(load_seeds(run.recipe.seeds))
        except UserError:
            missing = "the file of seed tasks no longer exists"
    counts = run.constitution.human_items(seeds)
    total = counts.pop("total")
    if not uses_seeds:
        del counts["seed tasks"]
    if user_prompts:
        path = run.jsonl("prompts")
        number = sum(1 for p in stream_jsonl(path, Prompt) if p.source == "user") if path.exists() else 0
        counts, total = {"prompts of the user": number, **counts}, total + number
    return {"counts": counts, "total": total, "missing": missing}


def funnel(run: RunDir, stages: list[dict[str, Any]], human: dict[str, int]) -> list[dict[str, Any]]:
    """Return the steps from human-written seeds to training examples, with rows in, kept and lost.

    Args:
        human: numbers of human-written items by kind.
    """
    user_prompts = run.recipe.prompts.file is not None
    steps: list[str | tuple[str, str]] = (
        ["prompts of the user"]
        if user_prompts
        else [
            "seed tasks",
            ("self_instruct", "Self-Instruct candidates"),
            "question types",
            ("topics", "topics"),
            ("red_team", "red-team candidates"),
        ]
    )
    steps += [
        ("align", "responses under the constitution"),
        ("pairs", "preference pairs"),
        ("on_policy", "responses of the model in training"),
        ("engrave", "examples for engraving, with identity pairs"),
        ("verbose_responses", "verbose responses"),
        ("verbose_cloning", "examples for verbose cloning"),
    ]
    by_name = {s["stage"]: s for s in stages}
    rows = []
    for step in steps:
        if isinstance(step, str):
            if step in human:
                number = human[step]
                rows.append({"title": step, "human": True, "rows_in": number, "kept": number, "lost": 0})
        elif counts := by_name.get(step[0]):
            lost = sum(counts["dropped"].values()) + sum(counts["failed"].values())
            row = {"rows_in": counts["rows_in"], "kept": counts["kept"], "lost": lost}
            rows.append({"title": step[1], "human": False, **row})
    return rows


def training(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the training record of each stage that trained.

    `curve` has [step, loss, learning rate], `heldout` [step, loss]; both may be empty. For `preference`, see
    `preference`. `on_policy` has the responses and the divergences of each round.
    """
    records = []
    lengths: dict[str, Any] = next((stage["notes"] for stage in stages if stage["stage"] == "pairs"), {})
    for stage in stages:
        notes = stage["notes"]
        if "loss_last" not in notes and "curve" not in notes:
            continue
        numbers = ("steps", "loss_first", "loss_last", "training_tokens", "training_seconds")
        records.append(
            {
                "stage": stage["stage"],
                "title": stage["title"],
                "examples": stage["kept"],
                **{key: notes.get(key) for key in numbers},
                "parity": notes.get("parity") or {},
                "curve": notes.get("curve") or [],
                "heldout": notes.get("heldout") or [],
                "preference": preference(notes, lengths),
                "on_policy": notes.get("on_policy") or [],
            }
        )
    return records


def preference(notes: dict[str, Any], pairs: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a training on pairs, and the remaining difference in length; empty without pairs.

    Args:
        notes: those of the training's ledger.
        pairs: those of the ledger of the pairs.
    """
    if not notes.get("pairs"):
        return {}
    keys = ("chosen_characters", "rejected_characters", "chosen_longer")
    return {**{key: notes.get(key) for key in ("pairs", "margin", "accuracy")}, **{key: pairs.get(key) for key in keys}}


def plan_and_actual(run: RunDir, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return planned and actual costs of every stage; planned values are None without a plan."""
    plan = costs.read(run.plan)
    planned = {s.stage: s for s in plan.stages} if plan else {}
    rows = []
    for stage in stages:
        expected = planned.get(stage["stage"])
        rows.append(
            {
                **{key: stage[key] for key in ("stage", "finished", "requests")},
                "title": TITLES.get(stage["stage"], stage["stage"]),
                "tokens": stage["generated_tokens"] or stage["notes"].get("training_tokens", 0),
                "seconds": stage["seconds"],
                "planned_requests": expected.requests if expected else None,
                "planned_tokens": expected.generated_tokens if expected else None,
                "planned_seconds": expected.seconds if expected else None,
            }
        )
    return {
        "stages": rows,
        "seconds": sum(r["seconds"] for r in rows),
        "planned_seconds": plan.seconds if plan else None,
        "memory_mb": plan.memory_mb if plan else None,
        "disk_mb": plan.disk_mb if plan else None,
        "actual_disk_mb": disk_mb(run),
    }


def disk_mb(run: RunDir) -> float:
    """Return the size of the run's files, without the viewer's index and the marks."""
    excluded = (run.view.name, run.jsonl("feedback").name)
    files = (f for f in run.path.rglob("*") if f.is_file() and not f.name.startswith(excluded))
    return sum(f.stat().st_size for f in files) / 1e6
