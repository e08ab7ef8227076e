"""What crosses a boundary between stages. Each record is one line of a JSONL file; unknown keys are errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from selfalign.errors import UserError
from selfalign.system import atomic

Split = Literal["train", "heldout"]


def content_hash(*parts: object) -> str:
    """16 hex digits of the SHA-256 of the parts' canonical JSON: how rows are known, whatever their position."""
    return hashlib.sha256(_CANONICAL(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode
to_json = json.JSONEncoder(ensure_ascii=False).encode
"""A value as one line of JSON."""


def join_input(instruction: str, text: str) -> str:
    """The user's message: the instruction, a blank line and the input where there is one."""
    return f"{instruction}\n\n{text}" if text else instruction


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user's message that stage 1 wrote."""

    id: str
    instruction: str
    input: str = ""
    source: str = "user"
    """self_instruct, red_team, or user for a row that was added by hand."""
    question_type: str = ""
    """The red-team question type; empty elsewhere."""
    topic: str = ""
    split: Split = "train"
    """heldout: kept out of all training, for the evaluation."""
    mean_similarity: float | None = None
    """Mean ROUGE-L F1 with the seeds and the prompts of earlier rounds, where the recipe asks for it."""

    @property
    def message(self) -> str:
        """What the user says."""
        return join_input(self.instruction, self.input)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic that red-team questions of a type are asked about."""

    question_type: str
    topic: str


@dataclass(frozen=True, slots=True)
class Response:
    """An answer to a prompt. Stage 2: under the constitution; stage 4: by the engraved model's verbose mode."""

    id: str
    """The prompt's id."""
    instruction: str
    input: str
    response: str
    thoughts: str = ""
    """The internal thoughts (stage 2). Kept to be looked at; they never reach training text."""
    principles: list[int] = field(default_factory=list)
    """Ids of the principles that the thoughts cite, in order, without repeats."""
    source: str = "user"
    question_type: str = ""
    split: Split = "train"

    @property
    def message(self) -> str:
        """What the user says."""
        return join_input(self.instruction, self.input)


@dataclass(frozen=True, slots=True)
class Example:
    """One training pair: the system prompt `prompt`, the user's message and the answer to learn."""

    id: str
    prompt: Literal["standard", "concise"]
    user: str
    assistant: str
    source: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that was not kept: `state` is dropped (a decision) or failed (an error)."""

    stage: str
    id: str
    state: Literal["dropped", "failed"]
    reason: str
    text: str
    """The row as far as it came: what a person needs to judge the decision."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number of the evaluation, with its 95 % interval and, where it is a comparison, the paired difference."""

    benchmark: str
    measure: str
    model: str
    prompt: str
    n: int
    value: float | None
    """None where nothing judged it."""
    low: float | None = None
    high: float | None = None
    vs: str | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A held-out prompt answered by one of the compared models."""

    id: str
    """The prompt's id."""
    message: str
    model: str
    """base, engraved or final."""
    answer: str
    ended: bool
    """The model ended its turn by itself, within the token limit."""
    words: int


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """A behaviour probe answered by one of the compared models, and whether the check was satisfied."""

    id: str
    principle: int
    name: str
    """The principle's name."""
    ask: str
    expect: str
    """The check."""
    contrast: bool
    """The behaviour was not to appear."""
    model: str
    answer: str
    passed: bool


@dataclass(frozen=True, slots=True)
class ItemScore:
    """What a model made of one item of a benchmark in one form: the raw log-probabilities, and what they mean.

    The item's text is not in it: a benchmark does not belong into files that are passed on.
    """

    id: str
    benchmark: str
    item: int
    """Its place in the benchmark, from 0."""
    subset: str
    cluster: str
    """Items with the same value are about the same text."""
    form: str
    prompt: str
    """The system prompt that stood before it."""
    model: str
    labels: list[str]
    """What each of the scored texts is."""
    logprobs: list[list[float]]
    """Of each of them, the log-probability of each token."""
    values: dict[str, float]
    """Measure -> 1 (right), 0 (wrong) or a share."""


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """An answer that a model wrote to a question of TruthfulQA, and what a judge said of it."""

    id: str
    benchmark: str
    item: int
    """The question's place in the benchmark, from 0."""
    question: str
    prompt: str
    model: str
    answer: str
    ended: bool
    truthful: bool | None = None
    """None: not judged."""
    informative: bool | None = None
    judge: str = ""


@dataclass(frozen=True, slots=True)
class BehaviourAnswer:
    """What a model answered in a situation (or to a probe) of the behaviour task, and which rules saw what in it."""

    id: str
    benchmark: str
    item: int
    """The situation's place, from 0."""
    kind: str
    """harmful, harmless, live, private, or probe."""
    about: str
    """The situation's group, or the probe's principle."""
    ask: str
    model: str
    prompt: str
    answer: str
    ended: bool
    shows: list[str]
    """Rules that the answer shows."""
    passed: bool | None = None
    """Probes: the check was satisfied."""
    contrast: bool = False
    """Probes: the behaviour was not to appear."""


@dataclass(frozen=True, slots=True)
class OpenAnswer:
    """An answer that a model wrote to an open question: one of Vicuna's, or one of the user's own."""

    id: str
    benchmark: str
    item: int
    """The question's place in the benchmark, from 0."""
    category: str
    question_id: str
    """What its file calls it; empty where the file gives it no id."""
    question: str
    prompt: str
    model: str
    answer: str
    ended: bool


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """What a judge said of two models' answers to a question, which it saw in both orders."""

    id: str
    benchmark: str
    item: int
    category: str
    question: str
    model: str
    prompt: str
    rival: str
    rival_prompt: str
    judge: str
    answers: str
    """A hash of the question and of both answers: a verdict on other texts is none on these."""
    model_first: str
    """The better answer where the model's was shown as A: A, B, tie, or empty where the judge said none of them."""
    rival_first: str
    """The same where the rival's was shown as A."""
    verdict: str
    """win or loss of the model, tie, or unparsable."""


def prompt_id(instruction: str, text: str) -> str:
    """The content hash that names a prompt and everything made from it."""
    return content_hash("prompt", instruction, text)


Record = TypeVar(
    "Record", Prompt, Topic, Response, Example, Drop, Score, Answer, ProbeAnswer, ItemScore, JudgedAnswer, OpenAnswer,
    PairVerdict, BehaviourAnswer,
)  # fmt: skip
AnyRecord: TypeAlias = (
    Prompt | Topic | Response | Example | Drop | Score | Answer | ProbeAnswer | ItemScore | JudgedAnswer | OpenAnswer
    | PairVerdict | BehaviourAnswer
)  # fmt: skip


def line(row: AnyRecord) -> str:
    """The row as a line of JSON."""
    value = {name: v for name in row.__dataclass_fields__ if (v := getattr(row, name)) is not None}
    return to_json(value) + "\n"


def write_jsonl(path: Path, rows: Iterable[AnyRecord]) -> None:
    """Publish the rows at `path`, atomically, one after the other: they are never all in memory."""
    with atomic.new_file(path) as file:
        for row in rows:
            file.write(line(row).encode("utf-8"))


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank.

    Raises:
        UserError: the file is missing, is not UTF-8, or a line is not a JSON object.
    """
    try:
        # Lines end at "\n" only: U+2028 and its kin are legal inside a JSON string.
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}:{number} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
                if text.strip():
                    yield number, _json_object(path, number, text)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage before this one first") from None


def _json_object(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        check_characters(value, text)
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", str(error))
        raise UserError(f"{path}:{number} is not JSON ({why}): mend or delete the line {text.strip()[:80]!r}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}:{number} is not a JSON object: {text[:80]!r}")
    return value


def check_characters(value: object, text: str) -> None:
    """Raises ValueError where a value has half a character: JSON can spell it ("\\ud83d"), no UTF-8 file can hold it.

    Args:
        text: the JSON that it was read from.
    """
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")


def stream_jsonl(path: Path, kind: type[Record]) -> Iterator[Record]:
    """The rows of a stage's file, checked, one after the other.

    Rows that were edited or added by hand get the id of their content. Copies of a row are not looked for.

    Raises:
        UserError: a line is not such a record; the message names file and line.
    """
    checks = {f.name: _CHECKS.get(str(f.type), (_anything, "")) for f in fields(kind)}
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    required = [n for n in required if kind is not Prompt or n != "id"]  # a prompt's follows from its content
    for number, value in json_lines(path):
        if kind is Prompt and isinstance(value.get("instruction"), str):
            if not value["instruction"].strip():
                raise UserError(f"{path}:{number}: instruction is empty: write one, or delete the line")
            value["id"] = prompt_id(value["instruction"], str(value.get("input") or ""))
        for name in required:
            if name not in value:
                raise UserError(f"{path}:{number}: the key {name!r} is missing")
        for name, given in value.items():
            if name not in checks:
                raise UserError(f"{path}:{number}: unknown key {name!r}; known are {', '.join(checks)}")
            good, wanted = checks[name]
            if not good(given):
                raise UserError(f"{path}:{number}: {name} is {given!r:.60}, not {wanted}")
        yield kind(**value)


def read_jsonl(path: Path, kind: type[Record]) -> list[Record]:
    """All rows of a stage's file, checked, each once. Raises as `stream_jsonl`."""
    rows: dict[str, Record] = {}
    for number, row in enumerate(stream_jsonl(path, kind)):
        # An answer is a prompt's answer *by a model*.
        rows.setdefault(f"{getattr(row, 'id', number)} {getattr(row, 'model', '')}", row)
    return list(rows.values())


def _anything(value: object) -> bool:
    return True


_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "str"),
    "Split": (lambda value: value in ("train", "heldout"), "train or heldout"),
    "list[int]": (lambda value: isinstance(value, list) and all(type(v) is int for v in value), "list[int]"),
    "int": (lambda value: type(value) is int, "int"),
    "float | None": (lambda value: value is None or type(value) in (int, float), "a number"),
}
"""A field's annotation -> (whether a value is of that kind, what it is called in an error)."""
