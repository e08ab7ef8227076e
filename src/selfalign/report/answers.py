"""Held-out prompts with what each model says to them, and what the base thought and said under the constitution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from selfalign.records import Answer, Response, stream_jsonl
from selfalign.run import RunDir

SHOWN = 12
"""Held-out prompts in the report; all are in 5_evaluation/answers.jsonl."""


def gather(run: RunDir) -> dict[str, Any]:
    """`side_by_side`, of the first held-out prompts, and `heldout`: how many were answered."""
    path = run.jsonl("answers")
    if not path.exists():
        return {"side_by_side": [], "heldout": 0}
    ids: dict[str, None] = {}
    for answer in stream_jsonl(path, Answer):
        ids.setdefault(answer.id)
    first = set(list(ids)[:SHOWN])
    rows = side_by_side(a for a in stream_jsonl(path, Answer) if a.id in first)
    under = _under_the_constitution(run, first)
    return {"side_by_side": [{**row, "constitution": under.get(row["id"])} for row in rows], "heldout": len(ids)}


def side_by_side(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """[{id, message, answers: {model: what it said}}] in the order of the rows."""
    rows: dict[str, dict[str, Any]] = {}
    for answer in answers:
        row = rows.setdefault(answer.id, {"id": answer.id, "message": answer.message, "answers": {}})
        row["answers"][answer.model] = {"text": answer.answer, "ended": answer.ended, "words": answer.words}
    return list(rows.values())


def _under_the_constitution(run: RunDir, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Stage 2's thoughts and answers to those prompts, where they were kept."""
    path = run.jsonl("responses")
    if not path.exists():
        return {}
    return {
        r.id: {"thoughts": r.thoughts, "answer": r.response, "principles": r.principles}
        for r in stream_jsonl(path, Response)
        if r.id in ids
    }
