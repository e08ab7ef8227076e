"""Runs with made-up results, for the comparison over seeds."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from selfalign import constitution as constitutions
from selfalign.data.records import write_jsonl
from selfalign.evaluation.records import BehaviourAnswer
from selfalign.evaluation.results import ResultStore
from selfalign.evaluation.tasks.behaviour import behaviour_scores
from selfalign.run import recipe as recipes
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen

PROMPTS = {"base": "standard", "prompted base": "constitution", "engraved": "standard", "final": "standard"}
RATES = {"base": 0.2, "prompted base": 0.3, "engraved": 0.6, "final": 0.7}
"""Model -> the share of its responses that are appropriate."""


def answers(seed: int, pairs: int = 20, label: str = "behaviour") -> list[BehaviourAnswer]:
    """Responses of every model to scenarios and their twins, of groups that count."""
    rng, rows = random.Random(seed), []
    for model, prompt in PROMPTS.items():
        for item in range(2 * pairs):
            suits = rng.random() < RATES[model]
            group = ("live", "harmful")[item % 2]
            row = BehaviourAnswer(
                f"{item}", label, item, group, "", f"Question {item}?", model, prompt, "An answer.", True, [],
            )  # fmt: skip
            rows.append(replace(row, twin=item % 2 == 1, pair=f"pair {item // 2}", appropriate=suits, evaded=not suits))
    return rows


def write(
    path: Path, seed: int, *settings: str, rows: list[BehaviourAnswer] | None = None, rules: str = "1", base: str = "b"
) -> RunDir:
    """Write a run with results; return it.

    Args:
        rules: the hash of the scenarios and the version of the rules.
        base: the identity of the base model.
    """
    recipe = recipes.load("quick", ["engine.kind=fake", f"seed={seed}", *settings])
    run = RunDir.create(path, recipe, constitutions.load("default"))
    rows = answers(seed) if rows is None else rows
    run.evaluation.mkdir()
    write_jsonl(run.evaluation / "behaviour.jsonl", rows)
    entry = {"sha256": rules, "entrants": {"base|standard": base}}
    (run.evaluation / "benchmarks.json").write_text(json.dumps({r.benchmark: entry for r in rows}), "utf-8")
    scores = behaviour_scores(rows)
    ResultStore(run.evaluation, run.journal, Screen(-1)).write_scores(scores)
    return run
