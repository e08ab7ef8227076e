"""Define the records that the stages write and read, each one line of a JSONL file; unknown keys are errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from selfalign.data.text import text_lines
from selfalign.errors import UserError
from selfalign.system import atomic

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Split = Literal["train", "heldout"]


def content_hash(*parts: object) -> str:
    """Return 16 hex digits of the SHA-256 of the parts' canonical JSON. Rows are identified by such hashes."""
    return hashlib.sha256(_CANONICAL(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode
to_json = json.JSONEncoder(ensure_ascii=False).encode
"""Encode a value as one line of JSON."""


def join_input(instruction: str, text: str) -> str:
    """Return the user's message: the instruction, followed by a blank line and the input if there is one."""
    return f"{instruction}\n\n{text}" if text else instruction


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of stage 1, generated or provided by the user."""

    id: str
    instruction: str
    input: str = ""
    source: str = "user"
    """self_instruct, red_team, or user for user prompts and rows that were added manually."""
    question_type: str = ""
    """The red-team question type; empty for other prompts."""
    topic: str = ""
    split: Split = "train"
    """heldout: excluded from training and used by the evaluation."""
    mean_similarity: float | None = None
    """Mean ROUGE-L F1 with the seeds and the prompts of earlier rounds, if the recipe enables it."""
    exemplar_type: str = ""
    """The question type whose exemplars stage 2 shows: the red-team type, or the nearest one for other prompts. Empty
    for the general exemplars."""

    @property
    def message(self) -> str:
        """The user's message."""
        return join_input(self.instruction, self.input)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic for red-team questions of one type."""

    question_type: str
    topic: str


@dataclass(frozen=True, slots=True)
class Response:
    """A response to a prompt, by the base model with the constitution (stage 2) or by the engraved model (stage 4)."""

    id: str
    """The prompt's id."""
    instruction: str
    input: str
    response: str
    thoughts: str = ""
    """The internal thoughts (stage 2). They never reach training text; the teacher of `on_policy` reads them."""
    principles: list[int] = field(default_factory=list)
    """Ids of the principles that the internal thoughts cite, in order, without repeats."""
    source: str = "user"
    question_type: str = ""
    split: Split = "train"

    @property
    def message(self) -> str:
        """The user's message."""
        return join_input(self.instruction, self.input)


@dataclass(frozen=True, slots=True)
class Example:
    """A training pair: the name of a system prompt, the user's message and the target response."""

    id: str
    prompt: Literal["standard", "concise"]
    user: str
    assistant: str
    source: str


@dataclass(frozen=True, slots=True)
class OwnResponse:
    """A response of the model in training, without the constitution, that it was trained on with `on_policy`."""

    id: str
    prompt_id: str
    round: int
    user: str
    assistant: str
    complete: bool
    """Whether the model ended it; otherwise the token limit did."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to a prompt for training by preference."""

    id: str
    """The prompt's id."""
    prompt: Literal["standard", "concise"]
    """The name of the system prompt."""
    user: str
    chosen: str
    rejected: str
    rejected_from: str = "user"
    """What wrote the rejected response: base, antithesis (the base under antitheses of the principles), or user."""
    principles: list[int] = field(default_factory=list)
    """Ids of the principles that decided for the chosen response: those that its internal thoughts cite."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that was not kept: dropped (by a decision) or failed (with an error)."""

    stage: str
    id: str
    state: Literal["dropped", "failed"]
    reason: str
    text: str
    """The part of the row that was generated, so that a person can judge the decision."""


def prompt_id(instruction: str, text: str) -> str:
    """Return the content hash that identifies a prompt and all rows derived from it."""
    return content_hash("prompt", instruction, text)


Record = TypeVar("Record", bound="DataclassInstance")


def line(row: DataclassInstance) -> str:
    """Return the record as a line of JSON, without values that are None."""
    value = {name: v for name in row.__dataclass_fields__ if (v := getattr(row, name)) is not None}
    return to_json(value) + "\n"


def write_jsonl(path: Path, rows: Iterable[DataclassInstance]) -> None:
    """Write the records to a file one by one, and publish it atomically."""
    with atomic.new_file(path) as file:
        for row in rows:
            file.write(line(row).encode("utf-8"))


def json_lines(path: Path, allow_surrogates: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line that is not blank.

    Args:
        allow_surrogates: whether values may contain lone surrogates.

    Raises:
        UserError: the file is missing, is not UTF-8, or a line is not a JSON object.
    """
    try:
        for number, text in text_lines(path):
            if text.strip():
                yield number, _json_object(path, number, text, allow_surrogates)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage before this one first") from None


def _json_object(path: Path, number: int, text: str, allow_surrogates: bool) -> dict[str, Any]:
    try:
        value = json.loads(text)
        if not allow_surrogates:
            check_characters(value, text)
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", str(error))
        what = f"correct or delete the line {text.strip()[:80]!r}"
        if text.strip() in ("{", "["):
            what = "write each object in one line, as `jq -c .` does"
        raise UserError(f"{path}:{number} is not JSON ({why}): {what}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}:{number} is not a JSON object: {text[:80]!r}")
    return value


def check_characters(value: object, text: str) -> None:
    """Raise ValueError if a value contains a lone surrogate ("\\ud83d"), which JSON can encode but UTF-8 cannot.

    Args:
        text: the JSON from which the value was read.
    """
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")


def stream_jsonl(path: Path, kind: type[Record]) -> Iterator[Record]:
    """Yield the validated records of a file. Repeated rows are not removed.

    The id of each prompt is recomputed from its content, so that prompts can be edited or added manually.

    Raises:
        UserError: a line is not a record of that kind; the message names file and line.
    """
    checks = {f.name: _CHECKS.get(str(f.type), _NO_CHECK) for f in fields(kind)}
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    required = [n for n in required if kind is not Prompt or n != "id"]  # the id follows from the content
    for number, value in json_lines(path):
        if kind is Prompt and isinstance(value.get("instruction"), str):
            if not value["instruction"].strip():
                raise UserError(f"{path}:{number}: instruction is empty: write one, or delete the line")
            value["id"] = prompt_id(value["instruction"], str(value.get("input") or ""))
        for name in required:
            if name not in value:
                raise UserError(f"{path}:{number}: the key {name!r} is missing")
        for name, item in value.items():
            if name not in checks:
                raise UserError(f"{path}:{number}: unknown key {name!r}; known are {', '.join(checks)}")
            is_valid, expected = checks[name]
            if not is_valid(item):
                raise UserError(f"{path}:{number}: {name} is {item!r:.60}, not {expected}")
        yield kind(**value)


def read_jsonl(path: Path, kind: type[Record]) -> list[Record]:
    """Return the validated records of a file, without rows of a repeated id. Raises as `stream_jsonl`."""
    rows: dict[str, Record] = {}
    for number, row in enumerate(stream_jsonl(path, kind)):
        # The responses of several models to one prompt share its id.
        rows.setdefault(f"{getattr(row, 'id', number)} {getattr(row, 'model', '')}", row)
    return list(rows.values())


_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "str"),
    "Split": (lambda value: value in ("train", "heldout"), "train or heldout"),
    "list[int]": (lambda value: isinstance(value, list) and all(type(v) is int for v in value), "list[int]"),
    "int": (lambda value: type(value) is int, "int"),
    "float | None": (lambda value: value is None or type(value) in (int, float), "a number"),
}
"""A field's annotation -> whether a value is valid, and the expected kind for the error message."""
_NO_CHECK: tuple[Callable[[object], bool], str] = (lambda _: True, "")
