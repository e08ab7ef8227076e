"""Benchmarks on the models of a run, or on models by themselves: items -> 5_evaluation/<benchmark>.jsonl, scores.json

What the journal holds is not computed again, so the same command goes on where it was stopped. `benchmarks.json` says
which files were read, by which weights, and how often: choices belong to held-out loss and to half of the probes, and
a benchmark is read once for a run that is published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from selfalign.constitution import Constitution
from selfalign.data.records import (  # fmt: skip
    BehaviourAnswer,
    Example,
    ItemScore,
    JudgedAnswer,
    OpenAnswer,
    Score,
    content_hash,
    read_jsonl,
)
from selfalign.errors import UserError
from selfalign.evaluation import (  # fmt: skip
    behaviour,
    benchmarks,
    entrants,
    generation,
    hhh,
    pairwise,
    situations,
    speakers,
    spoken,
    tables,
    truthfulqa,
)
from selfalign.evaluation.benchmarks import Benchmark, Name
from selfalign.evaluation.entrants import Team
from selfalign.evaluation.forms import Form, PromptKind
from selfalign.evaluation.readings import GENERATION, Place, column, forget, kept, merged, remember, task_of
from selfalign.evaluation.scoring_loop import score
from selfalign.evaluation.situations import Situations
from selfalign.evaluation.spoken import BEHAVIOUR, COMPARED, SPOKEN
from selfalign.evaluation.wanted import Wanted
from selfalign.quality.rouge import folded
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.journal import Journal
from selfalign.system.console import Screen

FORMS: dict[Name, tuple[Form, ...]] = {"hhh": hhh.FORMS, "truthfulqa": truthfulqa.FORMS}
TASKS = (*FORMS, *SPOKEN)
FILES = (*TASKS, *(f"{t}-verdicts" for t in COMPARED))
"""Names of the files of rows."""
RECORDS: dict[str, Any] = {
    GENERATION: JudgedAnswer, BEHAVIOUR: BehaviourAnswer, **dict.fromkeys(spoken.COMPARED, OpenAnswer),
}  # fmt: skip
"""Task -> the record of its rows, where that is not ItemScore."""
ALONE = "benchmarks"
"""The name under which a run remembers the files that it published here."""


def run(context: Context, wanted: Wanted) -> list[Path]:
    """Measure a run's models on benchmarks; returns the files.

    Raises:
        UserError: a benchmark, a model or a scorer is not to be had, or a file was edited by hand.
        Interrupted: a signal came; the same command goes on.
    """
    run = context.run
    _check(wanted, run.constitution)
    place = _place(context)
    scored, asked = ([t for t in wanted.tasks if t in some] for some in (FORMS, SPOKEN))
    teams = entrants.of_run(context, wanted.models, wanted.others, wanted.prompt) if scored else []
    heard = speakers.of_run(context, wanted.models, wanted.others, wanted.prompt) if asked else []
    # What a mistake would stop later is said before anything is done or taken away.
    sources = _sources(place, wanted, run.constitution, _prompts(context) if BEHAVIOUR in asked else set())
    if wanted.judge and asked:
        speakers.check_judge(wanted.judge, context.recipe.engine)
    run.check_not_edited([run.scores, *(run.jsonl(n) for n in FILES)], context.force)
    run.manifest.unlink(missing_ok=True)
    try:
        files = measure(place, teams, sources, _current(context, wanted.prompt) if scored else {})
    finally:
        for team in teams:
            team.close()
    for task in asked:
        made = context.recipe, run.constitution, wanted.judge, _spoken(context), context.release_engine
        files.append(spoken.ask(place, task, sources[task], heard, *made))
    publish(place)
    run.mark_done(ALONE, content_hash(list(wanted.tasks)), [run.jsonl(n) for n in FILES if run.jsonl(n).exists()])
    for task in asked:
        context.check_failures(context.journal.counts(task))
    return [*files, run.scores]


def refresh(context: Context) -> None:
    """Put the scores of benchmarks back into scores.json after the held-out ones were written anew.

    Rows of models that were trained again since are gone.
    """
    place = _place(context)
    if not place.state():
        return
    scored = {} if context.model.is_fake else _current(context, "standard")
    said = _spoken(context)
    for label, entry in place.state().items():
        current = said if task_of(label) in SPOKEN else scored
        stale = {
            c for c, identity in entry["entrants"].items() if current.get(c.rpartition("|")[0], identity) != identity
        }
        file = place.file(task_of(label))
        if not stale or not file.exists():
            continue
        own = label.removesuffix(" generation")
        rows = read_jsonl(file, RECORDS.get(task_of(label), ItemScore))
        place.write(file, [r for r in rows if r.benchmark != own or column(r) not in stale])
        if (verdicts := spoken.verdicts(place, task_of(label))).exists():
            place.write(verdicts, spoken.standing(place, task_of(label)))
        forget(place, label, stale)
        gone = ", ".join(sorted(stale))
        context.screen.say(f"  {label}: scores of weights that are no more are left out: {gone}")
    publish(place)


def _current(context: Context, prompt: PromptKind) -> dict[str, str]:
    """Each model of the run -> the identity that its weights have now."""
    return {e.name: e.identity for team in entrants.of_run(context, (), (), prompt) for e in team.entrants}


def _spoken(context: Context) -> dict[str, str]:
    """The same for the weights as the engine has them."""
    return {s.entrant.name: s.entrant.identity for s in speakers.of_run(context, (), (), "standard")}


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
    _check(wanted, constitution)
    scored, asked = ([t for t in wanted.tasks if t in some] for some in (FORMS, SPOKEN))
    if wanted.judge and asked:
        speakers.check_judge(wanted.judge, recipes.load("quick").engine)
    teams = entrants.of_models(specs, constitution, wanted.prompt, prompted) if scored else []
    heard = speakers.of_models(specs, wanted.prompt, prompted) if asked else []
    if folder.exists() and any(folder.iterdir()) and not (folder / "journal.sqlite").exists():
        raise UserError(f"{folder} holds something else than an evaluation: name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "journal.sqlite")
    try:
        place = Place(folder, journal, screen, constitution=constitution.digest())
        sources = _sources(place, wanted, constitution, set())
        measure(place, teams, sources, {e.name: e.identity for t in teams for e in t.entrants})
        for team in teams:
            team.close()
        for task in asked:
            made = recipes.load("quick"), constitution, wanted.judge, dict[str, str]()
            spoken.ask(place, task, sources[task], heard, *made)
        return publish(place)
    finally:
        for team in teams:
            team.close()
        journal.close()


def measure(
    place: Place, teams: Sequence[Team], sources: Mapping[str, Benchmark | Situations], current: Mapping[str, str]
) -> list[Path]:
    """Score what is wanted, and publish a row for each item, form and model.

    Args:
        current: model -> the identity of its weights now: rows of other weights do not stay.
    """
    files = []
    for benchmark in (s for name, s in sources.items() if name in FORMS and isinstance(s, Benchmark)):
        rows = score(place.journal, place.screen, benchmark, FORMS[benchmark.name], teams)
        now = {f"{e.name}|{e.prompt}": e.identity for team in teams for e in team.entrants}
        stay = kept(place, benchmark, benchmark.label, set(now), current, ItemScore)
        place.write(place.file(benchmark.name), merged(place, benchmark.label, now, stay, rows))
        remember(place, benchmark, benchmark.label, now, stay)
        files.append(place.file(benchmark.name))
    return files


def ready(context: Context) -> None:
    """Raises UserError where the recipe's stage would miss a benchmark, before anything is spent."""
    for task in context.recipe.evaluate.tasks:
        if task != BEHAVIOUR:
            benchmarks.load(spoken.ASKED.get(task, task), None, context.recipe.evaluate.benchmarks)  # type: ignore[arg-type]


def _place(context: Context) -> Place:
    run = context.run
    others, digest = context.recipe.evaluate.benchmarks, run.constitution.digest()
    return Place(run.scores.parent, context.journal, context.screen, others, digest, run.rewriting)


def _sources(
    place: Place, wanted: Wanted, constitution: Constitution, seen: Set[str]
) -> dict[str, Benchmark | Situations]:
    """What each task asks: all read before the first one begins."""
    found: dict[str, Benchmark | Situations] = {}
    for task in (t for t in TASKS if t in wanted.tasks):
        if task == BEHAVIOUR:
            found[task] = _situations(place, wanted, constitution, seen)
        else:
            found[task] = _load(place, spoken.ASKED.get(task, task), wanted)  # type: ignore[arg-type]
    return found


def _load(place: Place, name: Name, wanted: Wanted) -> Benchmark:
    benchmark = benchmarks.load(name, wanted.data.get(name), place.others).first(wanted.limit)
    say = f"  {benchmark.label}: {len(benchmark.items)} items of {benchmark.source}, sha256 {benchmark.sha256[:12]}"
    place.screen.say(say, "dim")
    return benchmark


def _situations(place: Place, wanted: Wanted, constitution: Constitution, seen: Set[str]) -> Situations:
    """Situations to ask: those that are no prompt of the run."""
    read = situations.load(wanted.data.get(BEHAVIOUR), constitution, wanted.limit)
    asked, trained = situations.unseen(read, seen)
    if not asked.items:
        raise UserError(f"{BEHAVIOUR}: {read.source} holds no situation that is not a prompt of the run")
    place.screen.say(f"  {BEHAVIOUR}: {len(asked.items)} situations, {read.source}", "dim")
    for situation in trained:
        place.screen.say(f"  left out, it is one of the run's prompts: {situation.ask}", "yellow")
    return asked


def _prompts(context: Context) -> set[str]:
    """The run's prompts, folded: those of stage 1 and those that were trained on."""
    seen = {folded(p.message) for p in context.prompts()} if context.run.jsonl("prompts").exists() else set()
    for name in ("engrave_examples", "verbose_cloning_examples"):
        if (path := context.run.jsonl(name)).exists():
            seen |= {folded(e.user) for e in read_jsonl(path, Example)}
    return seen


def _check(wanted: Wanted, constitution: Constitution) -> None:
    for task in wanted.tasks:
        if task not in TASKS:
            raise UserError(f"--benchmarks: {task!r} is not known; known are {', '.join(TASKS)}")
    if wanted.prompt == "two-shot" and not constitution.prompts.two_shot:
        raise UserError("--prompt two-shot: the constitution's prompts.two_shot is empty: write two worked turns there")


def publish(place: Place) -> list[Score]:
    """Put the scores of all benchmarks into scores.json, beside what stands there of other measures."""
    rows = [r for name in FORMS if place.file(name).exists() for r in read_jsonl(place.file(name), ItemScore)]
    answers = read_jsonl(place.file(GENERATION), JudgedAnswer) if place.file(GENERATION).exists() else []
    found = tables.scores([*rows, *generation.as_items(answers)]) + generation.not_judged(answers)
    if place.file(BEHAVIOUR).exists():
        behaved = read_jsonl(place.file(BEHAVIOUR), BehaviourAnswer)
        found += tables.scores(behaviour.as_items(behaved)) + behaviour.openings(behaved)
    for task in COMPARED:
        if place.file(task).exists():
            found += pairwise.scores(read_jsonl(place.file(task), OpenAnswer), spoken.standing(place, task))
    place.write_scores([*(s for s in place.scores() if not of_benchmark(s)), *found])
    return found


def of_benchmark(score: Score) -> bool:
    """Whether a score was measured here: not on held-out prompts."""
    return score.benchmark.split("/")[0].split(" ")[0] in (*benchmarks.NAMES, BEHAVIOUR, behaviour.PROBES)
