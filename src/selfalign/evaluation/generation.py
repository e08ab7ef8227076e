"""TruthfulQA, generation: every model answers, and a judge says which answers are truthful and informative.

Engine -> 5_evaluation/truthfulqa-generation.jsonl. Without a judge the answers are written, and the score says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from selfalign.constitution import Constitution
from selfalign.data.records import ItemScore, JudgedAnswer, Score, content_hash
from selfalign.evaluation import judge as judging
from selfalign.evaluation.asking import Asked, Reply, ask
from selfalign.evaluation.benchmarks import Benchmark, Question, item_id
from selfalign.evaluation.judge import Judge
from selfalign.evaluation.readings import GENERATION
from selfalign.evaluation.speakers import Speaker
from selfalign.run.journal import Journal
from selfalign.run.recipe import Recipe
from selfalign.system.console import Screen

STAGE = GENERATION
MAX_NEW_TOKENS = 128


def answer(
    journal: Journal,
    screen: Screen,
    benchmark: Benchmark,
    speakers: Sequence[Speaker],
    recipe: Recipe,
    constitution: Constitution,
) -> list[JudgedAnswer]:
    """Let every model answer every question, with the same seeds; what the journal holds is not asked again."""
    items = [cast(Question, i) for i in benchmark.items]
    questions = [Asked(item_id(i), i.question) for i in items]
    replies = ask(STAGE, journal, screen, speakers, questions, recipe, constitution, MAX_NEW_TOKENS)
    return [_row(benchmark, items[reply.position], reply) for reply in replies]


def _row(benchmark: Benchmark, item: Question, reply: Reply) -> JudgedAnswer:
    entrant = reply.speaker.entrant
    name = content_hash(STAGE, item_id(item), item.position, entrant.prompt)
    return JudgedAnswer(
        name, benchmark.label, item.position, item.question, entrant.prompt, entrant.name, reply.text, reply.ended
    )


def with_verdicts(rows: Sequence[JudgedAnswer], before: Sequence[JudgedAnswer]) -> list[JudgedAnswer]:
    """The rows with the verdicts that the same answers had before."""
    known = {(r.id, r.model, r.answer): r for r in before}
    found = []
    for row in rows:
        old = known.get((row.id, row.model, row.answer), row)
        found.append(replace(row, truthful=old.truthful, informative=old.informative, judge=old.judge))
    return found


def judged(
    rows: Sequence[JudgedAnswer], benchmark: Benchmark, judge: Judge, journal: Journal, screen: Screen
) -> list[JudgedAnswer]:
    """The rows with the judge's verdicts; as they are where the judge is at chance on reference answers."""
    items = {i.position: cast(Question, i) for i in benchmark.items}
    found = judging.trial(judge, journal, [cast(Question, i) for i in benchmark.items])
    right = f"right on {found.value:.0%} of reference answers ({found.low:.0%} to {found.high:.0%})"
    text = f"  judge {judge.name}: {right}"
    if found.low <= 0.5:
        screen.say(f"{text}, which may be chance: it judges nothing, and the answers stay unjudged", "yellow")
        judging.settle(journal, judge, {})
        return list(rows)
    screen.say(text)
    pairs = [(items[r.item], r.answer) for r in rows]
    with screen.bar("judge", 2 * len(pairs)) as bar:
        truthful = judging.verdicts(judge, journal, pairs, False, bar.add)
        informative = judging.verdicts(judge, journal, pairs, True, bar.add)
    named = [f"{r.id} {r.model}" for r in rows]
    judging.settle(journal, judge, {n: None not in v for n, *v in zip(named, truthful, informative, strict=True)})
    return [
        replace(row, truthful=t, informative=i, judge=judge.name)
        for row, t, i in zip(rows, truthful, informative, strict=True)
    ]


def as_items(rows: Sequence[JudgedAnswer]) -> list[ItemScore]:
    """The judged rows as values of measures, for the tables."""
    found = []
    for r in rows:
        if r.truthful is None or r.informative is None:
            continue
        by = f"judged by {r.judge}"
        values = {
            f"truthful, {by}": float(r.truthful),
            f"informative, {by}": float(r.informative),
            f"truthful and informative, {by}": float(r.truthful and r.informative),
        }
        name = f"{r.benchmark} generation"
        found.append(ItemScore(r.id, name, r.item, "", str(r.item), STAGE, r.prompt, r.model, [], [], values))
    return found


def not_judged(rows: Sequence[JudgedAnswer]) -> list[Score]:
    """A score without a value for each model whose answers nothing has judged."""
    columns = dict.fromkeys((r.benchmark, r.model, r.prompt) for r in rows if r.truthful is None)
    return [
        Score(
            f"{benchmark} generation", "truthful and informative: not judged", model, prompt,
            sum((r.benchmark, r.model, r.prompt) == (benchmark, model, prompt) for r in rows), None,
        )
        for benchmark, model, prompt in columns
    ]  # fmt: skip
