"""Benchmarks on the models of a run, or on models by themselves: items -> 5_evaluation/<benchmark>.jsonl, scores.json

What the journal holds is not computed again, so the same command goes on where it was stopped. `benchmarks.json` says
which files were read, by which weights, and how often: choices belong to held-out loss and to half of the probes, and
a benchmark is read once for a run that is published.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selfalign import atomic
from selfalign.constitution import Constitution
from selfalign.context import Context
from selfalign.errors import UserError
from selfalign.evaluation import benchmarks, entrants, hhh, tables, truthfulqa
from selfalign.evaluation.benchmarks import Benchmark, Name
from selfalign.evaluation.entrants import Team
from selfalign.evaluation.forms import Form, PromptKind
from selfalign.evaluation.scoring_loop import score
from selfalign.journal import Journal
from selfalign.progress import Screen
from selfalign.records import ItemScore, Score, content_hash, read_jsonl, write_jsonl

FORMS: dict[Name, tuple[Form, ...]] = {"hhh": hhh.FORMS, "truthfulqa": truthfulqa.FORMS}
STATE = "benchmarks.json"
SCORES = "scores.json"
ALONE = "benchmarks"
"""The name under which a run remembers the files that it published here."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured."""

    tasks: Sequence[str]
    """Benchmarks of `FORMS`."""
    models: Sequence[str] = ()
    """Models of the run; none stands for all."""
    others: Sequence[str] = ()
    """NAME=ADAPTER, NAME=MODEL, NAME=URL#ID."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Benchmark -> file, folder or hub id."""
    prompt: PromptKind = "standard"
    limit: int | None = None
    """At most so many items of each benchmark."""


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


def run(context: Context, wanted: Wanted) -> list[Path]:
    """Measure a run's models on benchmarks; returns the files.

    Raises:
        UserError: a benchmark, a model or a scorer is not to be had, or a file was edited by hand.
        Interrupted: a signal came; the same command goes on.
    """
    run, _ = context.run, _names(wanted.tasks)
    teams = entrants.of_run(context, wanted.models, wanted.others, wanted.prompt)
    place = Place(run.scores.parent, context.journal, context.screen, context.recipe.evaluate.benchmarks)
    run.check_not_edited([run.scores, *(run.jsonl(t) for t in wanted.tasks)], context.force)
    run.manifest.unlink(missing_ok=True)
    run.journal.unpublish(ALONE)
    try:
        files = measure(place, teams, wanted, _current(context, wanted.prompt))
    finally:
        for team in teams:
            team.close()
    with run.rewriting(run.scores):
        publish(place)
    run.mark_done(ALONE, content_hash(list(wanted.tasks)), [run.jsonl(n) for n in FORMS if run.jsonl(n).exists()])
    return [*files, run.scores]


def refresh(context: Context) -> None:
    """Put the scores of benchmarks back into scores.json after the held-out ones were written anew.

    Rows of models that were trained again since are gone.
    """
    place = Place(context.run.scores.parent, context.journal, context.screen)
    if not place.state():
        return
    current = _current(context, "standard")
    for name, entry in place.state().items():
        known = entry["entrants"]
        stale = {c for c, identity in known.items() if current.get(c.split("|")[0], identity) != identity}
        task = name.split(" ")[0]
        if stale and place.file(task).exists():
            rows = [r for r in read_jsonl(place.file(task), ItemScore) if _column(r) not in stale]
            write_jsonl(place.file(task), rows)
            context.screen.say(f"  {name}: scores of weights that are no more are left out: {', '.join(sorted(stale))}")
    publish(place)


def _current(context: Context, prompt: PromptKind) -> dict[str, str]:
    """Each model of the run -> the identity that its weights have now."""
    return {e.name: e.identity for team in entrants.of_run(context, (), (), prompt) for e in team.entrants}


def alone(
    folder: Path, specs: Sequence[str], wanted: Wanted, constitution: Constitution, prompted: bool, screen: Screen
) -> list[Score]:
    """Measure models by themselves; returns the scores, which stand in the folder.

    Args:
        folder: made where it does not exist; the same folder goes on.
        specs: models, see `entrants.of_models`.
        prompted: each model also with the constitution in its prompt.

    Raises:
        UserError: as `run`.
    """
    teams = entrants.of_models(specs, constitution, wanted.prompt, prompted)
    if folder.exists() and any(folder.iterdir()) and not (folder / "journal.sqlite").exists():
        raise UserError(f"{folder} holds something else than an evaluation: name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "journal.sqlite")
    try:
        place = Place(folder, journal, screen)
        measure(place, teams, wanted, {e.name: e.identity for t in teams for e in t.entrants})
        return publish(place)
    finally:
        for team in teams:
            team.close()
        journal.close()


def measure(place: Place, teams: Sequence[Team], wanted: Wanted, current: Mapping[str, str]) -> list[Path]:
    """Score what is wanted, and publish a row for each item, form and model.

    Args:
        current: model -> the identity of its weights now: rows of other weights do not stay.
    """
    loaded = [benchmarks.load(n, wanted.data.get(n), place.others).first(wanted.limit) for n in _names(wanted.tasks)]
    for benchmark in loaded:
        say = f"  {benchmark.label}: {len(benchmark.items)} items of {benchmark.source}, sha256 {benchmark.sha256[:12]}"
        place.screen.say(say, "dim")
    files = []
    for benchmark in loaded:
        rows = score(place.journal, place.screen, benchmark, FORMS[benchmark.name], teams)
        now = {f"{e.name}|{e.prompt}": e.identity for team in teams for e in team.entrants}
        kept = _kept(place, benchmark, set(now), current)
        write_jsonl(place.file(benchmark.name), [*kept, *rows])
        _remember(place, benchmark, now, kept)
        files.append(place.file(benchmark.name))
    return files


def _names(tasks: Sequence[str]) -> list[Name]:
    found: list[Name] = []
    for task in tasks:
        if task not in FORMS:
            raise UserError(f"--benchmarks: {task!r} is not known; known are {', '.join(FORMS)}")
        found.append(task)
    return list(dict.fromkeys(found))


def _column(row: ItemScore) -> str:
    return f"{row.model}|{row.prompt}"


def _kept(place: Place, benchmark: Benchmark, replaced: set[str], current: Mapping[str, str]) -> list[ItemScore]:
    """Rows of other models that stay: of the same items, and of weights that are still these."""
    entry = place.state().get(benchmark.label)
    if not entry or not place.file(benchmark.name).exists():
        return []
    if (entry["sha256"], entry["items"]) != (benchmark.sha256, len(benchmark.items)):
        return []
    known = entry["entrants"]
    good = {c for c, i in known.items() if c not in replaced and current.get(c.split("|")[0], i) == i}
    rows = read_jsonl(place.file(benchmark.name), ItemScore)
    return [r for r in rows if r.benchmark == benchmark.label and _column(r) in good]


def _remember(place: Place, benchmark: Benchmark, now: Mapping[str, str], kept: Sequence[ItemScore]) -> None:
    """Write down what was read, and how often by weights that had not read it before."""
    state = place.state()
    entry = state.get(benchmark.label, {})
    before, readings = entry.get("entrants", {}), list(entry.get("readings", []))
    if new := [c for c, identity in now.items() if before.get(c) != identity]:
        readings.append({"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "models": new})
    stay = {_column(r) for r in kept}
    state[benchmark.label] = {
        "source": benchmark.source,
        "sha256": benchmark.sha256,
        "items": len(benchmark.items),
        "entrants": {**{c: i for c, i in before.items() if c in stay}, **now},
        "readings": readings,
    }
    atomic.write_text(place.folder / STATE, json.dumps(state, indent=1, ensure_ascii=False) + "\n")
    if len(readings) > 1:
        place.screen.say(
            f"  {benchmark.label} was read {len(readings)} times here. Choices belong to held-out loss and probes: "
            "what is chosen by a benchmark is no longer measured by it",
            "yellow",
        )


def publish(place: Place) -> list[Score]:
    """Put the scores of all benchmarks into scores.json, beside what stands there of other measures."""
    file = place.folder / SCORES
    rows = [r for name in FORMS if place.file(name).exists() for r in read_jsonl(place.file(name), ItemScore)]
    found = tables.scores(rows)
    stay = [s for s in read_scores(file) if s.benchmark.split("/")[0].split(" ")[0] not in FORMS]
    atomic.write_text(file, json.dumps([asdict(s) for s in [*stay, *found]], indent=1) + "\n")
    return found


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
