"""What was measured here: the folder of results, which files were read by which weights and how often, scores.json.

Choices belong to held-out loss and to half of the probes; a benchmark is read once for a run that is published. So
every further reading by other weights is counted and said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from selfalign import atomic
from selfalign.errors import UserError
from selfalign.journal import Journal
from selfalign.progress import Screen
from selfalign.records import BehaviourAnswer, ItemScore, JudgedAnswer, Score, read_jsonl

STATE = "benchmarks.json"
SCORES = "scores.json"


class Source(Protocol):
    """What was read."""

    @property
    def source(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def items(self) -> Sequence[object]: ...


Row = TypeVar("Row", ItemScore, JudgedAnswer, BehaviourAnswer)


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

    def scores(self, mine: Sequence[str]) -> list[Score]:
        """What scores.json holds of other benchmarks than these (their first words)."""
        found = read_scores(self.folder / SCORES)
        return [s for s in found if s.benchmark.split("/")[0].split(" ")[0] not in mine]

    def write_scores(self, scores: Sequence[Score]) -> None:
        atomic.write_text(self.folder / SCORES, json.dumps([asdict(s) for s in scores], indent=1) + "\n")


def column(row: ItemScore | JudgedAnswer | BehaviourAnswer) -> str:
    """The model and its prompt."""
    return f"{row.model}|{row.prompt}"


def kept(
    place: Place,
    source: Source,
    label: str,
    file: Path,
    replaced: set[str],
    current: Mapping[str, str],
    kind: type[Row],
) -> list[Row]:
    """Rows of other models that stay: of the same items, and of weights that are still these.

    Args:
        label: the source's name in the state.
        replaced: columns that are written anew.
        current: model -> the identity of its weights now.
    """
    entry = place.state().get(label)
    if not entry or not file.exists():
        return []
    if (entry["sha256"], entry["items"]) != (source.sha256, len(source.items)):
        return []
    known = entry["entrants"]
    good = {c for c, i in known.items() if c not in replaced and current.get(c.split("|")[0], i) == i}
    return [r for r in read_jsonl(file, kind) if column(r) in good]


def remember(
    place: Place,
    source: Source,
    label: str,
    now: Mapping[str, str],
    kept: Sequence[ItemScore | JudgedAnswer | BehaviourAnswer],
) -> None:
    """Write down what was read, and how often by weights that had not read it before."""
    state = place.state()
    entry = state.get(label, {})
    before, readings = entry.get("entrants", {}), list(entry.get("readings", []))
    if new := [c for c, identity in now.items() if before.get(c) != identity]:
        readings.append({"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "models": new})
    stay = {column(r) for r in kept}
    state[label] = {
        "source": source.source,
        "sha256": source.sha256,
        "items": len(source.items),
        "entrants": {**{c: i for c, i in before.items() if c in stay}, **now},
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
