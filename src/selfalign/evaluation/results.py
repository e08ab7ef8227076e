"""Store the results of an evaluation: rows of each task, scores.json, and the usage log of benchmarks.

Choices of wordings or learning rates are made by held-out loss and one half of the probes; a benchmark is read once for
a published run. The usage log (benchmarks.json) therefore counts how often a benchmark was read by other weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from selfalign.data.records import read_jsonl, write_jsonl
from selfalign.errors import UserError
from selfalign.evaluation.benchmarks import Source
from selfalign.evaluation.records import BehaviourAnswer, ItemScore, JudgedAnswer, OpenAnswer, PairVerdict, Score
from selfalign.run.journal import Journal
from selfalign.system import atomic
from selfalign.system.console import Screen

USAGE_LOG = "benchmarks.json"
SCORES = "scores.json"
_MODELS = "entrants"  # old name

AnyRow: TypeAlias = ItemScore | JudgedAnswer | OpenAnswer | BehaviourAnswer
Row = TypeVar("Row", bound=AnyRow)
Stored = TypeVar("Stored", bound=AnyRow | PairVerdict)


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
    """The context in which a file is written, so that a run does not take it for edited."""

    # -- rows ----------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def read(self, name: str, record: type[Stored]) -> list[Stored]:
        """Return the rows of a file; none if it does not exist."""
        # read_jsonl lists its record types, which mypy does not match with a union of them.
        return read_jsonl(self.path(name), record) if self.path(name).exists() else []

    def write(
        self, name: str, rows: Sequence[ItemScore | JudgedAnswer | OpenAnswer | BehaviourAnswer | PairVerdict]
    ) -> None:
        with self.rewriting(self.path(name)):
            write_jsonl(self.path(name), rows)

    def update(
        self,
        task: str,
        label: str,
        source: Source,
        measured: Mapping[str, str],
        current: Mapping[str, str],
        rows: Sequence[Row],
        record: type[Row],
        with_verdicts: Callable[[list[Row], Sequence[Row]], list[Row]] = lambda rows, before: rows,
        several_sources: bool = False,
    ) -> None:
        """Publish new rows of a task beside the valid earlier ones, and log the usage.

        The order is that in which the models were first measured: the first one is compared with.

        Args:
            label: the task's name in the usage log.
            measured: column -> the identity of the weights that were measured now.
            current: model -> the identity of its weights now: rows of other weights are removed.
            with_verdicts: adds to new rows the verdicts that the same answers had before.
            several_sources: rows from other sources stay in the file.
        """
        valid = self._valid_rows(task, label, source, current, record, measured)
        remaining = [r for r in valid if column(r) not in measured]
        position = {c: i for i, c in enumerate(dict.fromkeys([*self._models(label), *measured]))}
        ordered = sorted([*remaining, *rows], key=lambda r: position[column(r)])
        others = [r for r in self.read(task, record) if r.benchmark != source.label] if several_sources else []
        self.write(task, [*others, *with_verdicts(ordered, valid)])
        self.log_usage(source, label, measured, {column(r) for r in remaining})

    def _valid_rows(
        self,
        task: str,
        label: str,
        source: Source,
        current: Mapping[str, str],
        record: type[Row],
        measured: Mapping[str, str],
    ) -> list[Row]:
        """Return the task's rows about the same items under the same prompts, from weights that have not changed."""
        entry = self.usage_log().get(label)
        if not entry or not self.path(task).exists():
            return []
        known = entry[_MODELS]
        same = (source.sha256, len(source.items), self.constitution)
        if (entry["sha256"], entry["items"], entry.get("constitution", self.constitution)) != same:
            if outdated := ", ".join(c for c in known if c not in measured):
                self.screen.say(
                    f"  {label}: items or prompts have changed: the earlier answers of {outdated} are removed", "yellow"
                )
            return []
        valid = {c for c, identity in known.items() if current.get(model_of(c), identity) == identity}
        return [r for r in self.read(task, record) if r.benchmark == source.label and column(r) in valid]

    # -- usage log -----------------------------------------------------------------------------------------------

    def usage_log(self) -> dict[str, Any]:
        """Return benchmarks.json: label -> source, hash, models and readings; empty before the first benchmark."""
        file = self.folder / USAGE_LOG
        try:
            value = json.loads(file.read_text("utf-8")) if file.exists() else {}
        except ValueError as error:
            raise UserError(f"{file} is not JSON ({error}): delete it, and evaluate again") from None
        return value if isinstance(value, dict) else {}

    def _models(self, label: str) -> dict[str, str]:
        models: dict[str, str] = self.usage_log().get(label, {}).get(_MODELS, {})
        return models

    def _write_usage_log(self, value: Mapping[str, Any]) -> None:
        atomic.write_text(self.folder / USAGE_LOG, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def log_usage(self, source: Source, label: str, measured: Mapping[str, str], remaining: set[str]) -> None:
        """Record that a benchmark was read, and count it if by weights that had not read it before.

        Args:
            measured: column -> identity of the weights.
            remaining: columns whose earlier rows remain.
        """
        log = self.usage_log()
        entry = log.get(label, {})
        before, readings = entry.get(_MODELS, {}), list(entry.get("readings", []))
        if new := [c for c, identity in measured.items() if before.get(c) != identity]:
            readings.append({"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "models": new})
        log[label] = {
            "source": source.source,
            "sha256": source.sha256,
            "items": len(source.items),
            "constitution": self.constitution,
            _MODELS: {**{c: i for c, i in before.items() if c in remaining or c in measured}, **measured},
            "readings": readings,
        }
        self._write_usage_log(log)
        if any(c in before for c in new) and len(readings) > 1:
            self.screen.say(
                f"  {label} was read {len(readings)} times here. Make choices by held-out loss and probes: a benchmark "
                "that served a choice no longer measures its result",
                "yellow",
            )

    def forget(self, label: str, outdated: set[str]) -> None:
        """Remove columns whose rows were removed from the usage log."""
        log = self.usage_log()
        log[label][_MODELS] = {c: i for c, i in log[label][_MODELS].items() if c not in outdated}
        self._write_usage_log(log)

    def measured_models(self) -> dict[str, dict[str, str]]:
        """Return label -> column -> identity of the weights that were measured."""
        return {label: entry[_MODELS] for label, entry in self.usage_log().items()}

    # -- scores --------------------------------------------------------------------------------------------------

    def scores(self) -> list[Score]:
        """Return scores.json. Raises as `read_scores`."""
        return read_scores(self.folder / SCORES)

    def write_scores(self, scores: Sequence[Score]) -> None:
        with self.rewriting(self.folder / SCORES):
            atomic.write_text(self.folder / SCORES, json.dumps([asdict(s) for s in scores], indent=1) + "\n")


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
        raise UserError(f"{file} is no list of scores ({error}): delete it, and evaluate again") from None
