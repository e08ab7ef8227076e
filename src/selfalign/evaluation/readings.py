"""Where results go: rows that stay, scores.json, and which benchmark was read by whom and how often (benchmarks.json).

Choices belong to held-out loss and to half of the probes; a benchmark is read once for a run that is published. So
every further reading by other weights is counted and said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from selfalign.data.records import (  # fmt: skip
    BehaviourAnswer,
    ItemScore,
    JudgedAnswer,
    OpenAnswer,
    PairVerdict,
    Score,
    read_jsonl,
    write_jsonl,
)
from selfalign.errors import UserError
from selfalign.run.journal import Journal
from selfalign.system import atomic
from selfalign.system.console import Screen

STATE = "benchmarks.json"
SCORES = "scores.json"
GENERATION = "truthfulqa-generation"
"""The task, and so the file, of TruthfulQA's generated answers."""


Said: TypeAlias = ItemScore | JudgedAnswer | OpenAnswer | BehaviourAnswer
Row = TypeVar("Row", ItemScore, JudgedAnswer, OpenAnswer, BehaviourAnswer)


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
    constitution: str = ""
    """Its digest: answers under the prompts of another one do not stay."""
    rewriting: Callable[[Path], AbstractContextManager[None]] = field(default=lambda file: nullcontext())
    """What a file is written in, so that a run does not take it for edited."""

    def write(self, file: Path, rows: Sequence[Said | PairVerdict]) -> None:
        with self.rewriting(file):
            write_jsonl(file, rows)

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
        with self.rewriting(self.folder / SCORES):
            atomic.write_text(self.folder / SCORES, json.dumps([asdict(s) for s in scores], indent=1) + "\n")


def task_of(label: str) -> str:
    """The task, and so the file, of a benchmark's label in the state."""
    return GENERATION if label.endswith(" generation") else label.split(" ")[0]


def column(row: Said) -> str:
    """Who answered, and under which prompt: a key of the state's `entrants`."""
    return f"{row.model}|{row.prompt}"


def kept(
    place: Place, source: Source, label: str, replaced: set[str], current: Mapping[str, str], kind: type[Row]
) -> list[Row]:
    """Rows of other models that stay: of the same items and prompts, and of weights that are still these.

    Args:
        label: the source's name in the state.
        replaced: columns that are written anew.
        current: model -> the identity of its weights now.
    """
    entry, file = place.state().get(label), place.file(task_of(label))
    if not entry or not file.exists():
        return []
    known = entry["entrants"]
    here = (source.sha256, len(source.items), place.constitution)
    if (entry["sha256"], entry["items"], entry.get("constitution", place.constitution)) != here:
        if gone := ", ".join(c for c in known if c not in replaced):
            place.screen.say(
                f"  {label}: other items or prompts than before: what {gone} answered is left out", "yellow"
            )
        return []
    good = {c for c, i in known.items() if c not in replaced and current.get(c.rpartition("|")[0], i) == i}
    return [r for r in read_jsonl(file, kind) if r.benchmark == source.label and column(r) in good]


def merged(place: Place, label: str, now: Mapping[str, str], stay: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Rows that stay and new ones, in the order in which the models were first measured: the first is compared with."""
    known = dict.fromkeys([*place.state().get(label, {}).get("entrants", {}), *now])
    order = {name: i for i, name in enumerate(known)}
    both = list(stay)
    both.extend(rows)
    return sorted(both, key=lambda r: order[column(r)])


def remember(place: Place, source: Source, label: str, now: Mapping[str, str], stay: Sequence[Said]) -> None:
    """Write down what was read, and how often by weights that had not read it before."""
    state = place.state()
    entry = state.get(label, {})
    before, readings = entry.get("entrants", {}), list(entry.get("readings", []))
    if new := [c for c, identity in now.items() if before.get(c) != identity]:
        readings.append({"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "models": new})
    columns = {column(r) for r in stay}
    state[label] = {
        "source": source.source,
        "sha256": source.sha256,
        "items": len(source.items),
        "constitution": place.constitution,
        "entrants": {**{c: i for c, i in before.items() if c in columns or c in now}, **now},
        "readings": readings,
    }
    _write(place, state)
    if any(c in before for c in new) and len(readings) > 1:
        place.screen.say(
            f"  {label} was read {len(readings)} times here. Choices belong to held-out loss and probes: what is "
            "chosen by a benchmark is no longer measured by it",
            "yellow",
        )


def forget(place: Place, label: str, stale: set[str]) -> None:
    """Rows of these columns are gone."""
    state = place.state()
    state[label]["entrants"] = {c: i for c, i in state[label]["entrants"].items() if c not in stale}
    _write(place, state)


def _write(place: Place, state: Mapping[str, Any]) -> None:
    atomic.write_text(place.folder / STATE, json.dumps(state, indent=1, ensure_ascii=False) + "\n")


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
