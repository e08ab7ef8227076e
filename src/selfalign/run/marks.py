"""Read and apply the user's marks on training examples: drop an example, or train on another response.

The marks are stored in the run's `marks.jsonl`, which `selfalign view` writes and users may edit. Stages 3 and 4 apply
them before they train. A changed mark makes its stage run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfalign.data.records import Example, content_hash, json_lines, to_json
from selfalign.errors import UserError
from selfalign.run.directory import RunDir
from selfalign.run.journal import OLD_STAGES
from selfalign.run.ledger import RowOutcome
from selfalign.system import atomic

DROPPED_MANUALLY = "dropped manually"
STAGES = ("engrave", "verbose_cloning")
_KEYS = {"stage", "id", "mark", "answer", "message"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A decision on a training example."""

    stage: str
    """The stage that trains on the example: engrave or verbose_cloning."""
    id: str
    """The id of the example, which is that of its prompt."""
    mark: str
    """drop or edit."""
    answer: str = ""
    """For an edit, the response to train on instead."""
    message: str = ""
    """The beginning of the user's message, for people who read the file."""


Marks = dict[tuple[str, str], Mark]
"""(stage, id) -> the mark."""


def read(run: RunDir) -> Marks:
    """Return the run's marks; the last mark on a row counts.

    Raises:
        UserError: a line is not a mark.
    """
    path, marks = run.jsonl("marks"), Marks()
    for number, value in json_lines(path) if path.exists() else ():
        where = f"{path}:{number}"
        if unknown := value.keys() - _KEYS:
            raise UserError(f"{where}: unknown key {min(unknown)!r}; the keys are {', '.join(sorted(_KEYS))}")
        if key := next((k for k, v in value.items() if not isinstance(v, str)), None):
            raise UserError(f"{where}: {key} is {value[key]!r:.60}, not text")
        stage = OLD_STAGES.get(value.get("stage", ""), value.get("stage", ""))
        mark = Mark(stage, value.get("id", ""), value.get("mark", ""), value.get("answer", ""))
        if mark.stage not in STAGES or mark.mark not in ("drop", "edit") or not mark.id:
            raise UserError(f"{where}: a mark needs an id, a stage ({' or '.join(STAGES)}) and a mark (drop or edit)")
        if mark.mark == "edit" and not mark.answer.strip():
            raise UserError(f"{where}: an edit needs an answer; to remove the row, use the mark drop")
        marks[mark.stage, mark.id] = replace(mark, message=value.get("message", ""))
    return marks


def write(run: RunDir, marks: Marks) -> None:
    """Write the marks in a stable order."""
    rows = ({k: getattr(m, k) for k in Mark.__slots__ if getattr(m, k)} for _, m in sorted(marks.items()))
    atomic.write_text(run.jsonl("marks"), "".join(f"{to_json(row)}\n" for row in rows))


def digest(run: RunDir, stage: str) -> str:
    """Return a hash of the stage's marks; empty if there are none. Raises as `read`."""
    marks = sorted((m.id, m.mark, m.answer) for m in read(run).values() if m.stage == stage)
    return content_hash("marks", marks) if marks else ""


def apply(marks: Marks, stage: str, examples: Sequence[Example]) -> tuple[list[Example], list[RowOutcome], str]:
    """Return the examples that are not dropped, with their edits, and the outcomes of those that are.

    The third value is a line about the effect of the stage's marks; empty if it has none.
    """
    kept: list[Example] = []
    dropped: list[RowOutcome] = []
    edits = 0
    for position, example in enumerate(examples):
        mark = marks.get((stage, example.id))
        if mark is None:
            kept.append(example)
        elif mark.mark == "edit":
            edits += 1
            kept.append(replace(example, assistant=mark.answer.strip()))
        else:
            text = f"{example.user}\n{example.assistant}"
            dropped.append(RowOutcome(example.id, position, "dropped", DROPPED_MANUALLY, text))
    number = sum(mark.stage == stage for mark in marks.values())
    text = f"marks: {len(dropped)} dropped manually, {edits} edited" if number else ""
    if unused := number - len(dropped) - edits:
        text += f"; {unused} for rows that do not exist"
    return kept, dropped, text
