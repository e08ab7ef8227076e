"""What was run, from how little human text, what became of every row, and what it cost."""

from __future__ import annotations

from typing import Any

from selfalign.constitution import load_seeds
from selfalign.data.records import Prompt, stream_jsonl
from selfalign.errors import UserError
from selfalign.planning import costs
from selfalign.run.directory import RunDir
from selfalign.run.recipe import Recipe
from selfalign.system import environment


def gather(run: RunDir, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """`facts`, `machine`, `supervision`, `funnel`, `training` and `costs`, as plain values.

    Args:
        stages: the ledgers, with their titles.
    """
    human = supervision(run)
    return {
        "story": story(run),
        "facts": facts(run),
        "machine": environment.facts(),
        "supervision": human,
        "funnel": funnel(run, stages, human["counts"]),
        "training": training(stages),
        "costs": compared(run, stages),
    }


def story(run: RunDir) -> str:
    """What the run did, in a sentence: of the stages that its recipe has."""
    own, given = run.recipe.prompts.file is not None, run.recipe.align.form == "given"
    steps = {
        "prompts": "was given prompts" if own else "wrote its own prompts",
        "align": "was given answers to them" if given else "answered them under the constitution",
        "engrave": "learnt the answers" if given else "learnt the answers without it",
        "verbose_cloning": "learnt its own verbose mode",
    }
    done = [text for stage, text in steps.items() if stage in run.recipe.stages]
    told = ", ".join(done[:-1]) + (" and " if len(done) > 1 else "") + done[-1] if done else "was measured"
    text = f"The base model {told}. Below is what came of each step"
    if "evaluate" in run.recipe.stages:
        text += ", and what the models say to prompts that none of them was trained on"
    return f"{text}."


def facts(run: RunDir) -> list[list[str]]:
    """(what, how) rows of the settings that decide most; the recipe holds all."""
    recipe, texts = run.recipe, run.constitution
    parts = [f"{len(texts.principles)} principles", f"{len(texts.exemplars)} exemplars"]
    rows = [
        ["base model", recipe.model],
        ["engine", _engine(recipe)],
        ["constitution", f"{texts.name} ({', '.join(parts)}; language {texts.language})"],
        ["assistant", f"{texts.assistant.name}, knowledge until {texts.assistant.cutoff}"],
        ["stages", ", ".join(recipe.stages)],
        ["seed", str(recipe.seed)],
    ]
    if "prompts" in recipe.stages:
        rows.append(["prompts", _prompts(recipe)])
    if "align" in recipe.stages and recipe.align.form == "given":
        rows.append(["answers", "the user's own"])
    elif "align" in recipe.stages:
        hints = ", hints by question type" if recipe.align.hints else ""
        rows.append(["answers", f"{recipe.align.form} form, {_drawn(recipe.align)}{hints}"])
    if "engrave" in recipe.stages:
        e = recipe.engrave
        rows.append(
            [
                "engraving",
                f"LoRA rank {e.rank}, alpha {e.alpha}, on {', '.join(e.targets)}; learning rate {e.learning_rate:g}, "
                f"epochs {e.epochs}, batch {e.batch_size}",
            ]
        )
    if "verbose_cloning" in recipe.stages:
        rows.append(["verbose answers", _drawn(recipe.verbose_cloning)])
    if "evaluate" in recipe.stages:
        rows.append(["evaluation", f"{recipe.evaluate.heldout_prompts} held-out prompts, {_drawn(recipe.evaluate)}"])
    return rows


def _engine(recipe: Recipe) -> str:
    slots = "as many requests at once as were fastest" if recipe.engine.slots == "auto" else f"{recipe.engine.slots}"
    return f"{recipe.engine.kind} ({slots}{' requests at once' if recipe.engine.slots != 'auto' else ''})"


def _prompts(recipe: Recipe) -> str:
    wanted = recipe.prompts
    if wanted.file:
        return "the user's own file"
    tasks, questions = wanted.self_instruct, wanted.red_team
    return (
        f"{tasks.count:,} by Self-Instruct ({_drawn(tasks)}), {questions.count:,} by red-teaming ({_drawn(questions)})"
    )


def _drawn(config: Any) -> str:
    return f"temperature {config.temperature:g}, top-p {config.top_p:g}, at most {config.max_new_tokens} tokens"


def supervision(run: RunDir) -> dict[str, Any]:
    """Human-written items that generation or training saw, by kind; `missing` says what could not be counted."""
    own = run.recipe.prompts.file is not None
    missing, seeds = "", 0
    if not own:
        try:
            seeds = len(load_seeds(run.recipe.seeds))
        except UserError:
            missing = "the file of seed tasks is gone"
    counts = run.constitution.human_items(seeds)
    total = counts.pop("total")
    if own:
        del counts["seed tasks"]
        path = run.jsonl("prompts")
        given = sum(1 for p in stream_jsonl(path, Prompt) if p.source == "user") if path.exists() else 0
        counts, total = {"prompts of the user": given, **counts}, total + given
    return {"counts": counts, "total": total, "missing": missing}


def funnel(run: RunDir, stages: list[dict[str, Any]], human: dict[str, int]) -> list[dict[str, Any]]:
    """The way from human-written seeds to training examples, step by step: what came in and what was kept of it."""
    rows: list[dict[str, Any]] = []
    by_name = {s["stage"]: s for s in stages}

    def person(title: str) -> None:
        if title in human:
            rows.append({"title": title, "human": True, "rows_in": human[title], "kept": human[title], "lost": 0})

    def ledger(name: str, title: str) -> None:
        if found := by_name.get(name):
            lost = sum(found["dropped"].values()) + sum(found["failed"].values())
            rows.append(
                {"title": title, "human": False, "rows_in": found["rows_in"], "kept": found["kept"], "lost": lost}
            )

    if run.recipe.prompts.file is None:
        person("seed tasks")
        ledger("self_instruct", "Self-Instruct candidates")
        person("question types")
        ledger("topics", "topics")
        ledger("red_team", "red-team candidates")
    else:
        person("prompts of the user")
    ledger("align", "answers under the constitution")
    ledger("engrave", "examples to engrave, with identity pairs")
    ledger("verbose_responses", "verbose responses")
    ledger("verbose_cloning", "examples of verbose cloning")
    return rows


def training(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What training noted, of the stages that trained.

    `curve` holds [step, loss, learning rate], `heldout` [step, loss]; both may be empty.
    """
    found = []
    for stage in stages:
        notes = stage["notes"]
        if "loss_last" not in notes and "curve" not in notes:
            continue
        known = {k: notes.get(k) for k in ("steps", "loss_first", "loss_last", "training_tokens", "training_seconds")}
        found.append(
            {
                "stage": stage["stage"],
                "title": stage["title"],
                "examples": stage["kept"],
                **known,
                "parity": notes.get("parity") or {},
                "curve": _points(notes.get("curve"), 3),
                "heldout": _points(notes.get("heldout"), 2),
            }
        )
    return found


def _points(value: object, width: int) -> list[list[float]]:
    """The points of a curve that are whole; an old or edited ledger may hold anything."""
    rows = value if isinstance(value, list) else []
    return [
        list(row)
        for row in rows
        if isinstance(row, list) and len(row) == width and all(type(v) in (int, float) for v in row)
    ]


def compared(run: RunDir, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Plan against actual, of every ledger; planned values are null where nothing was planned."""
    made = costs.read(run.plan)
    planned = {s.stage: s for s in made.stages} if made else {}
    rows = []
    for stage in stages:
        plan = planned.get(stage["stage"])
        tokens = stage["generated_tokens"] or stage["notes"].get("training_tokens", 0)
        rows.append(
            {
                "stage": stage["stage"],
                "title": stage["title"],
                "finished": stage["finished"],
                "requests": stage["requests"],
                "tokens": tokens,
                "seconds": stage["seconds"],
                "planned_requests": plan.requests if plan else None,
                "planned_tokens": plan.generated_tokens if plan else None,
                "planned_seconds": plan.seconds if plan else None,
            }
        )
    return {
        "stages": rows,
        "seconds": sum(r["seconds"] for r in rows),
        "planned_seconds": made.seconds if made else None,
        "memory_mb": made.memory_mb if made else None,
        "disk_mb": made.disk_mb if made else None,
        "actual_disk_mb": _megabytes(run),
    }


def _megabytes(run: RunDir) -> float:
    """What the run's files take; the viewer's cache is none of them."""
    apart = (run.view.name, run.jsonl("feedback").name)
    files = (f for f in run.path.rglob("*") if f.is_file() and not f.name.startswith(apart))
    return sum(f.stat().st_size for f in files) / 1e6
