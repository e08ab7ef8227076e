"""Collect the responses of all models to the same prompts: held-out prompts and open questions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from selfalign.data.records import Response, read_jsonl, stream_jsonl
from selfalign.evaluation.records import Answer, OpenAnswer
from selfalign.evaluation.tasks import TASKS
from selfalign.quality.rouge import count_words
from selfalign.report.scores import title
from selfalign.run.directory import RunDir

MAX_PROMPTS = 12
"""Held-out prompts, and questions of each benchmark, in the report; 5_evaluation has all."""


def gather(run: RunDir) -> dict[str, Any]:
    """Return `side_by_side` (the first held-out prompts), `heldout` (the number of all) and `questions`."""
    path, open_questions = run.jsonl("answers"), questions(run)
    if not path.exists():
        return {"side_by_side": [], "heldout": 0, "questions": open_questions}
    ids = list(dict.fromkeys(answer.id for answer in stream_jsonl(path, Answer)))
    first = set(ids[:MAX_PROMPTS])
    rows = side_by_side(a for a in stream_jsonl(path, Answer) if a.id in first)
    aligned = _aligned_responses(run, first)
    rows = [{**row, "constitution": aligned.get(row["id"])} for row in rows]
    return {"side_by_side": rows, "heldout": len(ids), "questions": open_questions}


def questions(run: RunDir) -> list[dict[str, Any]]:
    """Return {title, file, rows, number} of each benchmark of open questions, with `rows` as of `side_by_side`."""
    benchmarks = []
    for task_name, task in TASKS.items():
        if task.record is not OpenAnswer:
            continue
        path = run.evaluation / f"{task_name}.jsonl"
        answers = read_jsonl(path, OpenAnswer) if path.exists() else []
        for benchmark in dict.fromkeys(a.benchmark for a in answers):
            selected = [a for a in answers if a.benchmark == benchmark]
            items = sorted({a.item for a in selected})
            rows = side_by_side(_as_answer(a, selected) for a in selected if a.item in items[:MAX_PROMPTS])
            rows.sort(key=lambda row: items.index(int(row["id"])))
            name = str(path.relative_to(run.path))
            benchmarks.append({"title": title(benchmark), "file": name, "rows": rows, "number": len(items)})
    return benchmarks


def _as_answer(answer: OpenAnswer, answers: list[OpenAnswer]) -> Answer:
    """Return it under the model's name, with the system prompt's name if the model answered under several."""
    several = any(a.model == answer.model and a.prompt != answer.prompt for a in answers)
    name = f"{answer.model} · {answer.prompt}" if several else answer.model
    return Answer(str(answer.item), answer.question, name, answer.answer, answer.ended, count_words(answer.answer))


def side_by_side(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Return [{id, message, answers: {model: {text, ended, words}}}] in the order of the answers."""
    rows: dict[str, dict[str, Any]] = {}
    for answer in answers:
        row = rows.setdefault(answer.id, {"id": answer.id, "message": answer.message, "answers": {}})
        row["answers"][answer.model] = {"text": answer.answer, "ended": answer.ended, "words": answer.words}
    return list(rows.values())


def _aligned_responses(run: RunDir, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Return stage 2's internal thoughts and responses to those prompts, if the filters kept them."""
    path = run.jsonl("responses")
    if not path.exists():
        return {}
    return {
        r.id: {"thoughts": r.thoughts, "answer": r.response, "principles": r.principles}
        for r in stream_jsonl(path, Response)
        if r.id in ids
    }
