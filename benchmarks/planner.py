"""Where the planner's constants come from, and how far its plans are off: runs' own records, and public figures.

    python benchmarks/planner.py record NAME=RECIPE:RUN...  # what finished runs took -> data/planner.json
    python benchmarks/planner.py fit quick again     # the constants of sizes.py (the first) and the pace (all of them)
    python benchmarks/planner.py check standard      # plan and run, stage by stage; measurements.md has its rows
    python benchmarks/planner.py public              # capacity.py against published throughputs

`record` needs a model and runs; the others read what it wrote. `tests/test_planner.py` holds that `fit` gives the
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

FOLDER = Path(__file__).parent / "data"
RECORDS, PUBLIC = FOLDER / "planner.json", FOLDER / "throughput.json"
WINDOW = 8
"""Requests; as many as run at once."""
Record = dict[str, Any]


# -- what a run took -------------------------------------------------------------------------------------------------


def record(name: str, run: Path) -> Record:
    """What the run's recipe (and how it differs from the shipped one of that name), journal and calibration say."""
    journal = sqlite3.connect(f"file:{run / 'journal.sqlite'}?mode=ro", uri=True)
    value = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
    value["evaluate"]["benchmarks"], value["stages"] = [], list(recipes.STAGES)  # a run can be made stage by stage
    (asked,) = journal.execute("SELECT count(*) FROM stages WHERE stage = 'behaviour' AND finished").fetchone()
    value["evaluate"]["tasks"] = ["behaviour"] if asked else []
    recipe = recipes.Recipe.model_validate(value)
    model = sources.resolve(recipe.model)
    speed = calibrate(model.gguf, model.identity, recipe.engine.context, recipe.engine.threads)
    shipped, mine = (r.model_dump(mode="json") for r in (recipes.load(name), recipe))
    changed = [line.replace(": ", "=", 1).partition("=") for line in recipes.differences(shipped, mine)]
    settings = [f"{key}={change.rpartition(' -> ')[2]}" for key, _, change in changed]
    found: Record = {"recipe": name, "settings": settings, "calibration": asdict(speed), "stages": {}}
    for stage, seconds, notes in journal.execute("SELECT stage, seconds, notes FROM stages WHERE finished"):
        known = json.loads(notes)
        fates = journal.execute("SELECT state, reason, count(*) FROM rows WHERE stage = ? GROUP BY 1, 2", (stage,))
        entry: Record = {"seconds": round(seconds, 1), "rows": [list(fate) for fate in fates]}
        asked = [
            (row[0], row[1], round(row[2], 2), [part["generated_tokens"] for part in json.loads(row[3] or "[]")])
            for row in journal.execute(
                "SELECT prompt_tokens, generated_tokens, seconds, raw FROM work "
                "WHERE stage = ? AND state = 'raw_saved' AND generated_tokens > 0 ORDER BY rowid",
                (stage,),
            )
        ]
        if asked:
            (spent,) = journal.execute("SELECT sum(seconds) FROM sessions WHERE stage = ?", (stage,)).fetchone()
            entry |= {"requests": len(asked), "prompt": sum(a[0] for a in asked), "generated": sum(a[1] for a in asked)}
            entry |= {"generating": round(spent, 1), "paces": paces(asked), "steps": steps(asked)}
        elif "preflight" in known:
            rows, tokens, loss = (int(word.replace(",", "")) for word in numbers(known["preflight"]))
            entry |= {"examples": rows, "tokens": tokens, "loss_tokens": loss, "optimiser_steps": known["steps"]}
            entry |= {key: known[key] for key in ("training_tokens", "training_seconds")}
        else:
            continue
        found["stages"][stage] = entry
    return found


def numbers(preflight: str) -> list[str]:
    """Rows, tokens and tokens with loss of `97 rows, 9,533 tokens, 4,864 of them with loss ...`."""
    return [part.split()[0] for part in preflight.split(", ")][:3]


def paces(asked: list[tuple[int, int, float, list[int]]]) -> list[int]:
    """Milliseconds a generated token of one request, of each so many requests in a row."""
    windows = [asked[at : at + WINDOW] for at in range(0, len(asked) - WINDOW + 1, WINDOW)]
    return [round(1000 * sum(a[2] for a in w) / sum(a[1] for a in w)) for w in windows]


def steps(asked: list[tuple[int, int, float, list[int]]]) -> list[float]:
    """Mean generated tokens of each step of a request."""
    most = max(len(a[3]) for a in asked)
    return [round(sum(a[3][n] for a in asked if len(a[3]) > n) / len(asked), 2) for n in range(most)]


def recipe_of(run: Record) -> recipes.Recipe:
    return recipes.load(run["recipe"], run["settings"])


def load(name: str) -> Record:
    found = json.loads(RECORDS.read_text("utf-8"))
    return dict(found[name])


# -- the constants ---------------------------------------------------------------------------------------------------


def fit(run: Record) -> dict[str, float]:
    """The constants that the run shows, each by the formula that the plan uses it in."""
    stages, recipe = run["stages"], recipe_of(run)

    def kept(stage: str, *besides: str) -> float:
        return sum(n for state, reason, n in stages[stage]["rows"] if state == "kept" or reason in besides)

    def mean(stage: str) -> float:
        return float(stages[stage]["generated"] / stages[stage]["requests"])

    trained = [stages[stage] for stage in costs.ADAPTERS]
    loss = {stage: stages[stage]["loss_tokens"] / stages[stage]["examples"] for stage in costs.ADAPTERS}
    thought, citation, answer = stages["align"]["steps"]
    lines = sizes.topic_lines(recipe, constitution.load(recipe.constitution))
    found = {
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
        found["behaviour"] = mean("behaviour")
    return found


def pace(runs: list[Record]) -> float:
    """Generated tokens a second against the calibration's, in stage 1: later stages ran beside other work."""
    seconds = tokens = 0.0
    for run in runs:
        speed = Calibration(**run["calibration"])
        for stage in (run["stages"][name] for name in ("self_instruct", "topics", "red_team")):
            seconds += stage["generating"] - stage["prompt"] / speed.prompt_tokens_per_second
            tokens += stage["generated"] / speed.tokens_per_second
    return tokens / seconds


def constants() -> dict[str, float]:
    """The constants as they stand."""
    lengths = {name: getattr(sizes.EMBEDDED, name) for name in asdict(sizes.EMBEDDED)}
    names = ("prompts_per_request", "questions_kept", "answers_kept", "verbose_kept", "turn_tokens")
    found = lengths | {name: getattr(sizes, name.upper()) for name in names}
    found |= {f"kept_length.{stage}": value for stage, value in sizes.KEPT_LENGTH.items()}
    return found | {"pace": costs.PACE}


# -- plan and run ----------------------------------------------------------------------------------------------------


def planned(run: Record) -> dict[str, costs.StagePlan]:
    """The plan of the run's recipe on the machine that it ran on."""
    speed, recipe = Calibration(**run["calibration"]), recipe_of(run)
    machine = costs.Machine(speed.slots, speed, 0.0, True, True, recipe.engine.context, 0.0)
    made = costs.plan(recipe, constitution.load(recipe.constitution), machine)
    return {stage.stage: stage for stage in made.stages if stage.stage in run["stages"]}


def spread(entry: Record) -> str:
    """Milliseconds a token of one request: the fastest tenth, the median, the slowest tenth of the windows."""
    if len(found := sorted(entry.get("paces", ()))) < 10:
        return ""
    tenth = len(found) // 10
    return f"{found[tenth]} / {found[len(found) // 2]} / {found[-1 - tenth]}"


def off(plan: float, real: float) -> str:
    return f"{plan / real - 1:+.0%}".replace("-", "−")


def check(name: str) -> None:
    """The table, and the rows of measurements.md."""
    run, rows = load(name), list[str]()
    print(f"| `{name}` | tokens, plan → run | | seconds, plan → run | | ms a token |\n|---|---|---|---|---|---|")
    total = [0.0, 0.0]
    for stage, made in planned(run).items():
        entry = run["stages"][stage]
        tokens, seconds = entry.get("generated", entry.get("training_tokens")), entry["seconds"]
        total = [total[0] + (made.seconds or 0), total[1] + seconds]
        wrong = off(made.generated_tokens, tokens), off(made.seconds or 0, seconds)
        row = [stage, f"{made.generated_tokens:,} → {tokens:,}", wrong[0], f"{made.seconds:,.0f} → {seconds:,.0f}"]
        row += [wrong[1], spread(entry)]
        print(f"| {' | '.join(row)} |")
        rows.append(f"| `plan.error_{stage}` | tokens {wrong[0]}, time {wrong[1]} |")
    print(f"\nall: {total[0]:,.0f} → {total[1]:,.0f} s, {off(*total)}\n", *rows, sep="\n")


# -- public figures --------------------------------------------------------------------------------------------------


def public() -> list[tuple[Record, float]]:
    """Published figures, and tokens a second of a replica that is never idle by `capacity`."""
    found = []
    for row in json.loads(PUBLIC.read_text("utf-8")):
        shape, gpu, gpus = hardware.SHAPES[row["model"]], hardware.GPUS[row["gpu"]], row["gpus"]
        work = sizes.Generation("", 1, row["prompt"], 0, row["answer"], row["answer"])
        # Where the batch is not published, as many as fit, and at most what that engine takes.
        batch = row["batch"] or min(2048, capacity.room(work, shape, gpu, gpus))
        step = capacity.step_seconds(shape, gpu, gpus, batch, work.own + work.tokens / 2)
        prefill = capacity.prefill_seconds(shape, gpu, gpus, work.own / work.tokens)
        found.append((row, 1 / (step / batch + prefill)))
    return found


def show_public() -> None:
    print("| model, GPUs | prompt/answer tokens | published | ours | |\n|---|---|---|---|---|")
    ratios = []
    for row, ours in public():
        what = f"{row['model']}, {row['gpus']} {row['gpu']}{'' if row['seen'] is False else ' (seen)'}"
        lengths, published = f"{row['prompt']:,}/{row['answer']:,}", row["published"]
        print(f"| {what} | {lengths} | {published:,} | {ours:,.0f} | {off(ours, published)} |")
        ratios += [] if row["seen"] else [ours / published]
    inside = sum(1 / capacity.SPEED_RANGE <= ratio <= capacity.SPEED_RANGE for ratio in ratios)
    mean = math.exp(statistics.mean(map(math.log, ratios)))
    print(f"\n{inside} of {len(ratios)} not seen before within the range; geometric mean of ours/published {mean:.2f}")


def show_fit(names: list[str]) -> None:
    runs, now = [load(name) for name in names], constants()
    for key, value in (fit(runs[0]) | {"pace": pace(runs)}).items():
        print(f"{key:20} {value:8.3f}   in use {now[key]:g}")


def write(pairs: list[str]) -> None:
    """Records of runs, beside those that are there."""
    kept = json.loads(RECORDS.read_text("utf-8")) if RECORDS.exists() else {}
    for pair in pairs:
        name, _, made = pair.partition("=")
        recipe, _, path = made.partition(":")
        kept[name] = record(recipe, Path(path))
    runs = ",\n".join(f"{json.dumps(name)}: {json.dumps(run, ensure_ascii=False)}" for name, run in kept.items())
    RECORDS.write_text(f"{{\n{runs}\n}}\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "fit", "check", "public"))
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    if given.what == "public":
        show_public()
    elif given.what == "record":
        write(given.names)
    elif given.what == "fit":
        show_fit(given.names)
    else:
        for name in given.names:
            check(name)


if __name__ == "__main__":
    main()
