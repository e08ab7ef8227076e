"""Benchmarks on the models of a run, or on models by themselves: items -> 5_evaluation/<benchmark>.jsonl, scores.json

What the journal holds is not computed again, so the same command goes on where it was stopped. `benchmarks.json` says
which files were read, by which weights, and how often: choices belong to held-out loss and to half of the probes, and
a benchmark is read once for a run that is published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign import recipe as recipes
from selfalign.constitution import Constitution
from selfalign.context import Context
from selfalign.errors import UserError
from selfalign.evaluation import behaviour, entrants, generation, hhh, speakers, spoken, tables, truthfulqa
from selfalign.evaluation.benchmarks import Name
from selfalign.evaluation.entrants import Team
from selfalign.evaluation.forms import Form, PromptKind
from selfalign.evaluation.readings import Place, column, kept, remember
from selfalign.evaluation.scoring_loop import score
from selfalign.evaluation.wanted import Wanted
from selfalign.journal import Journal
from selfalign.progress import Screen
from selfalign.quality.rouge import folded
from selfalign.records import (
    BehaviourAnswer,
    Example,
    ItemScore,
    JudgedAnswer,
    Score,
    content_hash,
    read_jsonl,
    write_jsonl,
)

FORMS: dict[Name, tuple[Form, ...]] = {"hhh": hhh.FORMS, "truthfulqa": truthfulqa.FORMS}
TASKS = (*FORMS, *spoken.TASKS)
SCORED = (*FORMS, behaviour.TASK, behaviour.PROBES)
"""Benchmarks, by the first word of their names in scores.json, that are published here."""
ALONE = "benchmarks"
"""The name under which a run remembers the files that it published here."""


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
    talks = set(wanted.tasks) & set(spoken.TASKS)
    heard = speakers.of_run(context, wanted.models, wanted.others, wanted.prompt) if talks else []
    run.check_not_edited([run.scores, *(run.jsonl(t) for t in wanted.tasks)], context.force)
    run.manifest.unlink(missing_ok=True)
    run.journal.unpublish(ALONE)
    try:
        files = measure(place, teams, wanted, _current(context, wanted.prompt) if scored else {})
    finally:
        for team in teams:
            team.close()
    if heard:
        made = context.recipe, run.constitution, _spoken(context), _prompts(context), context.release_engine
        files += spoken.run(place, heard, wanted, *made)
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
    scored, heard = _current(context, "standard"), _spoken(context)
    for label, entry in place.state().items():
        current = heard if _task(label) in spoken.TASKS else scored
        stale = {c for c, identity in entry["entrants"].items() if current.get(c.split("|")[0], identity) != identity}
        file = place.file(_task(label))
        if not stale or not file.exists():
            continue
        with context.run.rewriting(file):
            kind: Any = {generation.STAGE: JudgedAnswer, behaviour.TASK: BehaviourAnswer}.get(_task(label), ItemScore)
            write_jsonl(file, [r for r in read_jsonl(file, kind) if column(r) not in stale])
        gone = ", ".join(sorted(stale))
        context.screen.say(f"  {label}: scores of weights that are no more are left out: {gone}")
    publish(place)


def _current(context: Context, prompt: PromptKind) -> dict[str, str]:
    """Each model of the run -> the identity that its weights have now."""
    return {e.name: e.identity for team in entrants.of_run(context, (), (), prompt) for e in team.entrants}


def _spoken(context: Context) -> dict[str, str]:
    """The same for the weights as the engine has them."""
    return {s.entrant.name: s.entrant.identity for s in speakers.of_run(context, (), (), "standard")}


def _prompts(context: Context) -> set[str]:
    """The run's prompts, folded: those of stage 1 and those that were trained on."""
    seen = {folded(p.message) for p in context.prompts()} if context.run.jsonl("prompts").exists() else set()
    for name in ("engrave_examples", "clone_examples"):
        if (path := context.run.jsonl(name)).exists():
            seen |= {folded(e.user) for e in read_jsonl(path, Example)}
    return seen


def _task(label: str) -> str:
    """The task, and so the file, of a benchmark's label in the state."""
    return generation.STAGE if label.endswith(" generation") else label.split(" ")[0]


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
    talks = set(wanted.tasks) & set(spoken.TASKS)
    heard = speakers.of_models(specs, wanted.prompt, prompted) if talks else []
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
            spoken.run(place, heard, wanted, recipes.load("quick"), constitution, {})
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
    loaded = [spoken.loaded(place, name, wanted) for name in FORMS if name in wanted.tasks]
    files = []
    for benchmark in loaded:
        rows = score(place.journal, place.screen, benchmark, FORMS[benchmark.name], teams)
        now = {f"{e.name}|{e.prompt}": e.identity for team in teams for e in team.entrants}
        file = place.file(benchmark.name)
        stay = kept(place, benchmark, benchmark.label, file, set(now), current, ItemScore)
        write_jsonl(file, [*stay, *rows])
        remember(place, benchmark, benchmark.label, now, stay)
        files.append(file)
    return files


def _check(tasks: Sequence[str]) -> None:
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"--benchmarks: {task!r} is not known; known are {', '.join(TASKS)}")


def publish(place: Place) -> list[Score]:
    """Put the scores of all benchmarks into scores.json, beside what stands there of other measures."""
    rows = [r for name in FORMS if place.file(name).exists() for r in read_jsonl(place.file(name), ItemScore)]
    answers, seen = place.file(generation.STAGE), place.file(behaviour.TASK)
    judged = read_jsonl(answers, JudgedAnswer) if answers.exists() else []
    behaved = read_jsonl(seen, BehaviourAnswer) if seen.exists() else []
    rows += generation.as_items(judged) + behaviour.as_items(behaved)
    found = tables.scores(rows) + generation.not_judged(judged)
    place.write_scores([*place.scores(SCORED), *found])
    return found
