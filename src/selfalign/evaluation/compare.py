"""Benchmarks on the models of a run, or on models by themselves: items -> 5_evaluation/<benchmark>.jsonl, scores.json

What the journal holds is not computed again, so the same command goes on where it was stopped. `benchmarks.json` says
which files were read, by which weights, and how often: choices belong to held-out loss and to half of the probes, and
a benchmark is read once for a run that is published.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from selfalign import atomic
from selfalign import recipe as recipes
from selfalign.constitution import Constitution
from selfalign.context import Context
from selfalign.errors import UserError
from selfalign.evaluation import benchmarks, entrants, generation, hhh, speakers, tables, truthfulqa
from selfalign.evaluation.benchmarks import Benchmark, Name
from selfalign.evaluation.entrants import Team
from selfalign.evaluation.forms import Form, PromptKind
from selfalign.evaluation.scoring_loop import score
from selfalign.evaluation.speakers import Speaker
from selfalign.journal import Journal
from selfalign.progress import Screen
from selfalign.recipe import Recipe
from selfalign.records import ItemScore, JudgedAnswer, Score, content_hash, read_jsonl, write_jsonl

FORMS: dict[Name, tuple[Form, ...]] = {"hhh": hhh.FORMS, "truthfulqa": truthfulqa.FORMS}
GENERATION = generation.STAGE
TASKS = (*FORMS, GENERATION)
STATE = "benchmarks.json"
SCORES = "scores.json"
ALONE = "benchmarks"
"""The name under which a run remembers the files that it published here."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured."""

    tasks: Sequence[str]
    """Some of `TASKS`."""
    models: Sequence[str] = ()
    """Models of the run; none stands for all."""
    others: Sequence[str] = ()
    """NAME=ADAPTER, NAME=MODEL, NAME=URL#ID."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Benchmark -> file, folder or hub id."""
    prompt: PromptKind = "standard"
    limit: int | None = None
    """At most so many items of each benchmark."""
    judge: str = ""
    """Who judges generated answers: NAME=MODEL, NAME=URL#ID, or one without a name; nobody unless given."""


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
    run = context.run
    _check(wanted.tasks)
    place = Place(run.scores.parent, context.journal, context.screen, context.recipe.evaluate.benchmarks)
    scored = [t for t in wanted.tasks if t in FORMS]
    teams = entrants.of_run(context, wanted.models, wanted.others, wanted.prompt) if scored else []
    heard = speakers.of_run(context, wanted.models, wanted.others, wanted.prompt) if GENERATION in wanted.tasks else []
    run.check_not_edited([run.scores, *(run.jsonl(t) for t in wanted.tasks)], context.force)
    run.manifest.unlink(missing_ok=True)
    run.journal.unpublish(ALONE)
    try:
        files = measure(place, teams, wanted, _current(context, wanted.prompt) if scored else {})
    finally:
        for team in teams:
            team.close()
    if heard:
        made = context.recipe, run.constitution, _spoken(context), context.release_engine
        files.append(ask(place, heard, wanted, *made))
    with run.rewriting(run.scores):
        publish(place)
    run.mark_done(ALONE, content_hash(list(wanted.tasks)), [run.jsonl(n) for n in TASKS if run.jsonl(n).exists()])
    return [*files, run.scores]


def refresh(context: Context) -> None:
    """Put the scores of benchmarks back into scores.json after the held-out ones were written anew.

    Rows of models that were trained again since are gone.
    """
    place = Place(context.run.scores.parent, context.journal, context.screen)
    if not place.state():
        return
    scored, spoken = _current(context, "standard"), _spoken(context)
    for label, entry in place.state().items():
        current = spoken if _task(label) == GENERATION else scored
        stale = {c for c, identity in entry["entrants"].items() if current.get(c.split("|")[0], identity) != identity}
        file = place.file(_task(label))
        if not stale or not file.exists():
            continue
        with context.run.rewriting(file):
            if _task(label) == GENERATION:
                write_jsonl(file, [r for r in read_jsonl(file, JudgedAnswer) if _column(r) not in stale])
            else:
                write_jsonl(file, [r for r in read_jsonl(file, ItemScore) if _column(r) not in stale])
        gone = ", ".join(sorted(stale))
        context.screen.say(f"  {label}: scores of weights that are no more are left out: {gone}")
    publish(place)


def _current(context: Context, prompt: PromptKind) -> dict[str, str]:
    """Each model of the run -> the identity that its weights have now."""
    return {e.name: e.identity for team in entrants.of_run(context, (), (), prompt) for e in team.entrants}


def _spoken(context: Context) -> dict[str, str]:
    """The same for the weights as the engine has them."""
    return {s.entrant.name: s.entrant.identity for s in speakers.of_run(context, (), (), "standard")}


def _task(label: str) -> str:
    """The task, and so the file, of a benchmark's label in the state."""
    return GENERATION if label.endswith(" generation") else label.split(" ")[0]


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
    _check(wanted.tasks)
    scored = any(t in FORMS for t in wanted.tasks)
    teams = entrants.of_models(specs, constitution, wanted.prompt, prompted) if scored else []
    heard = speakers.of_models(specs, wanted.prompt, prompted) if GENERATION in wanted.tasks else []
    if folder.exists() and any(folder.iterdir()) and not (folder / "journal.sqlite").exists():
        raise UserError(f"{folder} holds something else than an evaluation: name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "journal.sqlite")
    try:
        place = Place(folder, journal, screen)
        measure(place, teams, wanted, {e.name: e.identity for t in teams for e in t.entrants})
        for team in teams:
            team.close()
        if heard:
            ask(place, heard, wanted, recipes.load("quick"), constitution, {})
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
    loaded = [_load(place, name, wanted) for name in FORMS if name in wanted.tasks]
    files = []
    for benchmark in loaded:
        rows = score(place.journal, place.screen, benchmark, FORMS[benchmark.name], teams)
        now = {f"{e.name}|{e.prompt}": e.identity for team in teams for e in team.entrants}
        kept = _kept(place, benchmark, benchmark.label, set(now), current, ItemScore)
        write_jsonl(place.file(benchmark.name), [*kept, *rows])
        _remember(place, benchmark, benchmark.label, now, kept)
        files.append(place.file(benchmark.name))
    return files


def _load(place: Place, name: Name, wanted: Wanted) -> Benchmark:
    benchmark = benchmarks.load(name, wanted.data.get(name), place.others).first(wanted.limit)
    say = f"  {benchmark.label}: {len(benchmark.items)} items of {benchmark.source}, sha256 {benchmark.sha256[:12]}"
    place.screen.say(say, "dim")
    return benchmark


def ask(
    place: Place,
    heard: Sequence[Speaker],
    wanted: Wanted,
    recipe: Recipe,
    constitution: Constitution,
    current: Mapping[str, str],
    release: Callable[[], None] = lambda: None,
) -> Path:
    """Let the models answer TruthfulQA's questions, and a judge judge them; returns the file.

    Args:
        current: see `measure`; of the weights as the engine has them.
        release: frees the engine of the run before the judge's is started.
    """
    benchmark = _load(place, "truthfulqa", wanted)
    label, file = f"{benchmark.label} generation", place.file(GENERATION)
    try:
        rows = generation.answer(place.journal, place.screen, benchmark, heard, recipe, constitution)
    finally:
        for speaker in heard:
            speaker.close()
    now = {f"{s.entrant.name}|{s.entrant.prompt}": s.entrant.identity for s in heard}
    known = {**current, **{s.entrant.name: s.entrant.identity for s in heard}}
    before = _kept(place, benchmark, label, set(), known, JudgedAnswer)
    kept = [r for r in before if _column(r) not in now]
    rows = generation.with_verdicts([*kept, *rows], before)
    write_jsonl(file, rows)  # before the judge: answers are never lost to it
    _remember(place, benchmark, label, now, kept)
    if wanted.judge:
        release()
        judge, end = speakers.judge(wanted.judge, recipe.engine)
        try:
            write_jsonl(file, generation.judged(rows, benchmark, judge, place.journal, place.screen))
        finally:
            end()
    return file


def _check(tasks: Sequence[str]) -> None:
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"--benchmarks: {task!r} is not known; known are {', '.join(TASKS)}")


def _column(row: ItemScore | JudgedAnswer) -> str:
    return f"{row.model}|{row.prompt}"


Row = TypeVar("Row", ItemScore, JudgedAnswer)


def _kept(
    place: Place, benchmark: Benchmark, label: str, replaced: set[str], current: Mapping[str, str], kind: type[Row]
) -> list[Row]:
    """Rows of other models that stay: of the same items, and of weights that are still these."""
    entry, file = place.state().get(label), place.file(_task(label))
    if not entry or not file.exists():
        return []
    if (entry["sha256"], entry["items"]) != (benchmark.sha256, len(benchmark.items)):
        return []
    known = entry["entrants"]
    good = {c for c, i in known.items() if c not in replaced and current.get(c.split("|")[0], i) == i}
    return [r for r in read_jsonl(file, kind) if r.benchmark == benchmark.label and _column(r) in good]


def _remember(
    place: Place, benchmark: Benchmark, label: str, now: Mapping[str, str], kept: Sequence[ItemScore | JudgedAnswer]
) -> None:
    """Write down what was read, and how often by weights that had not read it before."""
    state = place.state()
    entry = state.get(label, {})
    before, readings = entry.get("entrants", {}), list(entry.get("readings", []))
    if new := [c for c, identity in now.items() if before.get(c) != identity]:
        readings.append({"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "models": new})
    stay = {_column(r) for r in kept}
    state[label] = {
        "source": benchmark.source,
        "sha256": benchmark.sha256,
        "items": len(benchmark.items),
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


def publish(place: Place) -> list[Score]:
    """Put the scores of all benchmarks into scores.json, beside what stands there of other measures."""
    file = place.folder / SCORES
    rows = [r for name in FORMS if place.file(name).exists() for r in read_jsonl(place.file(name), ItemScore)]
    answers = read_jsonl(place.file(GENERATION), JudgedAnswer) if place.file(GENERATION).exists() else []
    found = tables.scores([*rows, *generation.as_items(answers)]) + generation.not_judged(answers)
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
