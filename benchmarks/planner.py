"""Fit the planner's constants to finished runs, and compare its plans with runs and with public figures.

    python benchmarks/planner.py record NAME=RUN...  # record finished runs in data/planner.json
    python benchmarks/planner.py fit quick again     # constants of sizes.py (first run), throughput factor (all runs)
    python benchmarks/planner.py check standard      # plan and run for each stage, with the rows of measurements.md
    python benchmarks/planner.py public              # capacity.py against published throughputs

`record` needs a model and runs; the others read its file. `tests/planning/test_planner.py` checks that `fit` gives the
constants in use.
"""

from __future__ import annotations

import argparse
import json
import math
import sqlite3
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from selfalign import constitution
from selfalign.generation.calibration import Calibration, calibrate
from selfalign.model import sources
from selfalign.planning import capacity, costs, hardware, sizes
from selfalign.run import recipe as recipes
from selfalign.run.context import ADAPTER_STAGES

FOLDER = Path(__file__).parent / "data"
RECORDS, PUBLIC = FOLDER / "planner.json", FOLDER / "throughput.json"
WINDOW = 8
"""Requests in a window; the number that runs at once."""
Record = dict[str, Any]


# -- records of runs -------------------------------------------------------------------------------------------------


def record(run: Path) -> Record:
    """Return a record of the run: its whole recipe, because shipped ones change, calibration, numbers of each stage."""
    journal = sqlite3.connect(f"file:{run / 'journal.sqlite'}?mode=ro", uri=True)
    value = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
    value["evaluate"]["benchmarks"], value["stages"] = (
        [],
        list(recipes.STAGES),
    )  # stages may have run one by one
    (evaluated,) = journal.execute("SELECT count(*) FROM stages WHERE stage = 'behaviour' AND finished").fetchone()
    value["evaluate"]["tasks"] = ["behaviour"] if evaluated else []
    recipe = recipes.Recipe.model_validate(value)
    model = sources.resolve(recipe.model)
    speed = calibrate(model.gguf, model.identity, recipe.engine.context, recipe.engine.threads)
    result: Record = {"recipe": recipe.model_dump(mode="json"), "calibration": asdict(speed), "stages": {}}
    for stage, seconds, notes in journal.execute("SELECT stage, seconds, notes FROM stages WHERE finished"):
        details = json.loads(notes)
        outcomes = journal.execute("SELECT state, reason, count(*) FROM rows WHERE stage = ? GROUP BY 1, 2", (stage,))
        entry: Record = {"seconds": round(seconds, 1), "rows": [list(outcome) for outcome in outcomes]}
        requests = [
            (row[0], row[1], round(row[2], 2), [part["generated_tokens"] for part in json.loads(row[3] or "[]")])
            for row in journal.execute(
                "SELECT prompt_tokens, generated_tokens, seconds, raw FROM work "
                "WHERE stage = ? AND state = 'raw_saved' AND generated_tokens > 0 ORDER BY rowid",
                (stage,),
            )
        ]
        if requests:
            (spent,) = journal.execute("SELECT sum(seconds) FROM sessions WHERE stage = ?", (stage,)).fetchone()
            entry |= {
                "requests": len(requests),
                "prompt": sum(a[0] for a in requests),
                "generated": sum(a[1] for a in requests),
            }
            entry |= {"generating": round(spent, 1), "ms_per_token": ms_per_token(requests), "steps": steps(requests)}
        elif "preflight" in details:
            rows, tokens, loss = (int(word.replace(",", "")) for word in numbers(details["preflight"]))
            entry |= {"examples": rows, "tokens": tokens, "loss_tokens": loss, "optimiser_steps": details["steps"]}
            entry |= {key: details[key] for key in ("training_tokens", "training_seconds")}
        else:
            continue
        result["stages"][stage] = entry
    return result


def numbers(preflight: str) -> list[str]:
    """Return rows, tokens and loss tokens of `97 rows, 9,533 tokens, 4,864 of them with loss ...`."""
    return [part.split()[0] for part in preflight.split(", ")][:3]


def ms_per_token(requests: list[tuple[int, int, float, list[int]]]) -> list[int]:
    """Return the milliseconds per generated token of a request, for each window of requests."""
    windows = [requests[at : at + WINDOW] for at in range(0, len(requests) - WINDOW + 1, WINDOW)]
    return [round(1000 * sum(r[2] for r in w) / sum(r[1] for r in w)) for w in windows]


def steps(requests: list[tuple[int, int, float, list[int]]]) -> list[float]:
    """Return the mean generated tokens of each step of a request."""
    most = max(len(r[3]) for r in requests)
    return [round(sum(r[3][n] for r in requests if len(r[3]) > n) / len(requests), 2) for n in range(most)]


def recipe_of(run: Record) -> recipes.Recipe:
    """Return the recipe that the run was made with."""
    return recipes.Recipe.model_validate(run["recipe"])


_QUESTION_TYPES = 20
"""Number of question types of the shipped constitution when the runs were recorded."""


def load(name: str) -> Record:
    return dict(json.loads(RECORDS.read_text("utf-8"))[name])


# -- the constants ---------------------------------------------------------------------------------------------------


def fit(run: Record) -> dict[str, float]:
    """Return the constants that fit the run, by the formulas of the plan."""
    stages, recipe = run["stages"], recipe_of(run)

    def kept(stage: str, *reasons: str) -> float:
        return sum(n for state, reason, n in stages[stage]["rows"] if state == "kept" or reason in reasons)

    def mean(stage: str) -> float:
        return float(stages[stage]["generated"] / stages[stage]["requests"])

    trained = [stages[stage] for stage in ADAPTER_STAGES]
    loss = {stage: stages[stage]["loss_tokens"] / stages[stage]["examples"] for stage in ADAPTER_STAGES}
    thought, citation, answer = stages["align"]["steps"]
    texts = constitution.load(recipe.constitution)
    lines = sizes.topic_lines(recipe, texts) * _QUESTION_TYPES / len(texts.question_types)
    fitted = {
        "prompts_per_request": kept("self_instruct", "more than wanted") / stages["self_instruct"]["requests"],
        "questions_kept": kept("red_team", "more than wanted") / stages["red_team"]["requests"],
        "answers_kept": kept("align") / stages["align"]["requests"],
        "verbose_kept": kept("verbose_responses") / stages["verbose_responses"]["requests"],
        "topic_line": stages["topics"]["generated"] / lines,
        "question": mean("red_team"),
        "thought": thought,
        "citation": citation,
        "answer": answer,
        "verbose": mean("verbose_responses"),
        "evaluation": mean("evaluate"),
        "turn_tokens": sum(t["tokens"] - t["loss_tokens"] for t in trained) / sum(t["examples"] for t in trained),
        "kept_length.engrave": loss["engrave"] / answer,
        "kept_length.verbose_cloning": loss["verbose_cloning"] / mean("verbose_responses"),
    }
    if "behaviour" in stages:
        fitted["behaviour"] = mean("behaviour")
    return fitted


def throughput_factor(runs: list[Record]) -> float:
    """Return tokens per second in stage 1 relative to the calibration; other work ran during later stages."""
    seconds = tokens = 0.0
    for run in runs:
        speed = Calibration(**run["calibration"])
        for stage in (run["stages"][name] for name in ("self_instruct", "topics", "red_team")):
            seconds += stage["generating"] - stage["prompt"] / speed.prompt_tokens_per_second
            tokens += stage["generated"] / speed.tokens_per_second
    return tokens / seconds


def constants() -> dict[str, float]:
    """Return the constants in use."""
    lengths = {name: getattr(sizes.EMBEDDED, name) for name in asdict(sizes.EMBEDDED)}
    names = ("prompts_per_request", "questions_kept", "answers_kept", "verbose_kept", "turn_tokens")
    values = lengths | {name: getattr(sizes, name.upper()) for name in names}
    values |= {f"kept_length.{stage}": value for stage, value in sizes.KEPT_LENGTH.items()}
    return values | {"throughput_factor": costs.THROUGHPUT_FACTOR}


# -- plan and run ----------------------------------------------------------------------------------------------------


def planned(run: Record) -> dict[str, costs.StagePlan]:
    """Return the plan of the run's recipe on its machine."""
    speed, recipe = Calibration(**run["calibration"]), recipe_of(run)
    machine = costs.Machine(speed.slots, speed, 0.0, True, True, recipe.engine.context, 0.0)
    plan = costs.plan(recipe, constitution.load(recipe.constitution), machine)
    return {stage.stage: stage for stage in plan.stages if stage.stage in run["stages"]}


def spread(entry: Record) -> str:
    """Return the 10th percentile, median and 90th percentile of milliseconds per token over the windows."""
    if len(times := sorted(entry.get("ms_per_token", ()))) < 10:
        return ""
    tenth = len(times) // 10
    return f"{times[tenth]} / {times[len(times) // 2]} / {times[-1 - tenth]}"


def error(plan: float, real: float) -> str:
    return f"{plan / real - 1:+.0%}".replace("-", "−")


def check(name: str) -> None:
    """Print plan and run of each stage, and the rows of measurements.md."""
    run, rows = load(name), list[str]()
    print(f"| `{name}` | tokens, plan → run | | seconds, plan → run | | ms per token |\n|---|---|---|---|---|---|")
    total = [0.0, 0.0]
    for stage, plan in planned(run).items():
        entry = run["stages"][stage]
        tokens, seconds = entry.get("generated", entry.get("training_tokens")), entry["seconds"]
        total = [total[0] + (plan.seconds or 0), total[1] + seconds]
        errors = error(plan.generated_tokens, tokens), error(plan.seconds or 0, seconds)
        row = [stage, f"{plan.generated_tokens:,} → {tokens:,}", errors[0], f"{plan.seconds:,.0f} → {seconds:,.0f}"]
        row += [errors[1], spread(entry)]
        print(f"| {' | '.join(row)} |")
        rows.append(f"| `plan.error_{stage}` | tokens {errors[0]}, time {errors[1]} |")
    print(f"\nall: {total[0]:,.0f} → {total[1]:,.0f} s, {error(*total)}\n", *rows, sep="\n")


# -- public figures --------------------------------------------------------------------------------------------------


def public() -> list[tuple[Record, float]]:
    """Return published figures, each with the tokens per second of a fully used replica by `capacity`."""
    results = []
    for row in json.loads(PUBLIC.read_text("utf-8")):
        shape, gpu, gpus = hardware.SHAPES[row["model"]], hardware.GPUS[row["gpu"]], row["gpus"]
        work = sizes.Generation("", 1, row["prompt"], 0, row["answer"], row["answer"])
        # Without a published batch size, use as many requests as fit, up to the engine's limit.
        batch = row["batch"] or min(2048, capacity.max_batch(work, shape, gpu, gpus))
        step = capacity.step_seconds(shape, gpu, gpus, batch, work.own + work.tokens / 2)
        prefill = capacity.prefill_seconds(shape, gpu, gpus, work.own / work.tokens)
        results.append((row, 1 / (step / batch + prefill)))
    return results


def show_public() -> None:
    print("| model, GPUs | prompt/answer tokens | published | ours | |\n|---|---|---|---|---|")
    ratios = []
    for row, ours in public():
        what = f"{row['model']}, {row['gpus']} {row['gpu']}{'' if row['seen'] is False else ' (seen)'}"
        lengths, published = f"{row['prompt']:,}/{row['answer']:,}", row["published"]
        print(f"| {what} | {lengths} | {published:,} | {ours:,.0f} | {error(ours, published)} |")
        ratios += [] if row["seen"] else [ours / published]
    inside = sum(1 / capacity.SPEED_RANGE <= ratio <= capacity.SPEED_RANGE for ratio in ratios)
    mean = math.exp(statistics.mean(map(math.log, ratios)))
    print(f"\n{inside} of {len(ratios)} unseen figures are within the range; geometric mean of ratios {mean:.2f}")


def show_fit(names: list[str]) -> None:
    runs, now = [load(name) for name in names], constants()
    for key, value in (fit(runs[0]) | {"throughput_factor": throughput_factor(runs)}).items():
        print(f"{key:20} {value:8.3f}   in use {now[key]:g}")


def write(pairs: list[str]) -> None:
    """Add records of runs to data/planner.json."""
    records = json.loads(RECORDS.read_text("utf-8")) if RECORDS.exists() else {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        records[name] = record(Path(path))
    runs = ",\n".join(f"{json.dumps(name)}: {json.dumps(run, ensure_ascii=False)}" for name, run in records.items())
    RECORDS.write_text(f"{{\n{runs}\n}}\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "fit", "check", "public"))
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.what == "public":
        show_public()
    elif options.what == "record":
        write(options.names)
    elif options.what == "fit":
        show_fit(options.names)
    else:
        for name in options.names:
            check(name)


if __name__ == "__main__":
    main()
