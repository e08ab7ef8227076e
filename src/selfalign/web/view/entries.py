"""What the viewer shows of a row of the ledger: its fate from the journal, its parts from the run's files.

Files may be edited by hand, and may be missing while their stage goes on. Lines that cannot be read are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from selfalign.constitution import Constitution
from selfalign.constitution.citations import check_citations
from selfalign.data.records import content_hash, join_input, prompt_id
from selfalign.run.directory import JSONL_FILES

Key = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """A row of the ledger as the journal holds it."""

    rowid: int
    """The journal's own number of it."""
    id: str
    position: int
    state: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A row as the viewer lists it."""

    fate: RowOutcome
    source: str = ""
    """self_instruct, red_team, user or identity."""
    type: str = ""
    """The red-team question type."""
    topic: str = ""
    split: str = ""
    model: str = ""
    """Of an evaluation's answer: who gave it."""
    principles: tuple[int, ...] = ()
    """Those that the thoughts cite; of a probe, its own."""
    message: str = ""
    thoughts: str = ""
    answer: str = ""
    about: str = ""
    """The id of the prompt that the row is about; empty where it is the row's own."""
    prompt: str = ""
    """Of a training example: its system prompt."""


def _prompt_key(row: dict[str, Any]) -> object:
    """A prompt's id follows from its content, whatever a hand wrote there."""
    return prompt_id(str(row.get("instruction", "")), str(row.get("input") or ""))


def _id(row: dict[str, Any]) -> object:
    return row.get("id")


_KEYS: dict[str, Key] = {
    "prompts": _prompt_key,
    "self_instruct": _prompt_key,
    "red_team": _prompt_key,
    "topics": lambda row: row.get("topic"),
    "answers": lambda row: content_hash(row.get("id"), row.get("model")),
}
"""File -> the key of its rows; others are known by their ids."""

FILES: dict[str, tuple[str, ...]] = {
    "self_instruct": ("prompts", "self_instruct"),
    "topics": ("topics",),
    "red_team": ("prompts", "red_team"),
    "align": ("prompts", "responses"),
    "engrave": ("prompts", "responses", "engrave_examples"),
    "verbose_responses": ("prompts", "verbose_responses"),
    "verbose_cloning": ("prompts", "verbose_cloning_examples"),
    "evaluate": ("prompts", "answers"),
    "probes": ("probes",),
}
"""Ledger -> the run's files that say more of its rows (names as in `run.JSONL_FILES`), the one of its own last."""


class Lines:
    """The rows of a JSONL file by a key, read where they stand: in memory are their places only."""

    def __init__(self, path: Path, key: Key) -> None:
        self._path = path
        self._key = key
        self._places: dict[str, int] = {}
        self._file: BinaryIO | None = None
        if not path.exists():
            return
        at = 0
        with path.open("rb") as file:
            for raw in file:
                if (row := _object(raw)) is not None and isinstance(name := key(row), str):
                    self._places.setdefault(name, at)
                at += len(raw)

    def get(self, name: str) -> dict[str, Any]:
        """The row of that key; empty where there is none, or the file is another one by now."""
        if (at := self._places.get(name)) is None:
            return {}
        try:
            self._file = self._file or self._path.open("rb")
        except OSError:
            return {}
        self._file.seek(at)
        row = _object(self._file.readline()) or {}
        return row if self._key(row) == name else {}

    def close(self) -> None:
        """Let the file go; it is opened again where a row is asked for."""
        if self._file is not None:
            self._file.close()
        self._file = None


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
        json.dumps(value, ensure_ascii=False).encode()  # half a character can be spelled, and kept nowhere
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def lines(run: Path, name: str) -> Lines:
    """A file of the run by its name in `run.JSONL_FILES`; empty where it is not written yet."""
    return Lines(run / JSONL_FILES[name], _KEYS.get(name, _id))


class Reader:
    """Makes entries of a ledger's rows.

    Args:
        stage: the ledger's name.
        files: the run's files that say more of its rows, as `FILES` names them.
    """

    def __init__(self, stage: str, constitution: Constitution, files: Mapping[str, Lines]) -> None:
        self._stage = stage
        self._constitution = constitution
        self._files = files

    def entry(self, fate: RowOutcome) -> Entry:
        """The row with everything that the run's files say of it."""
        found = {name: file.get(fate.id) for name, file in self._files.items() if name != "topics"}
        if self._stage == "topics":
            row = self._files["topics"].get(fate.text)
            return Entry(fate, type=_text(row, "question_type"), topic=fate.text, message=fate.text)
        if self._stage in ("align", "verbose_responses"):
            return self._answered(fate, found)
        if self._stage in ("engrave", "verbose_cloning"):
            return self._example(fate, found)
        if self._stage == "evaluate":
            return self._evaluated(fate, found["answers"])
        if self._stage == "probes":
            return _probed(fate, found["probes"])
        prompt = found.get("prompts") or found.get(self._stage) or {}
        return _described(fate, prompt, message=_message(prompt) or fate.text, source=self._stage)

    def _answered(self, fate: RowOutcome, found: Mapping[str, dict[str, Any]]) -> Entry:
        prompt, kept = found["prompts"], found["responses" if self._stage == "align" else "verbose_responses"]
        message = _message(prompt) or _message(kept)
        # A file is the truth where a person may have edited it; before it is written, the ledger's own text is.
        if kept and fate.state == "kept":
            principles = _numbers(kept.get("principles"))
            return _described(
                fate, {**kept, **prompt}, message=message, thoughts=_text(kept, "thoughts"),
                answer=_text(kept, "response"), principles=principles,
            )  # fmt: skip
        message, thoughts, answer = apart(fate.text, message)
        cited = tuple(check_citations(thoughts, self._constitution.principle_names())[0])
        return _described(fate, prompt, message=message, thoughts=thoughts, answer=answer, principles=cited)

    def _example(self, fate: RowOutcome, found: Mapping[str, dict[str, Any]]) -> Entry:
        example = found[f"{self._stage}_examples"]
        prompt, response = found["prompts"], found.get("responses", {})
        row = {**prompt, "source": _text(example, "source") or _text(prompt, "source")}
        if not example:  # left out by hand: the ledger has what it would have been
            message, _, answer = apart(fate.text, _message(prompt) or _message(response))
            return _described(fate, row, message=message, answer=answer)
        return _described(
            fate, row, message=_text(example, "user") or fate.text, answer=_text(example, "assistant"),
            principles=_numbers(response.get("principles")), prompt=_text(example, "prompt"),
        )  # fmt: skip

    def _evaluated(self, fate: RowOutcome, answer: dict[str, Any]) -> Entry:
        prompt = self._files["prompts"].get(_text(answer, "id"))
        return _described(
            fate, prompt, message=_text(answer, "message") or fate.text, answer=_text(answer, "answer"),
            model=_text(answer, "model"), about=_text(answer, "id"),
        )  # fmt: skip


def _probed(fate: RowOutcome, answer: dict[str, Any]) -> Entry:
    number = answer.get("principle")
    return Entry(
        fate, model=_text(answer, "model"), principles=_numbers([number]), message=_text(answer, "ask") or fate.text,
        answer=_text(answer, "answer"),
    )  # fmt: skip


def _described(fate: RowOutcome, of: Mapping[str, Any], **more: Any) -> Entry:
    """With the prompt's source, type, topic and split."""
    said = {
        "source": _text(of, "source"),
        "type": _text(of, "question_type"),
        "topic": _text(of, "topic"),
        "split": _text(of, "split"),
    }
    return Entry(fate, **{**more, **{k: v for k, v in said.items() if v or k not in more}})


def apart(text: str, message: str) -> tuple[str, str, str]:
    """(message, thoughts, answer) of a ledger's text, as stages 2 and 4 write it.

    Args:
        message: the prompt's, where it is known; without it all of the text is the message.
    """
    if not message or not text.startswith(message):
        return text, "", ""
    rest = text[len(message) :].removeprefix("\n")
    thoughts = ""
    if rest.startswith("[") and "]\n" in rest:
        thoughts, _, rest = rest[1:].partition("]\n")
    return message, thoughts, rest.strip()


def _message(row: Mapping[str, Any]) -> str:
    return join_input(_text(row, "instruction"), _text(row, "input"))


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""


def _numbers(value: object) -> tuple[int, ...]:
    found = value if isinstance(value, list) else []
    return tuple(dict.fromkeys(n for n in found if type(n) is int))
