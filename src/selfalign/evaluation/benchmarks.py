"""The public benchmarks as their authors publish them: HHH alignment, TruthfulQA, the Vicuna questions; own questions.

From a local file, a folder (a BIG-bench checkout), or a hub id; none of them is shipped. What was read is known by the
hash of its content, which stands beside the scores.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from selfalign.data import user_data
from selfalign.data.records import content_hash, join_input, json_lines
from selfalign.errors import UserError

Name = Literal["hhh", "truthfulqa", "vicuna", "questions"]
NAMES: tuple[Name, ...] = ("hhh", "truthfulqa", "vicuna", "questions")
FOLDER = "SELFALIGN_BENCHMARKS"
"""The environment variable that names the folder with benchmark files."""
FILES: dict[Name, tuple[str, ...]] = {
    "hhh": ("hhh_alignment.json", "hhh_alignment.jsonl", "hhh_alignment", "bigbench", "BIG-bench"),
    "truthfulqa": ("truthfulqa.csv", "TruthfulQA.csv", "truthfulqa.jsonl", "mc_task.json"),
    "vicuna": ("vicuna_questions.jsonl", "question.jsonl"),
    "questions": ("questions.jsonl", "questions.txt"),
}
"""What is looked for in that folder."""
HUB: dict[Name, str] = {"hhh": "HuggingFaceH4/hhh_alignment", "truthfulqa": "truthfulqa/truthful_qa"}
SUBSETS = ("harmless", "helpful", "honest", "other")
FIXTURE = "fixture_"
"""A file whose name begins so holds a few items for tests: its scores say so."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison of HHH alignment: what was said, and two replies (or more) of which one is better."""

    position: int
    """Where it stands in the benchmark, from 0."""
    subset: str
    input: str
    replies: tuple[str, ...]
    good: int
    """Which of the replies is the better one."""

    @property
    def cluster(self) -> str:
        """Comparisons about the same words are no independent evidence."""
        return self.input


@dataclass(frozen=True, slots=True)
class Question:
    """One question of TruthfulQA with its reference answers."""

    position: int
    subset: str
    """The authors' category."""
    question: str
    best: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]

    @property
    def cluster(self) -> str:
        return self.question


@dataclass(frozen=True, slots=True)
class Task:
    """One open question; `turns` are what the user says, one after the other."""

    position: int
    subset: str
    """The file's category; empty where it has none."""
    turns: tuple[str, ...]
    key: str = ""
    """What the file calls it."""

    @property
    def cluster(self) -> str:
        return self.turns[0]


Item: TypeAlias = Comparison | Question | Task


def item_id(item: Item) -> str:
    """The content hash that names an item, wherever it stands."""
    value = [getattr(item, name) for name in item.__dataclass_fields__ if name != "position"]
    return content_hash(type(item).__name__, *value)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was read."""

    name: Name
    source: str
    """File, folder or hub id."""
    sha256: str
    """Of the file; of several files or of a hub data set, the hash of their content."""
    items: tuple[Item, ...]

    @property
    def label(self) -> str:
        """Its name in scores; a fixture says that it is one, and own questions which file they stand in."""
        if self.name == "questions":
            return f"{self.name} ({Path(self.source).stem})"
        fixture = Path(self.source).name.startswith(FIXTURE)
        return f"{self.name} (fixture)" if fixture else self.name

    def first(self, limit: int | None) -> Benchmark:
        """The same with at most `limit` items: those with the smallest hashes, so that every subset has its part."""
        if limit is None or limit >= len(self.items):
            return self
        chosen = sorted(self.items, key=item_id)[:limit]
        return Benchmark(self.name, self.source, self.sha256, tuple(sorted(chosen, key=lambda i: i.position)))


def load(name: Name, source: str | None = None, others: Sequence[str] = ()) -> Benchmark:
    """Read a benchmark.

    Args:
        source: a file, a folder or a hub id; unless given, a file of `others` that has its name, then the folder
            that SELFALIGN_BENCHMARKS names, then the hub.
        others: files that the recipe names for other reasons.

    Raises:
        UserError: it is nowhere, or what is there is not the benchmark.
    """
    source = source or _find(name, others) or HUB.get(name)
    if source is None:
        raise UserError(f"{name}: no file is given; name it, or set {FOLDER} to the folder that holds {FILES[name][0]}")
    path = Path(source).expanduser()
    if path.exists():
        items, digest = _READERS[name](path)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.exists():
        items, digest = _from_hub(name, source)
    else:
        raise UserError(f"{name}: {source!r} is neither a file, a folder nor a hub id (owner/name)")
    if not items:
        raise UserError(f"{name}: {source!r} holds no item")
    return Benchmark(name, source, digest, tuple(items))


def _find(name: Name, others: Sequence[str]) -> str | None:
    if named := next((p for p in others if Path(p).name in FILES[name] and Path(p).exists()), None):
        return named
    folder = os.environ.get(FOLDER)
    found = [Path(folder) / file for file in FILES[name]] if folder else []
    return next((str(p) for p in found if p.exists()), None)


# -- reading -------------------------------------------------------------------------------------------------------


def _json(path: Path) -> tuple[Any, str]:
    data = path.read_bytes()
    try:
        return json.loads(data.decode("utf-8-sig")), hashlib.sha256(data).hexdigest()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error})") from None


def _rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The lines of a JSONL file."""
    return [row for _, row in json_lines(path)], hashlib.sha256(path.read_bytes()).hexdigest()


def _wrong(where: object, position: int, why: str) -> UserError:
    return UserError(f"{where}, item {position + 1}: {why}")


def _strings(value: object) -> tuple[str, ...]:
    """A list of texts without blanks and repeats."""
    texts = [str(v).strip() for v in value] if isinstance(value, list | tuple) else []
    return tuple(dict.fromkeys(t for t in texts if t))


def _hhh(path: Path) -> tuple[list[Comparison], str]:
    if path.is_dir():
        return _big_bench(path)
    if path.suffix == ".jsonl":
        rows, digest = _rows(path)
        return _comparisons((str(r.get("subset", "")), r) for r in rows), digest
    value, digest = _json(path)
    if isinstance(value, dict) and isinstance(value.get("examples"), list):
        value = {path.parent.name: value}
    if not isinstance(value, dict) or not all(isinstance(v, dict) and "examples" in v for v in value.values()):
        raise UserError(f"{path} is no HHH file: an object of subsets, each with its `examples`")
    return _comparisons((s, e) for s, part in value.items() for e in part["examples"]), digest


def _big_bench(folder: Path) -> tuple[list[Comparison], str]:
    for inside in ("", "hhh_alignment", "benchmark_tasks/hhh_alignment", "bigbench/benchmark_tasks/hhh_alignment"):
        files = [f for s in SUBSETS if (f := folder / inside / s / "task.json").is_file()]
        if files:
            parts = [_json(f) for f in files]
            digest = hashlib.sha256("".join(sha for _, sha in parts).encode()).hexdigest()
            pairs = ((f.parent.name, e) for f, (v, _) in zip(files, parts, strict=True) for e in v.get("examples", []))
            return _comparisons(pairs), digest
    raise UserError(f"{folder} holds no hhh_alignment/<subset>/task.json: it is no BIG-bench checkout")


def _comparisons(rows: Iterable[tuple[str, dict[str, Any]]]) -> list[Comparison]:
    found = []
    for position, (subset, row) in enumerate(rows):
        targets = row.get("target_scores")
        if isinstance(row.get("targets"), dict):  # the hub's form
            targets = dict(zip(row["targets"].get("choices", []), row["targets"].get("labels", []), strict=False))
        if not isinstance(row.get("input"), str) or not isinstance(targets, dict):
            raise _wrong("hhh", position, "needs `input` and `target_scores` (or `targets` with choices and labels)")
        # The good one is known by its score, never by its place.
        scores = [float(v) for v in targets.values()]
        if len(scores) < 2 or scores.count(max(scores)) != 1:
            raise _wrong("hhh", position, f"needs two replies or more of which one is best; the scores are {scores}")
        found.append(Comparison(position, subset, row["input"], tuple(targets), scores.index(max(scores))))
    return found


def _truthfulqa(path: Path) -> tuple[list[Question], str]:
    if path.is_dir():
        file = next((path / f for f in FILES["truthfulqa"] if (path / f).is_file()), None)
        if file is None:
            raise UserError(f"{path} holds none of {', '.join(FILES['truthfulqa'])}")
        path = file
    if path.suffix == ".csv":
        data = path.read_bytes()
        try:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is not CSV in UTF-8 ({error})") from None
        return [_from_csv(i, row, path) for i, row in enumerate(rows)], hashlib.sha256(data).hexdigest()
    if path.suffix == ".jsonl":
        lines, digest = _rows(path)
    else:
        lines, digest = _json(path)
    if not isinstance(lines, list):
        raise UserError(f"{path} is no TruthfulQA file: a CSV with Question and Best Answer, or a list of questions")
    return [_question(i, row) for i, row in enumerate(lines)], digest


def _from_csv(position: int, row: dict[str, str], path: Path) -> Question:
    needed = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
    if missing := [n for n in needed if not (row.get(n) or "").strip()]:
        raise _wrong(path, position, f"the column {missing[0]!r} is missing or empty")
    correct, incorrect = (_strings(row[n].split(";")) for n in needed[2:])
    return Question(
        position, row.get("Category") or "", row["Question"].strip(), row["Best Answer"].strip(), correct, incorrect
    )


def _question(position: int, row: Any) -> Question:
    """A row of the hub's data set (`generation`), or of the authors' multiple-choice file."""
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise _wrong("truthfulqa", position, "needs `question`")
    subset = str(row.get("category") or "")
    if "best_answer" in row:
        best, correct = str(row["best_answer"]).strip(), _strings(row.get("correct_answers"))
        incorrect = _strings(row.get("incorrect_answers"))
    else:
        one, many = _targets(row.get("mc1_targets")), _targets(row.get("mc2_targets"))
        best = next((a for a, label in one.items() if label == 1), "")
        correct = tuple(a for a, label in many.items() if label == 1)
        incorrect = tuple(a for a, label in (many or one).items() if label == 0)
    if not best or not incorrect:
        raise _wrong("truthfulqa", position, "needs a best answer and incorrect ones (or mc1_targets and mc2_targets)")
    return Question(position, subset, row["question"].strip(), best, correct or (best,), incorrect)


def _targets(value: Any) -> dict[str, int]:
    """{answer: 1 or 0}, as the authors write it or as the hub does (choices and labels)."""
    if isinstance(value, dict) and isinstance(value.get("choices"), list):
        return {str(c).strip(): int(n) for c, n in zip(value["choices"], value.get("labels", []), strict=False)}
    return {str(c).strip(): int(n) for c, n in value.items()} if isinstance(value, dict) else {}


_ASKED = ("turns", "question", "text", "instruction", "prompt")
"""Where a question may stand in a row, the first that is there."""


def _tasks(path: Path) -> tuple[list[Task], str]:
    """Vicuna's questions, or the user's: rows in the files that own prompts are read from, or a question a line."""
    found: list[Task] = []
    for where, row in user_data.values(path):
        turns = _turns(row) if isinstance(row, dict) else ()
        if not turns:
            raise UserError(f"{where}: needs a question as text, under one of {', '.join(_ASKED)}")
        key = next((str(row[n]) for n in ("id", "question_id") if row.get(n) is not None), "")
        found.append(Task(len(found), " ".join(str(row.get("category") or "").split()), turns, key))
    return found, hashlib.sha256(path.read_bytes()).hexdigest()


def _turns(row: dict[str, Any]) -> tuple[str, ...]:
    """What the user says in a row; nothing where no text stands under a known name."""
    name = next((n for n in _ASKED if row.get(n)), "")
    said = row.get(name)
    given = said if name == "turns" and isinstance(said, list) else [said]
    turns = tuple(t.strip() for t in given if isinstance(t, str) and t.strip())
    if len(turns) < len(given):
        return ()
    if name == "instruction" and isinstance(row.get("input"), str):
        return (join_input(turns[0], row["input"].strip()),)
    return turns


_READERS: dict[Name, Any] = {"hhh": _hhh, "truthfulqa": _truthfulqa, "vicuna": _tasks, "questions": _tasks}


def _from_hub(name: Name, source: str) -> tuple[Sequence[Item], str]:
    if name not in HUB:
        raise UserError(f"{name}: a hub id is not known for it; give a file ({FILES[name][0]})")
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{name}: {source!r} is on the hub, which needs `pip install datasets`; or give a file, or set {FOLDER} "
            f"to the folder that holds {FILES[name][0]}"
        ) from None
    try:
        if name == "hhh":
            rows = [(s, dict(r)) for s in SUBSETS for r in datasets.load_dataset(source, s, split="test")]
            items: Sequence[Item] = _comparisons(rows)
        else:
            found = datasets.load_dataset(source, "generation", split="validation")
            items = [_question(i, dict(row)) for i, row in enumerate(found)]
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(
            f"{name}: {source!r} cannot be fetched ({why}); give a file, or set {FOLDER} to the folder that holds "
            f"{FILES[name][0]}"
        ) from None
    return items, content_hash(*(item_id(i) for i in items))
