"""List the tasks of an evaluation.

A task with right and wrong texts is a `ScoredTask`: a module with its item, a reader (`ORIGIN`) and forms that turn an
item into texts and log-probabilities into measures; `hhh.py` is the shortest example. A task that models answer in
their own words is an `OpenEndedTask`; `open_ended.py` is the shortest example. To add one, write its module and extend
`TASKS`: command line, recipe, resuming, usage log and scores follow from it.

`heldout` and `probes` are not benchmarks: they are the evaluation stage and `selfalign constitution test`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from selfalign.evaluation.asking import OpenEndedTask
from selfalign.evaluation.benchmarks import Origin
from selfalign.evaluation.scoring import ScoredTask
from selfalign.evaluation.tasks import hhh, open_ended, truthfulqa
from selfalign.evaluation.tasks.behaviour import Behaviour

Task: TypeAlias = ScoredTask | OpenEndedTask[Any]

TASKS: dict[str, Task] = {
    "hhh": ScoredTask("hhh", hhh.ORIGIN, hhh.FORMS, by_subset=True),
    "truthfulqa": ScoredTask("truthfulqa", truthfulqa.ORIGIN, truthfulqa.FORMS),
    "truthfulqa-generation": truthfulqa.TruthfulQAGeneration(),
    "behaviour": Behaviour(),
    "vicuna": open_ended.OpenQuestions(open_ended.VICUNA),
    "questions": open_ended.OpenQuestions(open_ended.QUESTIONS),
}
"""Name on the command line, in the recipe and of the file of rows -> the task."""

ORIGINS: dict[str, Origin] = {task.origin.name: task.origin for task in TASKS.values() if task.origin}
"""Benchmark -> how it is loaded; two tasks may share a benchmark."""


def task_of(label: str) -> Task:
    """Return the task of a label in the usage log: the label of its source and the task's suffix."""
    name = label.split(" ")[0]
    matches = [
        t for t in TASKS.values() if name == (t.origin.name if t.origin else t.name) and label.endswith(t.suffix)
    ]
    return max(matches, key=lambda t: len(t.suffix))
