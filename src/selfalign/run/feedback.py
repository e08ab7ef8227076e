"""Store marks on answers: good or bad, with a note, in the run's `feedback.jsonl`.

`chat`, the chat page and the viewer write marks; `selfalign constitution suggest` lists them. No stage, export, digest
or manifest reads them: nothing is trained on them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from selfalign.constitution import Constitution, Principle
from selfalign.data.prompt_text import Turn
from selfalign.data.records import content_hash, json_lines, to_json
from selfalign.errors import UserError
from selfalign.run.directory import RunDir
from selfalign.system import atomic

Verdict = Literal["good", "bad"]
Source = Literal["chat", "page", "view"]

MAX_NOTE = 2_000
"""Characters of a note."""
MAX_TEXT = 200_000
"""Characters of an answer, of the dialogue before it, and of a system prompt."""
MAX_TURNS = 512
MAX_MARKS = 5_000
"""Each mark writes the whole file again."""

_TEXTS = ("verdict", "note", "answer", "model", "prompt", "system", "source", "time", "stage", "row")
_KEYS = {*_TEXTS, "id", "turns", "settings", "principles"}
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Feedback:
    """A mark on one answer."""

    verdict: Verdict
    turns: tuple[Turn, ...]
    """The dialogue before the answer; its last turn is the user's."""
    answer: str
    model: str
    """base, prompted-base, engraved or final."""
    prompt: str
    """The name of the system prompt; `constitution` for the prompted base, `own` for the user's text."""
    source: Source
    note: str = ""
    time: str = ""
    """UTC."""
    system: str = ""
    """The text of the user's own system prompt."""
    settings: tuple[tuple[str, float], ...] = ()
    """The sampling settings, as far as they are known: temperature, top_p, max_new_tokens, seed."""
    principles: tuple[int, ...] = ()
    """The principles that the answer's internal thoughts cite."""
    stage: str = ""
    row: str = ""
    """The stage and the id of the run's row that holds the answer, if one does."""

    @property
    def id(self) -> str:
        """A hash of dialogue, answer, model and system prompt: one answer has one mark."""
        turns = [[t.role, t.text] for t in self.turns]
        return content_hash("feedback", turns, self.answer, self.model, self.prompt, self.system)

    @property
    def message(self) -> str:
        """The user's last message."""
        return self.turns[-1].text

    def as_dict(self) -> dict[str, Any]:
        """Return the line of the file, as plain values."""
        value = {
            "id": self.id, "time": self.time, "verdict": self.verdict, "note": self.note,
            "turns": [{"role": t.role, "content": t.text} for t in self.turns], "answer": self.answer,
            "model": self.model, "prompt": self.prompt, "system": self.system, "settings": dict(self.settings),
            "source": self.source, "principles": list(self.principles), "stage": self.stage, "row": self.row,
        }  # fmt: skip
        return {k: v for k, v in value.items() if v or k in ("note", "answer")}


Marks = dict[str, Feedback]
"""id -> mark, the oldest first."""


def parse(value: Mapping[str, Any]) -> Feedback:
    """Return a mark from plain values, such as a line of the file or a request of a page.

    Raises:
        UserError: a value is missing or invalid.
    """
    if unknown := value.keys() - _KEYS:
        raise UserError(f"unknown key {min(unknown)!r:.80}; the keys are {', '.join(sorted(_KEYS))}")
    if wrong := next((k for k in _TEXTS if not isinstance(value.get(k, ""), str)), None):
        raise UserError(f"{wrong} is {value[wrong]!r:.60}, not text")
    texts = {k: _whole(value[k]) for k in _TEXTS if value.get(k)}
    if texts.get("verdict") not in get_args(Verdict):
        raise UserError("a mark needs a verdict: good or bad")
    if texts.get("source") not in get_args(Source):
        raise UserError("a mark needs a source: chat, page or view")
    if "model" not in texts:
        raise UserError("a mark needs the model that answered")
    note = texts.pop("note", "").strip()
    if len(note) > MAX_NOTE:
        raise UserError(f"the note has {len(note):,} characters; at most {MAX_NOTE:,} are stored")
    answer, prompt = texts.pop("answer", ""), texts.pop("prompt", "standard")
    turns = _turns(value.get("turns"))
    if max(len(answer), len(texts.get("system", "")), sum(len(t.text) for t in turns)) > MAX_TEXT:
        raise UserError(f"a dialogue, answer or prompt of more than {MAX_TEXT:,} characters cannot be stored")
    if any(len(text) > _SHORT for text in (texts["model"], prompt, *(texts.get(k, "") for k in _NAMES))):
        raise UserError(f"a name has more than {_SHORT} characters")
    lists = {"settings": _settings(value.get("settings", {})), "principles": _numbers(value.get("principles", []))}
    return Feedback(turns=turns, note=note, answer=answer, prompt=prompt, **texts, **lists)  # type: ignore[arg-type]


_SHORT = 200
_NAMES = ("time", "stage", "row")


def _whole(text: str) -> str:
    """Return the text without lone surrogates, which UTF-8 cannot represent."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _turns(value: object) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value or len(value) > MAX_TURNS:
        raise UserError(f"turns must be a list of 1 to {MAX_TURNS} turns")
    turns = []
    for turn in value:
        values = turn if isinstance(turn, dict) else {}
        role, text = values.get("role"), values.get("content")
        if values.keys() != {"role", "content"} or role not in _ROLES or not isinstance(text, str):
            raise UserError("a turn has a role (user or assistant) and a content")
        turns.append(Turn(role, _whole(text)))
    if turns[-1].role != "user" or not turns[-1].text.strip():
        raise UserError("the last turn must be the user's")
    return tuple(turns)


def _settings(value: object) -> tuple[tuple[str, float], ...]:
    known = ("temperature", "top_p", "max_new_tokens", "seed")
    settings: dict[str, Any] = value if isinstance(value, dict) else {"": None}
    for key, number in settings.items():
        if key not in known or not isinstance(number, int | float) or isinstance(number, bool) or abs(number) > 1e12:
            raise UserError(f"settings are numbers: {', '.join(known)}")
    return tuple((key, settings[key]) for key in known if key in settings)


def _numbers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 99 or any(type(n) is not int or not 0 < n < 1000 for n in value):
        raise UserError("principles are a list of numbers")
    return tuple(dict.fromkeys(value))


def read(run: RunDir) -> Marks:
    """Return the run's marks, the oldest first; of several on one answer, the last counts.

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
    """Store a mark with the time; it replaces an earlier mark on the same answer.

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
    """Return how many answers are marked good and bad. Raises as `read`."""
    verdicts = [mark.verdict for mark in read(run).values()]
    return {verdict: verdicts.count(verdict) for verdict in get_args(Verdict)}


def by_principle(marks: Marks, constitution: Constitution) -> list[tuple[Principle | None, list[Feedback]]]:
    """Group marks by the principles that their answers cite; the last group (None) holds those that cite none.

    A mark that cites several principles is in the group of each. Empty groups are not returned.
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
