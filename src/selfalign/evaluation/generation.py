"""TruthfulQA, generation: every model answers, and a judge says which answers are truthful and informative.

Engine -> 5_evaluation/truthfulqa-generation.jsonl. Without a judge the answers are written, and the score says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from selfalign import guided
from selfalign.clock import Clock
from selfalign.constitution import Constitution
from selfalign.dialogue import Turn
from selfalign.engines.base import Completion, Request, Sampling, Step
from selfalign.evaluation import judge as judging
from selfalign.evaluation.benchmarks import Benchmark, Question, item_id
from selfalign.evaluation.forms import opening
from selfalign.evaluation.judge import Judge
from selfalign.evaluation.speakers import Speaker
from selfalign.generate import Work, generate, row_seed
from selfalign.journal import Fate, Journal
from selfalign.progress import Screen
from selfalign.recipe import Recipe
from selfalign.records import ItemScore, JudgedAnswer, Score, content_hash

STAGE = "truthfulqa-generation"
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
    clock = Clock()
    rows: list[JudgedAnswer] = []
    fates: list[Fate] = []
    with screen.bar(STAGE, len(speakers) * len(benchmark.items)) as bar:
        for speaker in speakers:
            questions = [cast(Question, i) for i in benchmark.items]
            works = [_work(speaker, item, recipe, constitution) for item in questions]
            engine, identities = speaker.engine(), {speaker.adapter: speaker.entrant.identity}
            if speaker.entrant.prompt == "constitution":
                engine.prime(works[0].request.prompt[:2], speaker.adapter)
            outcomes = generate(works, engine, journal, stage=STAGE, identities=identities, on_done=bar.add)
            for item, work, outcome in zip(questions, works, outcomes, strict=True):
                name, position = content_hash(work.row_id, item.position), len(fates)
                if outcome.completion is None:
                    fates.append((name, position, outcome.fate, outcome.reason, item.question))
                    continue
                fates.append((name, position, "kept", "", item.question))
                rows.append(_row(benchmark, speaker, item, work.request, outcome.completion, constitution))
    journal.restart(STAGE)
    journal.decide(STAGE, fates)
    journal.finish(STAGE, len(fates), clock.seconds())
    return rows


def _work(speaker: Speaker, item: Question, recipe: Recipe, constitution: Constitution) -> Work:
    seed = row_seed(recipe.seed, STAGE, item.question)
    config = recipe.evaluate
    limit = min(config.max_new_tokens, MAX_NEW_TOKENS)
    sampling = Sampling(config.temperature, config.top_p, limit, recipe.engine.top_k, repetition=config.repetition)
    if speaker.entrant.prompt == "constitution":
        form = recipe.align.model_copy(update={"repetition": config.repetition, "hints": False})
        thoughts = form.max_thought_tokens if form.form == "paper" else 0
        asked = guided.Form(constitution, form, replace(sampling, max_new_tokens=limit + thoughts))
        request = replace(asked.request(item.question, seed), adapter=speaker.adapter)
    else:
        template = speaker.template()
        pieces = opening(template, constitution, speaker.entrant.prompt, [Turn("user", item.question)])
        request = Request(pieces, (Step(sampling, stop=template.stops()),), seed, speaker.adapter)
    return Work(content_hash(item_id(item), speaker.entrant.name), request)


def _row(
    benchmark: Benchmark,
    speaker: Speaker,
    item: Question,
    request: Request,
    completion: Completion,
    constitution: Constitution,
) -> JudgedAnswer:
    if speaker.entrant.prompt == "constitution":
        _, text, cut = guided.split(completion, request, constitution.assistant.name)
    else:
        text, cut = completion.parts[0].text, completion.parts[0].finish == "length"
    name = content_hash(STAGE, item_id(item), item.position, speaker.entrant.prompt)
    entrant = speaker.entrant
    return JudgedAnswer(
        name, benchmark.label, item.position, item.question, entrant.prompt, entrant.name, text.strip(), not cut
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
