"""Where results go: rows that stay, scores.json, and which benchmark was read by whom and how often (benchmarks.json).

Choices belong to held-out loss and to half of the probes; a benchmark is read once for a run that is published. So
every further reading by other weights is counted and said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from selfalign import atomic
from selfalign.errors import UserError
from selfalign.journal import Journal
from selfalign.progress import Screen
from selfalign.records import BehaviourAnswer, ItemScore, JudgedAnswer, OpenAnswer, Score, read_jsonl

STATE = "benchmarks.json"
SCORES = "scores.json"
GENERATION = "truthfulqa-generation"
"""The task, and so the file, of TruthfulQA's generated answers."""


class Source(Protocol):
    """What was read: a benchmark, or situations."""

    @property
    def label(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def items(self) -> Sequence[object]: ...


@dataclass
class Place:
    """Where results go."""

    folder: Path
    journal: Journal
    screen: Screen
    others: Sequence[str] = ()
    """Benchmark files that the recipe names."""

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def state(self) -> dict[str, Any]:
        """What benchmarks.json holds; of a benchmark that was never read, nothing."""
        file = self.folder / STATE
        try:
            value = json.loads(file.read_text("utf-8")) if file.exists() else {}
        except ValueError as error:
            raise UserError(f"{file} is not JSON ({error}): delete it; the evaluation makes it again") from None
        return value if isinstance(value, dict) else {}

    def scores(self) -> list[Score]:
        """See `read_scores`."""
        return read_scores(self.folder / SCORES)

    def write_scores(self, scores: Sequence[Score]) -> None:
        atomic.write_text(self.folder / SCORES, json.dumps([asdict(s) for s in scores], indent=1) + "\n")


def task_of(label: str) -> str:
    """The task, and so the file, of a benchmark's label in the state."""
    return GENERATION if label.endswith(" generation") else label.split(" ")[0]


Said: TypeAlias = ItemScore | JudgedAnswer | OpenAnswer | BehaviourAnswer
Row = TypeVar("Row", ItemScore, JudgedAnswer, OpenAnswer, BehaviourAnswer)


def column(row: Said) -> str:
    """Who answered, and under which prompt: a key of the state's `entrants`."""
    return f"{row.model}|{row.prompt}"


def kept(
    place: Place, benchmark: Source, label: str, replaced: set[str], current: Mapping[str, str], kind: type[Row]
) -> list[Row]:
    """Rows of other models that stay: of the same items, and of weights that are still these."""
    entry, file = place.state().get(label), place.file(task_of(label))
    if not entry or not file.exists():
        return []
    if (entry["sha256"], entry["items"]) != (benchmark.sha256, len(benchmark.items)):
        return []
    known = entry["entrants"]
    good = {c for c, i in known.items() if c not in replaced and current.get(c.split("|")[0], i) == i}
    return [r for r in read_jsonl(file, kind) if r.benchmark == benchmark.label and column(r) in good]


def remember(
    place: Place,
    benchmark: Source,
    label: str,
    now: Mapping[str, str],
    stay: Sequence[Said],
) -> None:
    """Write down what was read, and how often by weights that had not read it before."""
    state = place.state()
    entry = state.get(label, {})
    before, readings = entry.get("entrants", {}), list(entry.get("readings", []))
    if new := [c for c, identity in now.items() if before.get(c) != identity]:
        readings.append({"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "models": new})
    columns = {column(r) for r in stay}
    state[label] = {
        "source": benchmark.source,
        "sha256": benchmark.sha256,
        "items": len(benchmark.items),
        "entrants": {**{c: i for c, i in before.items() if c in columns}, **now},
        "readings": readings,
    }
    atomic.write_text(place.folder / STATE, json.dumps(state, indent=1, ensure_ascii=False) + "\n")
    if len(readings) > 1:
        place.screen.say(
            f"  {label} was read {len(readings)} times here. Choices belong to held-out loss and probes: what is "
            "chosen by a benchmark is no longer measured by it",
            "yellow",
        )


def read_scores(file: Path) -> list[Score]:
    """scores.json as it stands; empty where there is none.

    Raises:
        UserError: it is not such a list.
    """
    if not file.exists():
        return []
    try:
        return [Score(**s) for s in json.loads(file.read_text("utf-8"))]
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is no list of scores ({error}): delete it; the evaluation makes it again") from None
