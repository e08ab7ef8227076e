"""List the tasks of an evaluation.

A task that compares the log-likelihoods of texts is a `ScoredTask`. Its module defines the item, a reader (`ORIGIN`)
and forms, which turn an item into texts and log-probabilities into measures; `hhh.py` is the shortest example. A task
that models answer in their own words is an `OpenEndedTask`; `open_ended.py` is the shortest example. To add a task,
write its module and extend `TASKS`: the command line, recipes, resume, usage log and scores need no change. A new type
of row goes to `evaluation/records.py`; a title, and which direction is better, to `report/scores.py`; the name to the
help of `selfalign evaluate`.

`heldout` and `probes` are not in `TASKS`: they are the stage `evaluate` and `selfalign constitution test`.
"""

from __future__ import annotations

from typing import Any

from selfalign.evaluation.benchmarks import Origin
from selfalign.evaluation.results import Task
from selfalign.evaluation.scoring import ScoredTask
from selfalign.evaluation.tasks import hhh, open_ended, truthfulqa
from selfalign.evaluation.tasks.behaviour import Behaviour
from selfalign.evaluation.tasks.pressure import Pressure

TASKS: dict[str, Task[Any]] = {
    "hhh": ScoredTask(hhh.ORIGIN, hhh.FORMS, by_subset=True),
    "truthfulqa": ScoredTask(truthfulqa.ORIGIN, truthfulqa.FORMS),
    "truthfulqa-generation": truthfulqa.TruthfulQAGeneration(),
    "behaviour": Behaviour(),
    "pressure": Pressure(),
    "vicuna": open_ended.OpenQuestions(open_ended.VICUNA),
    "questions": open_ended.OpenQuestions(open_ended.QUESTIONS),
}
"""The task's name on the command line, in recipes and of its file of rows -> the task."""

ORIGINS: dict[str, Origin] = {task.origin.name: task.origin for task in TASKS.values() if task.origin}
"""Benchmark -> how it is loaded; two tasks may share a benchmark."""


def task_of(label: str) -> Task[Any]:
    """Return the task of a label in the usage log: the label of its benchmark and the task's suffix."""
    name = label.split(" ")[0]
    matches = [
        t for t in TASKS.values() if name == (t.origin.name if t.origin else t.name) and label.endswith(t.suffix)
    ]
    return max(matches, key=lambda t: len(t.suffix))
