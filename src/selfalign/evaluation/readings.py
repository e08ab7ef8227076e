"""Where results go, and what is remembered of which benchmark was read by whom: benchmarks.json."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from selfalign import atomic
from selfalign.errors import UserError
from selfalign.evaluation.benchmarks import Benchmark
from selfalign.journal import Journal
from selfalign.progress import Screen
from selfalign.records import ItemScore, JudgedAnswer, OpenAnswer, read_jsonl

STATE = "benchmarks.json"
GENERATION = "truthfulqa-generation"
"""The task, and so the file, of TruthfulQA's generated answers."""


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


def task_of(label: str) -> str:
    """The task, and so the file, of a benchmark's label in the state."""
    return GENERATION if label.endswith(" generation") else label.split(" ")[0]


def column(row: ItemScore | JudgedAnswer | OpenAnswer) -> str:
    """Who answered, and under which prompt: a key of the state's `entrants`."""
    return f"{row.model}|{row.prompt}"


Row = TypeVar("Row", ItemScore, JudgedAnswer, OpenAnswer)


def kept(
    place: Place, benchmark: Benchmark, label: str, replaced: set[str], current: Mapping[str, str], kind: type[Row]
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
    benchmark: Benchmark,
    label: str,
    now: Mapping[str, str],
    stay: Sequence[ItemScore | JudgedAnswer | OpenAnswer],
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
