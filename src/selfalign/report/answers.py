"""What each model says to the same prompts: held-out ones, with what the base thought and said under the constitution,
and open questions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from selfalign.data.records import Answer, OpenAnswer, Response, read_jsonl, stream_jsonl
from selfalign.evaluation.tasks import TASKS
from selfalign.report.scores import title
from selfalign.run.directory import RunDir

SHOWN = 12
"""Held-out prompts in the report, and questions of a benchmark; all are in the files of 5_evaluation."""


def gather(run: RunDir) -> dict[str, Any]:
    """`side_by_side`, of the first held-out prompts, `heldout`: how many were answered, and `questions`."""
    path, asked = run.jsonl("answers"), questions(run)
    if not path.exists():
        return {"side_by_side": [], "heldout": 0, "questions": asked}
    ids: dict[str, None] = {}
    for answer in stream_jsonl(path, Answer):
        ids.setdefault(answer.id)
    first = set(list(ids)[:SHOWN])
    rows = side_by_side(a for a in stream_jsonl(path, Answer) if a.id in first)
    under = _under_the_constitution(run, first)
    rows = [{**row, "constitution": under.get(row["id"])} for row in rows]
    return {"side_by_side": rows, "heldout": len(ids), "questions": asked}


def questions(run: RunDir) -> list[dict[str, Any]]:
    """[{title, file, rows, number}] of each benchmark of open questions: `rows` as `side_by_side` of the first ones."""
    found = []
    for name, task in TASKS.items():
        if task.record is not OpenAnswer:
            continue
        path = run.scores.with_name(f"{name}.jsonl")
        answers = read_jsonl(path, OpenAnswer) if path.exists() else []
        for benchmark in dict.fromkeys(a.benchmark for a in answers):
            mine = [a for a in answers if a.benchmark == benchmark]
            items = sorted({a.item for a in mine})
            rows = side_by_side(_answer(a, mine) for a in mine if a.item in items[:SHOWN])
            rows.sort(key=lambda row: items.index(int(row["id"])))
            name = str(path.relative_to(run.path))
            found.append({"title": title(benchmark), "file": name, "rows": rows, "number": len(items)})
    return found


def _answer(answer: OpenAnswer, all_: list[OpenAnswer]) -> Answer:
    """Under the model's name, and the prompt's where the model answered under several."""
    several = any(a.model == answer.model and a.prompt != answer.prompt for a in all_)
    name = f"{answer.model} · {answer.prompt}" if several else answer.model
    return Answer(str(answer.item), answer.question, name, answer.answer, answer.ended, len(answer.answer.split()))


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
