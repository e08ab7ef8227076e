"""What a hand decided on the rows that stages 3 and 4 train on: leave this one out, learn that one in other words.

`marks.jsonl` in the run; `selfalign view` writes it, and people may. A stage reads it before it trains: a row that is
left out is a drop, `by hand`, an edited one is learnt with its new answer. The marks of a stage belong to what it
follows from: where they change, it runs again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from selfalign.data.records import Example, content_hash, json_lines, to_json
from selfalign.errors import UserError
from selfalign.run.directory import RunDir
from selfalign.run.journal import OLD_STAGES
from selfalign.run.ledger import RowOutcome
from selfalign.system import atomic

BY_HAND = "by hand"
STAGES = ("engrave", "verbose_cloning")
_KEYS = {"stage", "id", "mark", "answer", "message"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A decision on a training example."""

    stage: str
    """engrave or clone: the training that it is for."""
    id: str
    """The example's id: that of its prompt."""
    mark: str
    """drop or edit."""
    answer: str = ""
    """Of an edit: what is learnt instead."""
    message: str = ""
    """The beginning of the user's message, so that people know the row; nothing reads it."""


Marks = dict[tuple[str, str], Mark]
"""(stage, id) -> the mark."""


def read(run: RunDir) -> Marks:
    """The run's marks; of several on one row the last counts.

    Raises:
        UserError: a line is no mark.
    """
    path, found = run.jsonl("marks"), Marks()
    for number, value in json_lines(path) if path.exists() else ():
        where = f"{path}:{number}"
        if unknown := value.keys() - _KEYS:
            raise UserError(f"{where}: unknown key {min(unknown)!r}; known are {', '.join(sorted(_KEYS))}")
        if wrong := next((k for k, v in value.items() if not isinstance(v, str)), None):
            raise UserError(f"{where}: {wrong} is {value[wrong]!r:.60}, not text")
        stage = OLD_STAGES.get(value.get("stage", ""), value.get("stage", ""))
        mark = Mark(stage, value.get("id", ""), value.get("mark", ""), value.get("answer", ""))
        if mark.stage not in STAGES or mark.mark not in ("drop", "edit") or not mark.id:
            raise UserError(f"{where}: a mark needs an id, a stage (engrave or clone) and a mark (drop or edit)")
        if mark.mark == "edit" and not mark.answer.strip():
            raise UserError(f"{where}: an edit needs an answer; mark: drop leaves the row out")
        found[mark.stage, mark.id] = replace(mark, message=value.get("message", ""))
    return found


def write(run: RunDir, marks: Marks) -> None:
    """Publish the marks, in a stable order."""
    rows = ({k: getattr(m, k) for k in Mark.__slots__ if getattr(m, k)} for _, m in sorted(marks.items()))
    atomic.write_text(run.jsonl("marks"), "".join(f"{to_json(row)}\n" for row in rows))


def digest(run: RunDir, stage: str) -> str:
    """A hash of what the stage's marks decide; empty where there are none. Raises as `read`."""
    found = sorted((m.id, m.mark, m.answer) for m in read(run).values() if m.stage == stage)
    return content_hash("marks", found) if found else ""


def apply(
    marks: Mapping[tuple[str, str], Mark], stage: str, examples: Sequence[Example]
) -> tuple[list[Example], list[RowOutcome]]:
    """The examples as the marks want them, and the fates of those that are left out."""
    kept: list[Example] = []
    fates: list[RowOutcome] = []
    for position, example in enumerate(examples):
        mark = marks.get((stage, example.id))
        if mark is None:
            kept.append(example)
        elif mark.mark == "edit":
            kept.append(replace(example, assistant=mark.answer.strip()))
        else:
            fates.append(RowOutcome(example.id, position, "dropped", BY_HAND, f"{example.user}\n{example.assistant}"))
    return kept, fates


def of_run(run: RunDir, stage: str, examples: Sequence[Example]) -> tuple[list[Example], list[RowOutcome], str]:
    """As `apply`, with the run's own marks; and a line about what they did, empty where there are none."""
    marks = {key: mark for key, mark in read(run).items() if mark.stage == stage}
    kept, fates = apply(marks, stage, examples)
    if not marks:
        return kept, fates, ""
    edits = sum(m.mark == "edit" for e in examples if (m := marks.get((stage, e.id))))
    text = f"marks: {len(fates)} left out by hand, {edits} edited"
    if lost := len(marks) - len(fates) - edits:
        text += f"; {lost} of rows that are not there"
    return kept, fates, text
