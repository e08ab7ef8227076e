"""Open questions, Vicuna's or the user's own: every model answers, and a judge compares the answers two by two.

Engine -> 5_evaluation/vicuna.jsonl, questions.jsonl, and *-verdicts.jsonl. Without a judge the answers are written, and
the score says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from selfalign.constitution import Constitution
from selfalign.data.records import OpenAnswer, PairVerdict, content_hash
from selfalign.evaluation import pair_judge, pairwise
from selfalign.evaluation.asking import Asked, ask
from selfalign.evaluation.benchmarks import Benchmark, Task, item_id
from selfalign.evaluation.judge import Judge
from selfalign.evaluation.pair_judge import Shown
from selfalign.evaluation.speakers import Speaker
from selfalign.run.journal import Journal
from selfalign.run.recipe import Recipe
from selfalign.system.console import Screen


def answer(
    journal: Journal,
    screen: Screen,
    benchmark: Benchmark,
    speakers: Sequence[Speaker],
    recipe: Recipe,
    constitution: Constitution,
) -> list[OpenAnswer]:
    """Let every model answer every question, with the same seeds, in at most `evaluate.max_new_tokens` tokens; what the
    journal holds is not asked again. Of a dialogue the first turn is asked."""
    items = [cast(Task, i) for i in benchmark.items]
    if more := sum(len(i.turns) > 1 for i in items):
        screen.say(f"  {benchmark.label}: of {more} questions with further turns the first turn is asked", "yellow")
    asked = [Asked(item_id(i), i.turns[0]) for i in items]
    limit = recipe.evaluate.max_new_tokens
    found = []
    for reply in ask(benchmark.name, journal, screen, speakers, asked, recipe, constitution, limit):
        item, entrant = items[reply.position], reply.speaker.entrant
        name = content_hash(benchmark.label, item_id(item), item.position, entrant.prompt)
        found.append(
            OpenAnswer(
                name, benchmark.label, item.position, item.subset, item.key, item.turns[0], entrant.prompt,
                entrant.name, reply.text, reply.ended,
            )
        )  # fmt: skip
    return found


def judged(answers: Sequence[OpenAnswer], judge: Judge, journal: Journal, screen: Screen) -> list[PairVerdict]:
    """The judge's verdicts on all pairs of the answers; none where it is at chance on pairs that are certain."""
    pairs = pairwise.pairs(answers)
    if not pairs:
        screen.say("  one model alone: there is nothing to compare its answers with", "yellow")
        return []
    found = pair_judge.trial(judge, journal)
    right = f"right on {found.value:.0%} of pairs whose verdict is certain ({found.low:.0%} to {found.high:.0%})"
    text = f"  judge {judge.name}: {right}"
    if found.low <= 0.5:
        screen.say(f"{text}, which may be chance: it judges nothing, and the answers stay unjudged", "yellow")
        pair_judge.settle(journal, judge, [], right)
        return []
    screen.say(text)
    shown = []
    for pair in pairs:
        mine, theirs = pair.model.answer, pair.rival.answer
        shown += [Shown(pair.model.question, *both) for both in ((mine, theirs), (theirs, mine))]
    with screen.bar(pair_judge.STAGE, len(shown)) as bar:
        said = pair_judge.verdicts(judge, journal, shown, bar.add)
    rows = [pairwise.row(p, judge.name, *both) for p, *both in zip(pairs, said[0::2], said[1::2], strict=True)]
    pair_judge.settle(journal, judge, rows, right)
    counted = pairwise.tally(rows)
    screen.say(
        f"  judge {judge.name}, {counted.pairs} pairs: in {counted.first} it took the first answer in both orders, in "
        f"{counted.second} the second; {counted.unparsable} without a verdict"
    )
    return rows
