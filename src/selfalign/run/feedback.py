"""Store marks on responses: good or bad, with a note, in the run's `feedback.jsonl`.

`chat`, the chat page and the viewer write marks; `selfalign constitution suggest` lists them. No stage, export, digest
or manifest reads them: nothing is trained on them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from selfalign.constitution import Constitution, Principle
from selfalign.data.prompt_text import replace_surrogates
from selfalign.data.records import content_hash, json_lines, to_json
from selfalign.errors import UserError
from selfalign.run.directory import RunDir
from selfalign.system import atomic
from selfalign.system.strict_yaml import Strict, validate

Verdict = Literal["good", "bad"]
Source = Literal["chat", "page", "view"]

MAX_NOTE = 2_000
"""Characters of a note."""
MAX_TEXT = 200_000
"""Characters of a response, of the dialogue before it, and of a system prompt."""
MAX_MARKS = 5_000
"""Limited because each mark rewrites the whole file."""


_CLEAN = BeforeValidator(lambda value: replace_surrogates(value) if isinstance(value, str) else value)
Text = Annotated[str, _CLEAN]
Name = Annotated[str, Field(max_length=200), _CLEAN]
Number = Annotated[int | float, Field(ge=-1e12, le=1e12)]
Numbers = Annotated[list[Annotated[int, Field(gt=0, lt=1000)]], AfterValidator(lambda value: [*dict.fromkeys(value)])]


class _Turn(Strict):
    role: Literal["user", "assistant"]
    content: Text

    @property
    def text(self) -> str:
        """The text, by the name that a `Turn` has."""
        return self.content


class Feedback(Strict):
    """A mark on one response: a line of the file."""

    time: Name = ""
    """UTC."""
    verdict: Verdict
    note: Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_NOTE), _CLEAN] = ""
    turns: list[_Turn] = Field(min_length=1, max_length=512)
    """The dialogue before the response; its last turn is the user's."""
    answer: Text = ""
    """The marked response."""
    model: Name = Field(min_length=1)
    """base, prompted-base, engraved or final."""
    prompt: Name = "standard"
    """The name of the system prompt; `constitution` for the prompted base, `own` for the user's text."""
    system: Text = ""
    """The text of the user's own system prompt."""
    settings: dict[Literal["temperature", "top_p", "max_new_tokens", "seed"], Number] = {}
    """The known sampling settings."""
    source: Source
    principles: Numbers = Field([], max_length=99)
    """The principles that the response's internal thoughts cite."""
    stage: Name = ""
    row: Name = ""
    """Stage and id of the run's row with the response; empty for responses outside the run."""

    @model_validator(mode="after")
    def _check_texts(self) -> Feedback:
        if self.turns[-1].role != "user" or not self.turns[-1].content.strip():
            raise ValueError("the last turn must be the user's")
        if max(len(self.answer), len(self.system), sum(len(t.content) for t in self.turns)) > MAX_TEXT:
            raise ValueError(f"a dialogue, response or prompt of more than {MAX_TEXT:,} characters cannot be stored")
        return self

    @property
    def id(self) -> str:
        """A hash of dialogue, response, model and system prompt: a response has at most one mark."""
        turns = [[t.role, t.content] for t in self.turns]
        return content_hash("feedback", turns, self.answer, self.model, self.prompt, self.system)

    @property
    def message(self) -> str:
        """The user's last message."""
        return self.turns[-1].content

    def as_dict(self) -> dict[str, Any]:
        """Return the line of the file, as plain values."""
        return {k: v for k, v in {"id": self.id, **self.model_dump()}.items() if v or k in ("note", "answer")}


Marks = dict[str, Feedback]
"""id -> mark, the oldest first."""


def parse(value: Mapping[str, Any]) -> Feedback:
    """Return a mark from plain values, such as a line of the file or a request of a page. Its `id` is not read.

    Raises:
        UserError: a value is missing or invalid.
    """
    return validate(Feedback, {key: item for key, item in value.items() if key != "id"}, "mark")


def read(run: RunDir) -> Marks:
    """Return the run's marks, the oldest first; of several on one response, the last counts.

    Raises:
        UserError: a line is not a valid mark.
    """
    path, marks = run.jsonl("feedback"), Marks()
    for number, value in json_lines(path) if path.exists() else ():
        try:
            mark = parse(value)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        marks.pop(mark.id, None)
        marks[mark.id] = mark
    return marks


def mark(run: RunDir, value: Mapping[str, Any]) -> Feedback:
    """Store a mark with the current time; it replaces an earlier mark on the same response.

    Raises:
        UserError: the mark is not valid, or there are too many.
    """
    new = parse({**value, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
    with run.user_files_lock():
        marks = read(run)
        marks.pop(new.id, None)
        if len(marks) >= MAX_MARKS:
            raise UserError(f"{run.jsonl('feedback')} holds {MAX_MARKS:,} marks, which is the limit")
        _write(run, {**marks, new.id: new})
    return new


def withdraw(run: RunDir, identity: str) -> Feedback | None:
    """Remove a mark and return it; None if there is none with that id. Raises as `read`."""
    with run.user_files_lock():
        marks = read(run)
        mark = marks.pop(identity, None)
        if mark is not None:
            _write(run, marks)
    return mark


def counts(run: RunDir) -> dict[str, int]:
    """Return the numbers of responses marked good and bad. Raises as `read`."""
    verdicts = [mark.verdict for mark in read(run).values()]
    return {verdict: verdicts.count(verdict) for verdict in get_args(Verdict)}


def by_principle(marks: Marks, constitution: Constitution) -> list[tuple[Principle | None, list[Feedback]]]:
    """Group marks by the principles that their responses cite; the last group (None) has those that cite none.

    A mark whose response cites several principles is in the group of each. Empty groups are omitted.
    """
    known = {principle.id for principle in constitution.principles}
    groups: list[tuple[Principle | None, list[Feedback]]] = [
        (principle, [mark for mark in marks.values() if principle.id in mark.principles])
        for principle in constitution.principles
    ]
    groups.append((None, [mark for mark in marks.values() if not known & set(mark.principles)]))
    return [(principle, group) for principle, group in groups if group]


def line(mark: Feedback, head: str = "", width: int = 70) -> str:
    """Return a mark as one line of text."""
    message, note = (" ".join(text.split()) for text in (mark.message, mark.note))
    message = message if len(message) <= width else f"{message[: width - 1]}…"
    return f"{head}{mark.verdict:<4} {mark.model}: {message}" + (f" | {note}" if note else "")


def _write(run: RunDir, marks: Marks) -> None:
    atomic.write_text(run.jsonl("feedback"), "".join(f"{to_json(m.as_dict())}\n" for m in marks.values()))
