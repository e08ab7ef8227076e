"""What the report says about the data: how diverse, how often the same, what overlapped with a benchmark."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from selfalign.errors import UserError
from selfalign.quality import diversity, duplicates
from selfalign.records import Drop, Prompt, Response, read_jsonl, stream_jsonl
from selfalign.run import RunDir

_SHOWN = 5
"""Clusters that stand in the report, with at most `_ROWS` rows of each."""
_ROWS = 20
_LOOKED_AT = 50_000
"""Rows among which the report looks for copies; `selfalign duplicates` looks at all."""
_PAIRS = 20


@dataclass(frozen=True, slots=True)
class Row:
    """A text of a run."""

    run: str
    stage: str
    id: str
    text: str


def gather(run: RunDir) -> dict[str, Any]:
    """Everything about the run's data, as plain values."""
    return {"diversity": _diversity(run), "duplicates": _duplicates(run), "contamination": _contamination(run)}


def rows(run: RunDir, kind: str) -> list[Row]:
    """The run's texts of that kind: `prompts`, or `answers` of stages 2 and 4."""
    files = {"prompts": ["prompts"], "answers": ["responses", "clone_responses"]}[kind]
    found: list[Row] = []
    for name in files:
        path = run.jsonl(name)
        if path.exists() and kind == "prompts":
            found += [Row(run.path.name, name, p.id, p.message) for p in stream_jsonl(path, Prompt)]
        elif path.exists():
            found += [Row(run.path.name, name, r.id, r.response) for r in stream_jsonl(path, Response)]
    return found


def clusters(found: list[Row], method: str, **options: float) -> list[list[Row]]:
    """The rows that say the same, largest cluster first. Raises as `duplicates.semantic`."""
    return [[found[i] for i in one] for one in duplicates.METHODS[method]([row.text for row in found], **options)]


def _diversity(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = {}
    path = run.jsonl("prompts")
    if path.exists():
        prompts = read_jsonl(path, Prompt)
        found["prompts"] = diversity.describe([p.instruction for p in prompts])
        found["prompts"]["sources"] = dict(Counter(p.source for p in prompts))
        types = Counter(p.question_type for p in prompts if p.question_type)
        known = {t.name: 0 for t in run.constitution.question_types} if types else {}
        found["prompts"]["question_types"] = known | dict(types)
        pairs = diversity.verb_objects(p.instruction for p in prompts[: diversity.MOST])
        if pairs is not None:
            found["prompts"]["verb_objects"] = {
                "different": len(pairs),
                "commonest": [[verb, noun, number] for (verb, noun), number in pairs.most_common(_PAIRS)],
            }
    for title, name in (("answers", "responses"), ("verbose", "clone_responses")):
        if run.jsonl(name).exists():
            found[title] = diversity.describe([r.response for r in stream_jsonl(run.jsonl(name), Response)])
    return found


def _duplicates(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("prompts", "answers"):
        texts = rows(run, kind)
        some = texts if len(texts) <= _LOOKED_AT else random.Random(0).sample(texts, _LOOKED_AT)  # noqa: S311
        found[kind] = {"rows": len(texts), "looked_at": len(some)}
        found[kind] |= {method: summary(clusters(some, method), _SHOWN, _ROWS) for method in ("exact", "near")}
    return found


def summary(found: list[list[Row]], shown: int | None = None, most: int | None = None) -> dict[str, Any]:
    """How many clusters and rows in them; the largest ones, all of them and in full unless limited."""
    return {
        "clusters": len(found),
        "rows": sum(map(len, found)),
        "largest": [{"size": len(one), "rows": [asdict(row) for row in one[:most]]} for one in found[:shown]],
    }


def _contamination(run: RunDir) -> dict[str, Any]:
    hits = [d for d in run.journal.drops() if d.reason.startswith("overlaps with ")]
    return {
        "against": ["probes", *(Path(name).name for name in run.recipe.evaluate.benchmarks)],
        "hits": [_hit(d) for d in hits],
    }


def _hit(drop: Drop) -> dict[str, str]:
    text, _, item = drop.text.rpartition("\n~ ")
    return {"stage": drop.stage, "reason": drop.reason, "text": text, "item": item}


def across(runs: Sequence[RunDir], kind: str, method: str, **options: float) -> list[list[Row]]:
    """Clusters of rows of several runs, which are called by their paths.

    Raises:
        UserError: a run has no such rows, or see `duplicates.semantic`.
    """
    found: list[Row] = []
    for run in runs:
        texts = rows(run, kind)
        if not texts:
            raise UserError(f"{run.path} has no {kind} yet")
        found += [replace(row, run=str(run.path)) for row in texts]
    return clusters(found, method, **options)
