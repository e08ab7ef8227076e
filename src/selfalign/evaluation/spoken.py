"""Tasks that models answer in their own words: answers -> files; then, where one is wanted, a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

from selfalign.constitution import Constitution
from selfalign.errors import UserError
from selfalign.evaluation import behaviour, benchmarks, generation, situations, speakers
from selfalign.evaluation.benchmarks import Benchmark, Name
from selfalign.evaluation.readings import Place, column, kept, remember
from selfalign.evaluation.speakers import Speaker
from selfalign.evaluation.wanted import Wanted
from selfalign.recipe import Recipe
from selfalign.records import BehaviourAnswer, JudgedAnswer, read_jsonl, write_jsonl

TASKS = (behaviour.TASK, generation.STAGE)


def run(
    place: Place,
    heard: Sequence[Speaker],
    wanted: Wanted,
    recipe: Recipe,
    constitution: Constitution,
    current: Mapping[str, str],
    seen: Set[str] = frozenset(),
    release: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Let the models answer what is wanted, and a judge judge it; returns the files.

    Args:
        current: model -> the identity of its weights now, as the engine has them: rows of other weights do not stay.
        seen: the run's own prompts, folded: situations among them are left out.
        release: frees the engine of the run before the judge's is started.

    Raises:
        UserError: a file is not what it should be, or a model cannot be started.
    """
    known = {**current, **{s.entrant.name: s.entrant.identity for s in heard}}
    files: list[Path] = []
    try:
        if behaviour.TASK in wanted.tasks:
            files.append(_behaviour(place, heard, wanted, recipe, constitution, known, seen))
        if generation.STAGE in wanted.tasks:
            benchmark = loaded(place, "truthfulqa", wanted)
            files.append(_generation(place, heard, benchmark, recipe, constitution, known))
    finally:
        for speaker in heard:
            speaker.close()
    if wanted.judge and generation.STAGE in wanted.tasks:
        release()
        _judge(place, benchmark, wanted.judge, recipe)
    return files


def _behaviour(
    place: Place,
    heard: Sequence[Speaker],
    wanted: Wanted,
    recipe: Recipe,
    constitution: Constitution,
    known: Mapping[str, str],
    seen: Set[str],
) -> Path:
    read = situations.load(wanted.data.get(behaviour.TASK), constitution, wanted.limit)
    asked, trained = situations.unseen(read.items, seen)
    if not asked:
        raise UserError(f"{behaviour.TASK}: {read.source} holds no situation that is not a prompt of the run")
    place.screen.say(f"  {behaviour.TASK}: {len(asked)} situations, {read.source}", "dim")
    for situation in trained:
        place.screen.say(f"  left out, it is one of the run's prompts: {situation.ask}", "yellow")
    used = situations.Situations(read.source, read.sha256, tuple(asked))
    rows = behaviour.answer(place.journal, place.screen, asked, heard, recipe, constitution)
    now = _columns(heard)
    file = place.file(behaviour.TASK)
    stay = kept(place, used, behaviour.TASK, file, set(now), known, BehaviourAnswer)
    write_jsonl(file, [*stay, *rows])
    remember(place, used, behaviour.TASK, now, stay)
    return file


def _generation(
    place: Place,
    heard: Sequence[Speaker],
    benchmark: Benchmark,
    recipe: Recipe,
    constitution: Constitution,
    known: Mapping[str, str],
) -> Path:
    label, file = f"{benchmark.label} generation", place.file(generation.STAGE)
    rows = generation.answer(place.journal, place.screen, benchmark, heard, recipe, constitution)
    now = _columns(heard)
    before = kept(place, benchmark, label, file, set(), known, JudgedAnswer)
    stay = [r for r in before if column(r) not in now]
    write_jsonl(file, generation.with_verdicts([*stay, *rows], before))  # before the judge: never lost to it
    remember(place, benchmark, label, now, stay)
    return file


def _judge(place: Place, benchmark: Benchmark, spec: str, recipe: Recipe) -> None:
    file = place.file(generation.STAGE)
    judge, end = speakers.judge(spec, recipe.engine)
    try:
        rows = read_jsonl(file, JudgedAnswer)
        write_jsonl(file, generation.judged(rows, benchmark, judge, place.journal, place.screen))
    finally:
        end()


def _columns(heard: Sequence[Speaker]) -> dict[str, str]:
    return {f"{s.entrant.name}|{s.entrant.prompt}": s.entrant.identity for s in heard}


def loaded(place: Place, name: Name, wanted: Wanted) -> Benchmark:
    """A benchmark's items, and a word on what was read."""
    benchmark = benchmarks.load(name, wanted.data.get(name), place.others).first(wanted.limit)
    say = f"  {benchmark.label}: {len(benchmark.items)} items of {benchmark.source}, sha256 {benchmark.sha256[:12]}"
    place.screen.say(say, "dim")
    return benchmark
