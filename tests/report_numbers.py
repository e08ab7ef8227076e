"""Helpers of the report's tests: a complete report.json, and the same with hostile texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfalign import constitution as constitutions
from selfalign.generation.engines.fake import Fake, default_script
from selfalign.pipeline import order
from selfalign.report import page
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</td></table></title></style></svg><img src=x onerror=alert(1)>",
    '" onload=\'x\' style="background:url(http://evil.example)"',
    "<!-- ]]> --> &lt;b&gt; &amp; &#60;",
    "{{ 7 * 7 }}{% for x in y %}{{ config }} $\\frac{1}{0}$",
    "\x1b[2J\x1b]0;owned\x07 red\x1b[31m",
    "\u202eevil\u202c \u2066abc\u2069 \u200f",
    "<svg/onload=alert(1)>javascript:alert(1)",
    "漢字 🙂 e\u0301" + "a" * 500,
]

_FREE_KEYS = {"dropped", "failed", "question_types", "counts", "by_source", "sources", "machine", "splits"}
"""Keys of dictionaries whose own keys come from files."""
_WORDS = {"engine", "of"}
"""Keys of fixed texts that decide what is shown."""


def score(text: str, **more: Any) -> dict[str, Any]:
    return {
        "benchmark": text, "measure": text, "model": text, "prompt": text, "n": 40, "value": 0.5, "low": 0.1,
        "high": 0.9, "vs": text, "difference": 0.25, "difference_low": -0.1, "difference_high": 0.6, "p": None, **more,
    }  # fmt: skip


def gather(path: Path) -> dict[str, Any]:
    """Return report.json of a finished run with the fake engine, with added comparisons, training and overlaps."""
    sizes = (
        "prompts.self_instruct.count=20",
        "prompts.red_team.count=20",
        "verbose_cloning.prompts=10",
        "evaluate.heldout_prompts=14",
    )
    recipe = recipes.load("quick", ["engine.kind=fake", "evaluate.limit=6", *sizes])
    context = Context(RunDir.create(path, recipe, constitutions.load("default")), Screen(-1))
    context._engine = Fake(parallel=context.slots(), script=default_script)
    context._engine_for = context.identities(("engrave", "verbose_cloning"))
    order.run_all(context)
    found = page.gather(context.run)
    context.release_engine()
    context.journal.close()
    assert json.loads((path / "report/report.json").read_text())["format"] == 2
    found["scores"] += [
        score("hhh", measure="accuracy", model=m, difference=None if m == "base" else 0.25) for m in ("base", "final")
    ]
    found["scores"] += [
        score("hhh/honest", measure="accuracy", p=0.04),
        score("hhh", measure="accuracy", vs="engraved"),
    ]
    found["scores"] += [score("mine", measure="loss", value=2.5, low=2.0, high=3.0)]
    trained = {"stage": "engrave", "title": "3 engrave", "examples": 4, "steps": 2, "loss_first": 2.5, "loss_last": 2.0}
    trained |= {"training_tokens": 9000, "training_seconds": 61.0}
    trained |= {"parity": {"agreement_adapter": 0.99, "positions": 200}}
    lengths = {"chosen_characters": 154.3, "rejected_characters": 112.3, "chosen_longer": 0.94}
    trained["preference"] = {"pairs": 3, "margin": 0.5, "accuracy": 0.9, **lengths}
    trained["on_policy"] = [{"responses": 60, "divergence_first": 0.51, "divergence_last": 0.42}] * 2
    found["training"] = [{**trained, "curve": [[1, 2.5, 1e-4], [2, 2.0, 5e-5]], "heldout": [[0, 2.6], [2, 2.1]]}]
    hit = {"stage": "align", "reason": "overlaps with x.csv", "text": "a text", "item": "an item"}
    found["data"]["contamination"] = {"against": ["probes", "x.csv"], "number": 7, "hits": [hit] * 6}
    responses = {
        m: {"text": "An answer", "ended": m == "base", "words": 2} for m in ("base", "final · two-shot", "x", "y")
    }
    question = {"id": "0", "message": "A question?", "answers": responses}
    found["questions"] = [
        {"title": "Vicuna questions", "file": "5_evaluation/vicuna.jsonl", "rows": [question], "number": 9}
    ]
    found["scores"].append(
        score("vicuna", measure="win rate against base, judged by x", difference=None, counts="1 won")
    )
    row = {"run": "run", "stage": "prompts", "id": "1", "text": "the same text"}
    largest = [{"size": 9, "rows": [row] * 9}]
    found["data"]["duplicates"]["prompts"]["near"] = {"clusters": 1, "rows": 9, "largest": largest}
    found["stages"][0]["failed"] = {"server gone": 2}
    found["engine"], found["notice"] = "llama_cpp", "Terms of the base."
    return found


def poisoned(value: Any, text: str, key: str = "") -> Any:
    """Return the value with every text, and every key from a file, replaced."""
    if isinstance(value, str):
        if key == "benchmark":  # a slash makes a subset of it
            return text.replace("/", "|")
        return value if key in _WORDS else text
    if isinstance(value, list):
        return [poisoned(v, text) for v in value]
    if isinstance(value, dict):
        free = key in _FREE_KEYS or any(isinstance(v, dict) and "ended" in v for v in value.values())
        return {(f"{text}{i}" if free else k): poisoned(v, text, k) for i, (k, v) in enumerate(value.items())}
    return value
