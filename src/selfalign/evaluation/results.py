"""Store the results of an evaluation: the rows of each task, scores.json, and the usage log of benchmarks.

Wordings and learning rates should be chosen by the held-out loss and one half of the probes, and a benchmark should be
read once, for the published run. The usage log (benchmarks.json) counts how often a benchmark was read by new weights.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from selfalign.data.records import read_jsonl, write_jsonl
from selfalign.errors import UserError
from selfalign.evaluation.benchmarks import Benchmark, Origin
from selfalign.evaluation.records import BehaviourAnswer, ItemScore, JudgedAnswer, OpenAnswer, PairVerdict, Score
from selfalign.run.journal import Journal
from selfalign.system import atomic
from selfalign.system.console import Screen

USAGE_LOG = "benchmarks.json"
SCORES = "scores.json"
MODELS_KEY = "entrants"  # old name
"""The key of column -> identity of the measured weights in an entry of the usage log."""

AnyRow: TypeAlias = ItemScore | JudgedAnswer | OpenAnswer | BehaviourAnswer
Row = TypeVar("Row", bound=AnyRow)
Stored = TypeVar("Stored", bound=AnyRow | PairVerdict)


class Task(ABC, Generic[Row]):
    """A task of an evaluation. Its rows are written to `5_evaluation/<name>.jsonl`."""

    name: str
    """The task, its stage in the journal and its file."""
    record: type[Row]
    origin: Origin | None
    """How its benchmark is loaded; None for a task with items of its own."""
    suffix = ""
    """The end of the task's label in the usage log, after the label of its benchmark."""
    several_sources = False
    """Whether rows from other sources stay in the file."""

    @abstractmethod
    def scores(self, store: ResultStore) -> list[Score]:
        """Return the scores of the rows in the store."""

    @property
    def verdicts(self) -> str:
        """The name of the file of verdicts; empty if the task has none."""
        return ""

    def with_verdicts(self, rows: list[Row], before: Sequence[Row]) -> list[Row]:
        """Return new rows with the verdicts that the same answers had before."""
        return rows

    def drop_stale_verdicts(self, store: ResultStore) -> None:
        """Remove the verdicts on answers that no longer exist from the file of verdicts, if there is one."""


def column(row: AnyRow) -> str:
    """Return the key of a row's model under its prompt, as `ComparedModel.column`."""
    return f"{row.model}|{row.prompt}"


def model_of(column: str) -> str:
    """Return the model of a column."""
    return column.rpartition("|")[0]


@dataclass
class ResultStore:
    """The folder of an evaluation's results."""

    folder: Path
    journal: Journal
    screen: Screen
    recipe_files: Sequence[str] = ()
    """Benchmark files that the recipe names."""
    constitution: str = ""
    """The digest of the constitution: rows under the prompts of another one are removed."""
    rewriting: Callable[[Path], AbstractContextManager[None]] = field(default=lambda file: nullcontext())
    """The context in which a file is written, so that a run does not report it as edited."""

    # -- rows ----------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def read(self, name: str, record: type[Stored]) -> list[Stored]:
        """Return the rows of a file; none if it does not exist."""
        # read_jsonl lists its record types, which mypy does not match with a union of them.
        return read_jsonl(self.path(name), record) if self.path(name).exists() else []

    def write(self, name: str, rows: Sequence[AnyRow | PairVerdict]) -> None:
        with self.rewriting(self.path(name)):
            write_jsonl(self.path(name), rows)

    def update(
        self,
        task: Task[Row],
        benchmark: Benchmark,
        measured: Mapping[str, str],
        current: Mapping[str, str],
        rows: Sequence[Row],
    ) -> None:
        """Publish new rows of a task together with the valid earlier ones, and log the usage.

        Models keep the order in which they were first measured, because the first one is the one to compare with.

        Args:
            measured: column -> the identity of the weights that were measured now.
            current: model -> the identity of its weights now. Rows of other weights are removed.
        """
        label = benchmark.label + task.suffix
        valid = self._valid_rows(task, benchmark, current, measured)
        remaining = [r for r in valid if column(r) not in measured]
        position = {c: i for i, c in enumerate(dict.fromkeys([*self.measured_models().get(label, {}), *measured]))}
        ordered = sorted([*remaining, *rows], key=lambda r: position[column(r)])
        others: list[Row] = []
        if task.several_sources:
            others = [r for r in self.read(task.name, task.record) if r.benchmark != benchmark.label]
        self.write(task.name, [*others, *task.with_verdicts(ordered, valid)])
        self.log_usage(benchmark, label, measured, {column(r) for r in remaining})

    def _valid_rows(
        self, task: Task[Row], benchmark: Benchmark, current: Mapping[str, str], measured: Mapping[str, str]
    ) -> list[Row]:
        """Return the task's rows about the same items under the same prompts, from weights that have not changed."""
        label = benchmark.label + task.suffix
        entry = self.usage_log().get(label)
        if not entry or not self.path(task.name).exists():
            return []
        known = entry[MODELS_KEY]
        same = (benchmark.sha256, len(benchmark.items), self.constitution)
        if (entry["sha256"], entry["items"], entry.get("constitution", self.constitution)) != same:
            if outdated := ", ".join(c for c in known if c not in measured):
                self.screen.say(
                    f"  {label}: items or prompts have changed: the earlier answers of {outdated} are removed", "yellow"
                )
            return []
        valid = {c for c, identity in known.items() if current.get(model_of(c), identity) == identity}
        return [r for r in self.read(task.name, task.record) if r.benchmark == benchmark.label and column(r) in valid]

    # -- usage log -----------------------------------------------------------------------------------------------

    def usage_log(self) -> dict[str, Any]:
        """Return benchmarks.json. Raises as `read_usage_log`."""
        return read_usage_log(self.folder)

    def _write_usage_log(self, value: Mapping[str, Any]) -> None:
        atomic.write_text(self.folder / USAGE_LOG, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def log_usage(self, benchmark: Benchmark, label: str, measured: Mapping[str, str], remaining: set[str]) -> None:
        """Record that a benchmark was read, and add a reading if any of the weights had not read it before.

        Args:
            measured: column -> identity of the weights.
            remaining: columns whose earlier rows remain.
        """
        log = self.usage_log()
        entry = log.get(label, {})
        before, readings = entry.get(MODELS_KEY, {}), list(entry.get("readings", []))
        if new := [c for c, identity in measured.items() if before.get(c) != identity]:
            readings.append({"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "models": new})
        log[label] = {
            "source": benchmark.source,
            "sha256": benchmark.sha256,
            "items": len(benchmark.items),
            "constitution": self.constitution,
            MODELS_KEY: {**{c: i for c, i in before.items() if c in remaining or c in measured}, **measured},
            "readings": readings,
        }
        self._write_usage_log(log)
        if any(c in before for c in new) and len(readings) > 1:
            self.screen.say(
                f"  {label} was read {len(readings)} times here. Make choices by held-out loss and probes: a benchmark "
                "that was used for a choice can no longer measure its result",
                "yellow",
            )

    def forget(self, label: str, outdated: set[str]) -> None:
        """Remove columns from the usage log. Their rows must have been removed before."""
        log = self.usage_log()
        log[label][MODELS_KEY] = {c: i for c, i in log[label][MODELS_KEY].items() if c not in outdated}
        self._write_usage_log(log)

    def measured_models(self) -> dict[str, dict[str, str]]:
        """Return label -> column -> identity of the weights that were measured."""
        return {label: entry[MODELS_KEY] for label, entry in self.usage_log().items()}

    # -- scores --------------------------------------------------------------------------------------------------

    def scores(self) -> list[Score]:
        """Return scores.json. Raises as `read_scores`."""
        return read_scores(self.folder / SCORES)

    def write_scores(self, scores: Sequence[Score]) -> None:
        with self.rewriting(self.folder / SCORES):
            atomic.write_text(self.folder / SCORES, json.dumps([asdict(s) for s in scores], indent=1) + "\n")


def read_usage_log(folder: Path) -> dict[str, Any]:
    """Return benchmarks.json: label -> source, hash, models and readings; empty if it does not exist.

    Raises:
        UserError: the file is not JSON.
    """
    file = folder / USAGE_LOG
    try:
        value = json.loads(file.read_text("utf-8")) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): delete it, and evaluate again") from None
    return value if isinstance(value, dict) else {}


def readings(folder: Path, label: str) -> int:
    """Return how often new weights read a benchmark, by the usage log in the folder."""
    return len(read_usage_log(folder).get(label, {}).get("readings", ()))


def read_scores(file: Path) -> list[Score]:
    """Return the scores of a scores.json; none if it does not exist.

    Raises:
        UserError: the file is not a list of scores.
    """
    if not file.exists():
        return []
    try:
        return [Score(**s) for s in json.loads(file.read_text("utf-8"))]
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is not a list of scores ({error}): delete it, and evaluate again") from None
