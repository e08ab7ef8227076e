"""Build the viewer's entries: join a row's outcome from the journal with its texts from the run's files.

Users may edit the files, and a file may be missing while its stage runs. Lines that cannot be parsed are skipped.
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
from selfalign.run.ledger import RowOutcome

Key = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row as the viewer shows it."""

    outcome: RowOutcome
    source: str = ""
    """self_instruct, red_team, user or identity."""
    type: str = ""
    """The red-team question type."""
    topic: str = ""
    split: str = ""
    model: str = ""
    """The model of an evaluation's response."""
    principles: tuple[int, ...] = ()
    """The principles that the internal thoughts cite; for a probe, the principle it tests."""
    message: str = ""
    thoughts: str = ""
    answer: str = ""
    about: str = ""
    """The id of the row's prompt; empty if it is the row's own id."""
    prompt: str = ""
    """The system prompt of a training example."""


def _prompt_key(row: dict[str, Any]) -> object:
    """Compute the id from the content, which a user may have edited."""
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
"""File -> function that returns the key of a row; for all other files the key is the id."""

FILES: dict[str, tuple[str, ...]] = {
    "self_instruct": ("prompts", "self_instruct"),
    "topics": ("topics",),
    "red_team": ("prompts", "red_team"),
    "align": ("prompts", "responses"),
    "pairs": ("prompts", "pairs"),
    "engrave": ("prompts", "responses", "engrave_examples"),
    "verbose_responses": ("prompts", "verbose_responses"),
    "verbose_cloning": ("prompts", "verbose_cloning_examples"),
    "evaluate": ("prompts", "answers"),
    "probes": ("probes",),
}
"""Ledger -> the files with the texts of its rows, as keys of `JSONL_FILES`; its own file is last."""


class JsonlIndex:
    """Random access to the rows of a file of the run, which may be missing, by key. Only their offsets are in memory.

    Args:
        name: the file's key in `JSONL_FILES`.
    """

    def __init__(self, run: Path, name: str) -> None:
        self._path = path = run / JSONL_FILES[name]
        self._key = key = _KEYS.get(name, _id)
        self._offsets: dict[str, int] = {}
        self._file: BinaryIO | None = None
        if not path.exists():
            return
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if (row := _parse(line)) is not None and isinstance(row_key := key(row), str):
                    self._offsets.setdefault(row_key, offset)
                offset += len(line)

    def get(self, name: str) -> dict[str, Any]:
        """Return the row with that key; an empty one if it is missing or the file has changed."""
        if (offset := self._offsets.get(name)) is None:
            return {}
        try:
            self._file = self._file or self._path.open("rb")
        except OSError:
            return {}
        self._file.seek(offset)
        row = _parse(self._file.readline()) or {}
        return row if self._key(row) == name else {}

    def close(self) -> None:
        """Close the file. `get` opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()  # SQLite cannot store lone surrogates
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class EntryBuilder:
    """Builds the entries of a ledger from the files with the texts of its rows, as listed in `FILES`."""

    def __init__(self, stage: str, constitution: Constitution, files: Mapping[str, JsonlIndex]) -> None:
        self._stage = stage
        self._constitution = constitution
        self._files = files

    def entry(self, outcome: RowOutcome) -> Entry:
        """Join a row's outcome with its texts."""
        if self._stage == "topics":
            row = self._files["topics"].get(outcome.text)
            return Entry(outcome, type=_text(row, "question_type"), topic=outcome.text, message=outcome.text)
        rows = {name: file.get(outcome.id) for name, file in self._files.items()}
        if self._stage in ("align", "verbose_responses"):
            return self._response(outcome, rows)
        if self._stage == "pairs":
            return self._pair(outcome, rows)
        if self._stage in ("engrave", "verbose_cloning"):
            return self._example(outcome, rows)
        if self._stage == "evaluate":
            return self._evaluation(outcome, rows["answers"])
        if self._stage == "probes":
            return _probe(outcome, rows["probes"])
        prompt = rows.get("prompts") or rows.get(self._stage) or {}
        return _entry(outcome, prompt, message=_message(prompt) or outcome.text, source=self._stage)

    def _response(self, outcome: RowOutcome, rows: Mapping[str, dict[str, Any]]) -> Entry:
        prompt, response = rows["prompts"], rows["responses" if self._stage == "align" else "verbose_responses"]
        message = _message(prompt) or _message(response)
        # The file has precedence over the ledger, since users may edit it. It is missing until the stage ends.
        if response and outcome.state == "kept":
            return _entry(
                outcome, {**response, **prompt}, message=message, thoughts=_text(response, "thoughts"),
                answer=_text(response, "response"), principles=_numbers(response.get("principles")),
            )  # fmt: skip
        message, thoughts, answer = split_ledger_text(outcome.text, message)
        cited = tuple(check_citations(thoughts, self._constitution.principle_names())[0])
        return _entry(outcome, prompt, message=message, thoughts=thoughts, answer=answer, principles=cited)

    def _example(self, outcome: RowOutcome, rows: Mapping[str, dict[str, Any]]) -> Entry:
        example = rows[f"{self._stage}_examples"]
        prompt, response = rows["prompts"], rows.get("responses", {})
        described = {**prompt, "source": _text(example, "source") or _text(prompt, "source")}
        if not example:  # excluded by a mark: only the ledger has the text
            message, _, answer = split_ledger_text(outcome.text, _message(prompt) or _message(response))
            return _entry(outcome, described, message=message, answer=answer)
        return _entry(
            outcome, described, message=_text(example, "user") or outcome.text, answer=_text(example, "assistant"),
            principles=_numbers(response.get("principles")), prompt=_text(example, "prompt"),
        )  # fmt: skip

    def _pair(self, outcome: RowOutcome, rows: Mapping[str, dict[str, Any]]) -> Entry:
        """Return the rejected response; the chosen one is that of stage 2."""
        prompt, pair = rows["prompts"], rows["pairs"]
        if pair and outcome.state == "kept":
            return _entry(
                outcome, prompt, message=_text(pair, "user"), answer=_text(pair, "rejected"),
                principles=_numbers(pair.get("principles")), prompt=_text(pair, "prompt"),
            )  # fmt: skip
        message, _, answer = split_ledger_text(outcome.text, _message(prompt))
        return _entry(outcome, prompt, message=message, answer=answer)

    def _evaluation(self, outcome: RowOutcome, answer: dict[str, Any]) -> Entry:
        prompt = self._files["prompts"].get(_text(answer, "id"))
        return _entry(
            outcome, prompt, message=_text(answer, "message") or outcome.text, answer=_text(answer, "answer"),
            model=_text(answer, "model"), about=_text(answer, "id"),
        )  # fmt: skip


def _probe(outcome: RowOutcome, answer: dict[str, Any]) -> Entry:
    return Entry(
        outcome, model=_text(answer, "model"), principles=_numbers([answer.get("principle")]),
        message=_text(answer, "ask") or outcome.text, answer=_text(answer, "answer"),
    )  # fmt: skip


def _entry(outcome: RowOutcome, source_row: Mapping[str, Any], **fields: Any) -> Entry:
    """Return an entry with the row's source, type, topic and split."""
    described = {
        "source": _text(source_row, "source"),
        "type": _text(source_row, "question_type"),
        "topic": _text(source_row, "topic"),
        "split": _text(source_row, "split"),
    }
    return Entry(outcome, **{**fields, **{k: v for k, v in described.items() if v or k not in fields}})


def split_ledger_text(text: str, message: str) -> tuple[str, str, str]:
    """Split the text of a ledger of stage 2 or 4 into (message, internal thoughts, response).

    Args:
        message: the message of the prompt; if it is empty, the whole text is the message.
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
    return tuple(dict.fromkeys(n for n in value if type(n) is int)) if isinstance(value, list) else ()
