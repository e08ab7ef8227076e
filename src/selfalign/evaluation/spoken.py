"""Benchmarks that models answer in words: the answers published before a judge is asked, then what it says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from selfalign.constitution import Constitution
from selfalign.data.records import BehaviourAnswer, JudgedAnswer, OpenAnswer, PairVerdict, read_jsonl
from selfalign.evaluation import behaviour, generation, pairwise, questions, speakers
from selfalign.evaluation.benchmarks import Benchmark, Name
from selfalign.evaluation.judge import Judge
from selfalign.evaluation.readings import GENERATION, Place, column, kept, merged, remember
from selfalign.evaluation.situations import Situations
from selfalign.evaluation.speakers import Speaker
from selfalign.run.recipe import Recipe

BEHAVIOUR = behaviour.TASK
ASKED: dict[str, Name] = {GENERATION: "truthfulqa", "vicuna": "vicuna", "questions": "questions"}
"""What models answer in words -> the benchmark that they are asked."""
SPOKEN = (BEHAVIOUR, *ASKED)
COMPARED = ("vicuna", "questions")
"""Those whose answers are judged two by two: the verdicts have a file of their own."""


def ask(
    place: Place,
    task: str,
    benchmark: Benchmark | Situations,
    heard: Sequence[Speaker],
    recipe: Recipe,
    constitution: Constitution,
    judge: str,
    current: Mapping[str, str],
    release: Callable[[], None] = lambda: None,
) -> Path:
    """Let the models answer a benchmark's questions, and a judge judge them; returns the file of answers.

    Args:
        task: one of `SPOKEN`.
        judge: who judges, see `speakers.judge`; empty for nobody.
        current: model -> the identity of its weights now, as the engine has them: rows of other weights do not stay.
        release: frees the engine of the run before the judge's is started.
    """
    now = {f"{s.entrant.name}|{s.entrant.prompt}": s.entrant.identity for s in heard}
    known = {**current, **{s.entrant.name: s.entrant.identity for s in heard}}
    made = (heard, recipe, constitution)
    try:
        if isinstance(benchmark, Situations):
            rows = behaviour.answer(place.journal, place.screen, benchmark, *made)
            _behaved(place, benchmark, rows, now, known)
        elif task == GENERATION:
            answers = generation.answer(place.journal, place.screen, benchmark, *made)
            _truthful(place, benchmark, answers, now, known)
        else:
            _open(place, benchmark, questions.answer(place.journal, place.screen, benchmark, *made), now, known)
    finally:
        for speaker in heard:
            speaker.close()
    file = place.file(task)
    if judge and isinstance(benchmark, Benchmark):
        release()
        with _started(judge, recipe) as judging:
            if task == GENERATION:
                answers = read_jsonl(file, JudgedAnswer)
                place.write(file, generation.judged(answers, benchmark, judging, place.journal, place.screen))
            else:
                _compare(place, benchmark, judging)
    return file


@contextmanager
def _started(spec: str, recipe: Recipe) -> Iterator[Judge]:
    judge, end = speakers.judge(spec, recipe.engine)
    try:
        yield judge
    finally:
        end()


def _behaved(
    place: Place, asked: Situations, rows: list[BehaviourAnswer], now: Mapping[str, str], known: Mapping[str, str]
) -> None:
    file, label = place.file(BEHAVIOUR), asked.label
    stay = kept(place, asked, label, set(now), known, BehaviourAnswer)
    before = read_jsonl(file, BehaviourAnswer) if file.exists() else []
    mine = merged(place, label, now, stay, rows)
    place.write(file, [*(r for r in before if r.benchmark != label), *mine])
    remember(place, asked, label, now, stay)


def _truthful(
    place: Place, benchmark: Benchmark, rows: list[JudgedAnswer], now: Mapping[str, str], known: Mapping[str, str]
) -> None:
    """Publish the answers before a judge is asked: they are never lost to it."""
    label = f"{benchmark.label} generation"
    before = kept(place, benchmark, label, set(), known, JudgedAnswer)
    stay = [r for r in before if column(r) not in now]
    mine = merged(place, label, now, stay, rows)
    place.write(place.file(GENERATION), generation.with_verdicts(mine, before))
    remember(place, benchmark, label, now, stay)


def _open(
    place: Place, benchmark: Benchmark, rows: list[OpenAnswer], now: Mapping[str, str], known: Mapping[str, str]
) -> None:
    """The same for open questions; answers to other question files stay in the file."""
    file, label = place.file(benchmark.name), benchmark.label
    stay = kept(place, benchmark, label, set(now), known, OpenAnswer)
    before = read_jsonl(file, OpenAnswer) if file.exists() else []
    mine = merged(place, label, now, stay, rows)
    place.write(file, [*(r for r in before if r.benchmark != label), *mine])
    remember(place, benchmark, label, now, stay)
    if (judged := verdicts(place, benchmark.name)).exists():
        place.write(judged, standing(place, benchmark.name))


def _compare(place: Place, benchmark: Benchmark, judge: Judge) -> None:
    """Publish the judge's verdicts on the benchmark's answers beside those of other judges."""
    name, label = benchmark.name, benchmark.label
    answers = [r for r in read_jsonl(place.file(name), OpenAnswer) if r.benchmark == label]
    rows = questions.judged(answers, judge, place.journal, place.screen)
    stay = [v for v in standing(place, name) if (v.benchmark, v.judge) != (label, judge.name)]
    if stay or rows or verdicts(place, name).exists():
        place.write(verdicts(place, name), [*stay, *rows])


def verdicts(place: Place, task: str) -> Path:
    """The file of a task's verdicts; of one that has none, it does not exist."""
    return place.file(f"{task}-verdicts")


def standing(place: Place, task: str) -> list[PairVerdict]:
    """The verdicts in the task's file that are about the answers in the other one."""
    file = verdicts(place, task)
    found = read_jsonl(file, PairVerdict) if file.exists() else []
    return pairwise.standing(found, read_jsonl(place.file(task), OpenAnswer))
