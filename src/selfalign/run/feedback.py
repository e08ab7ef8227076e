"""What people thought of answers: good or bad, with a note. `feedback.jsonl` in the run.

The terminal dialogue, the chat page and the viewer write it; `selfalign constitution suggest` reads it and drafts
changes of the constitution for a person to accept. No stage, no export, no digest and no manifest knows of it: nothing
is trained on it.
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
"""Characters of an answer, of a dialogue before it, and of an system prompt."""
MAX_TURNS = 512
MAX_MARKS = 5_000
"""Each mark publishes the file anew."""

_TEXTS = ("verdict", "note", "answer", "model", "prompt", "system", "source", "time", "stage", "row")
_KEYS = {*_TEXTS, "id", "turns", "settings", "principles"}
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Feedback:
    """One answer that somebody marked."""

    verdict: Verdict
    turns: tuple[Turn, ...]
    """The dialogue that was answered; its last turn is the user's."""
    answer: str
    model: str
    """base, prompted-base, engraved or final."""
    prompt: str
    """The system prompt: its name, constitution for the prompted base, or own."""
    source: Source
    note: str = ""
    time: str = ""
    """UTC."""
    system: str = ""
    """Of an own system prompt: its text."""
    settings: tuple[tuple[str, float], ...] = ()
    """How the answer was drawn: temperature, top_p, max_new_tokens, seed, as far as they are known."""
    principles: tuple[int, ...] = ()
    """What the answer's thoughts cite, where it has some."""
    stage: str = ""
    row: str = ""
    """Of a row of the run: where it stands."""

    @property
    def id(self) -> str:
        """The same answer of the same model to the same dialogue is the same mark, whoever set it."""
        turns = [[t.role, t.text] for t in self.turns]
        return content_hash("feedback", turns, self.answer, self.model, self.prompt, self.system)

    @property
    def message(self) -> str:
        """What the user said last."""
        return self.turns[-1].text

    def as_dict(self) -> dict[str, Any]:
        """The line of the file, as plain values."""
        value = {
            "id": self.id, "time": self.time, "verdict": self.verdict, "note": self.note,
            "turns": [{"role": t.role, "content": t.text} for t in self.turns], "answer": self.answer,
            "model": self.model, "prompt": self.prompt, "system": self.system, "settings": dict(self.settings),
            "source": self.source, "principles": list(self.principles), "stage": self.stage, "row": self.row,
        }  # fmt: skip
        return {k: v for k, v in value.items() if v or k in ("note", "answer")}


Marks = dict[str, Feedback]
"""id -> the mark, in the order in which they were set."""


def parse(value: Mapping[str, Any]) -> Feedback:
    """A mark from plain values, such as a line of the file or what a page says.

    Raises:
        UserError: what is wrong with it.
    """
    if unknown := value.keys() - _KEYS:
        raise UserError(f"unknown key {min(unknown)!r:.80}; known are {', '.join(sorted(_KEYS))}")
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
        raise UserError(f"the note has {len(note):,} characters; at most {MAX_NOTE:,} are kept")
    answer, prompt = texts.pop("answer", ""), texts.pop("prompt", "standard")
    turns = _turns(value.get("turns"))
    if max(len(answer), len(texts.get("system", "")), sum(len(t.text) for t in turns)) > MAX_TEXT:
        raise UserError(f"a dialogue, answer or prompt of more than {MAX_TEXT:,} characters is not kept")
    if any(len(text) > _SHORT for text in (texts["model"], prompt, *(texts.get(k, "") for k in _NAMES))):
        raise UserError(f"a name has more than {_SHORT} characters")
    lists = {"settings": _settings(value.get("settings", {})), "principles": _numbers(value.get("principles", []))}
    return Feedback(turns=turns, note=note, answer=answer, prompt=prompt, **texts, **lists)  # type: ignore[arg-type]


_SHORT = 200
_NAMES = ("time", "stage", "row")


def _whole(text: str) -> str:
    """The text without half characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _turns(value: object) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value or len(value) > MAX_TURNS:
        raise UserError(f"turns must be a list of 1 to {MAX_TURNS} turns")
    turns = []
    for turn in value:
        said = turn if isinstance(turn, dict) else {}
        role, text = said.get("role"), said.get("content")
        if said.keys() != {"role", "content"} or role not in _ROLES or not isinstance(text, str):
            raise UserError("a turn has a role (user or assistant) and a content")
        turns.append(Turn(role, _whole(text)))
    if turns[-1].role != "user" or not turns[-1].text.strip():
        raise UserError("the last turn must be the user's")
    return tuple(turns)


def _settings(value: object) -> tuple[tuple[str, float], ...]:
    known = ("temperature", "top_p", "max_new_tokens", "seed")
    found: dict[str, Any] = value if isinstance(value, dict) else {"": None}
    for key, number in found.items():
        if key not in known or not isinstance(number, int | float) or isinstance(number, bool) or abs(number) > 1e12:
            raise UserError(f"settings are numbers: {', '.join(known)}")
    return tuple((k, found[k]) for k in known if k in found)


def _numbers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 99 or any(type(n) is not int or not 0 < n < 1000 for n in value):
        raise UserError("principles are a list of numbers")
    return tuple(dict.fromkeys(value))


def read(run: RunDir) -> Marks:
    """The run's marks, the oldest first; of several on one answer the last counts.

    Raises:
        UserError: a line is no mark.
    """
    path, found = run.jsonl("feedback"), Marks()
    for number, value in json_lines(path) if path.exists() else ():
        try:
            mark = parse(value)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        found.pop(mark.id, None)
        found[mark.id] = mark
    return found


def mark(run: RunDir, value: Mapping[str, Any]) -> Feedback:
    """Keep a mark, with the time; another one on the same answer is replaced.

    Raises:
        UserError: it is none, or there are too many.
    """
    made = parse({**value, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
    with run.by_hand():
        found = read(run)
        found.pop(made.id, None)
        if len(found) >= MAX_MARKS:
            raise UserError(f"{run.jsonl('feedback')} holds {MAX_MARKS:,} marks; no more are kept")
        _write(run, {**found, made.id: made})
    return made


def withdraw(run: RunDir, identity: str) -> Feedback | None:
    """Take a mark back; returns it, or None where there is none of that id. Raises as `read`."""
    with run.by_hand():
        found = read(run)
        gone = found.pop(identity, None)
        if gone is not None:
            _write(run, found)
    return gone


def counts(run: RunDir) -> dict[str, int]:
    """How many answers are marked good and bad. Raises as `read`."""
    found = [m.verdict for m in read(run).values()]
    return {verdict: found.count(verdict) for verdict in get_args(Verdict)}


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
    """A mark in one line, for people."""
    message, note = (" ".join(text.split()) for text in (mark.message, mark.note))
    message = message if len(message) <= width else f"{message[: width - 1]}…"
    return f"{head}{mark.verdict:<4} {mark.model}: {message}" + (f" | {note}" if note else "")


def _write(run: RunDir, marks: Marks) -> None:
    atomic.write_text(run.jsonl("feedback"), "".join(f"{to_json(m.as_dict())}\n" for m in marks.values()))
