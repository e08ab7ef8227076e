"""The plan's tokens and times against what finished runs took, stage by stage. Reads the runs; changes nothing in them.

    python benchmarks/planner.py runs/standard            # a run that the constants were not fitted on

Uses this machine's calibration of the embedded model. A shared machine stalls: "at its median speed" is what a stage
would have taken had each sixteen requests in a row run as fast as the median sixteen, idle slots counted as they were.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
from pathlib import Path

import yaml

from selfalign import constitution, costs, models
from selfalign import recipe as recipes
from selfalign.calibrate import calibration

WINDOW = 16
LEAST_SECONDS = 60


def actual(run: Path) -> dict[str, tuple[int, float, float | None]]:
    """Stage -> (tokens, seconds, seconds at its median speed)."""
    journal = sqlite3.connect(f"file:{run / 'journal.sqlite'}?mode=ro", uri=True)
    found: dict[str, tuple[int, float, float | None]] = {}
    for stage, seconds, notes in journal.execute("SELECT stage, seconds, notes FROM stages WHERE finished"):
        rows = journal.execute(
            "SELECT generated_tokens, seconds FROM work WHERE stage = ? ORDER BY rowid", (stage,)
        ).fetchall()
        tokens = sum(row[0] for row in rows) or json.loads(notes).get("training_tokens", 0)
        found[stage] = (tokens, seconds, steady(rows, seconds))
    return found


def steady(rows: list[tuple[int, float]], seconds: float) -> float | None:
    """The stage's seconds with every window at the median window's seconds a token."""
    windows = [rows[at : at + WINDOW] for at in range(0, len(rows) - WINDOW + 1, WINDOW)]
    paces = [sum(r[1] for r in w) / tokens for w in windows if (tokens := sum(r[0] for r in w))]
    taken = sum(row[1] for row in rows)
    if len(paces) < 4 or not taken:
        return None
    return seconds * statistics.median(paces) * sum(row[0] for row in rows) / taken


def planned(run: Path) -> dict[str, costs.StagePlan]:
    """Today's plan of the run's own recipe, on this machine."""
    value = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
    value["evaluate"]["benchmarks"] = []
    recipe = recipes.Recipe.model_validate(value)
    model = models.resolve(recipe.model)
    speed = calibration(model.gguf, model.identity, recipe.engine.context, recipe.engine.threads)
    texts = constitution.load(str(run / "constitution.yaml"))
    return {stage.stage: stage for stage in costs.make(recipe, texts, model, speed, None).stages}


def off(plan: float, real: float) -> str:
    return f"{plan / real - 1:+.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for run in parser.parse_args().runs:
        plan, real = planned(run), actual(run)
        print(
            f"\n{run.name}\n\n| stage | tokens | | seconds | | at its median speed | |\n|---|---|---|---|---|---|---|"
        )
        errors: dict[str, float] = {}
        for stage, made in plan.items():
            if stage not in real or made.seconds is None:
                continue
            tokens, seconds, calm = real[stage]
            errors[stage] = made.seconds / seconds - 1
            row = [stage, f"{made.generated_tokens:,} → {tokens:,}", off(made.generated_tokens, tokens)]
            row += [f"{made.seconds:,.0f} → {seconds:,.0f}", off(made.seconds, seconds)]
            row += [f"{made.seconds:,.0f} → {calm:,.0f}", off(made.seconds, calm)] if calm else ["", ""]
            print(f"| {' | '.join(row)} |")
        long = {stage: error for stage, error in errors.items() if real[stage][1] >= LEAST_SECONDS}
        worst = max(long, key=lambda stage: abs(long[stage]))
        inside = sum(abs(error) <= 0.2 for error in long.values())
        whole = off(sum(plan[s].seconds or 0 for s in errors), sum(real[s][1] for s in errors))
        print(
            f"\n| `plan.worst_error` | {worst} {long[worst]:+.0%}; {inside} of {len(long)} stages of a minute and more "
            f"within 20 %; all together {whole} | 20 % | `python benchmarks/planner.py {run.name}` | |"
        )


if __name__ == "__main__":
    main()
