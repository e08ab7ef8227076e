"""Ask open-ended questions, Vicuna's or the user's own, and let a judge compare the responses in pairs.

The responses are written to `5_evaluation/vicuna.jsonl` or `questions.jsonl`, the verdicts to `*-verdicts.jsonl`.
Without a judge, the responses are written and have a score without a value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from selfalign.constitution import Constitution
from selfalign.data import files
from selfalign.data.records import content_hash, join_input
from selfalign.errors import UserError
from selfalign.evaluation import comparison, judges
from selfalign.evaluation.asking import Message, ModelResponse, OpenEndedTask
from selfalign.evaluation.benchmarks import Benchmark, Origin, item_id
from selfalign.evaluation.judges import AnswerPair, Judge
from selfalign.evaluation.records import OpenAnswer, PairVerdict, Score
from selfalign.evaluation.results import ResultStore
from selfalign.run.journal import Journal
from selfalign.system.console import Screen


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """An open-ended question, or the user's messages of a dialogue (`turns`)."""

    KIND: ClassVar[str] = "Task"
    position: int
    subset: str
    turns: tuple[str, ...]
    key: str = ""
    """The question's id in the file."""

    @property
    def cluster(self) -> str:
        return self.turns[0]


# -- reading -------------------------------------------------------------------------------------------------------

_FIELDS = ("turns", "question", "text", "instruction", "prompt")
"""Fields that may contain the question. The first one that a row has is read."""


def _read(path: Path) -> tuple[list[OpenQuestion], str]:
    """Read rows in the formats of user prompts, or text with one question per line."""
    items: list[OpenQuestion] = []
    for where, row in files.values(path):
        turns = _turns(row) if isinstance(row, dict) else ()
        if not turns:
            raise UserError(f"{where}: needs a question as text, under one of {', '.join(_FIELDS)}")
        key = next((str(row[n]) for n in ("id", "question_id") if row.get(n) is not None), "")
        items.append(OpenQuestion(len(items), " ".join(str(row.get("category") or "").split()), turns, key))
    return items, hashlib.sha256(path.read_bytes()).hexdigest()


def _turns(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the user's messages in a row; none if no known field contains text."""
    name = next((n for n in _FIELDS if row.get(n)), "")
    value = row.get(name)
    texts = value if name == "turns" and isinstance(value, list) else [value]
    turns = tuple(t.strip() for t in texts if isinstance(t, str) and t.strip())
    if len(turns) < len(texts):
        return ()
    if name == "instruction" and isinstance(row.get("input"), str):
        return (join_input(turns[0], row["input"].strip()),)
    return turns


VICUNA = Origin("vicuna", ("vicuna_questions.jsonl", "question.jsonl"), _read)
QUESTIONS = Origin("questions", ("questions.jsonl", "questions.txt"), _read, own_files=True)


# -- the task ------------------------------------------------------------------------------------------------------


class OpenQuestions(OpenEndedTask[OpenAnswer]):
    """Open-ended questions, with answers that a judge compares in pairs. Only the first turn of a dialogue is asked."""

    record = OpenAnswer

    def __init__(self, origin: Origin) -> None:
        self.name, self.origin = origin.name, origin

    @property
    def verdicts(self) -> str:
        """The name of the file of verdicts."""
        return f"{self.name}-verdicts"

    def messages(self, benchmark: Benchmark, screen: Screen) -> list[Message]:
        if several := sum(len(i.turns) > 1 for i in benchmark.items):
            screen.say(
                f"  {benchmark.label}: {several} questions have further turns; only the first turn is asked", "yellow"
            )
        return [Message(item_id(i), i.turns[0]) for i in benchmark.items]

    def rows(
        self, benchmark: Benchmark, responses: Sequence[ModelResponse], constitution: Constitution
    ) -> list[OpenAnswer]:
        rows = []
        for response in responses:
            item, model = benchmark.items[response.position], response.model
            row_id = content_hash(benchmark.label, item_id(item), item.position, model.prompt)
            rows.append(
                OpenAnswer(
                    row_id, benchmark.label, item.position, item.subset, item.key, item.turns[0], model.prompt,
                    model.name, response.text, response.ended,
                )
            )  # fmt: skip
        return rows

    def scores(self, store: ResultStore) -> list[Score]:
        answers = store.read(self.name, OpenAnswer)
        return comparison.pair_scores(answers, comparison.valid_verdicts(self._verdicts(store), answers))

    def drop_stale_verdicts(self, store: ResultStore) -> None:
        if store.path(self.verdicts).exists():
            answers = store.read(self.name, OpenAnswer)
            store.write(self.verdicts, comparison.valid_verdicts(self._verdicts(store), answers))

    def judge(self, store: ResultStore, benchmark: Benchmark, judge: Judge) -> None:
        answers = [a for a in store.read(self.name, OpenAnswer) if a.benchmark == benchmark.label]
        rows = judge_answers(answers, judge, store.journal, store.screen)
        valid = comparison.valid_verdicts(self._verdicts(store), store.read(self.name, OpenAnswer))
        others = [v for v in valid if (v.benchmark, v.judge) != (benchmark.label, judge.name)]
        if others or rows or store.path(self.verdicts).exists():
            store.write(self.verdicts, [*others, *rows])

    def _verdicts(self, store: ResultStore) -> list[PairVerdict]:
        return store.read(self.verdicts, PairVerdict)


def judge_answers(answers: Sequence[OpenAnswer], judge: Judge, journal: Journal, screen: Screen) -> list[PairVerdict]:
    """Return the judge's verdicts on all pairs of the answers; none if the judge fails its trial."""
    pairs = comparison.pairs_of(answers)
    if not pairs:
        screen.say("  there is only one model, so its answers are not compared", "yellow")
        return []
    both_orders = []
    for pair in pairs:
        question, mine, theirs = pair.model.question, pair.model.answer, pair.rival.answer
        both_orders += [AnswerPair(question, mine, theirs), AnswerPair(question, theirs, mine)]
    requests = judges.pair_requests(judge, [*judges.pair_trial_pairs(), *both_orders])
    screen.say(judge.estimate(journal, judges.PAIR_STAGE, requests), "dim")
    trial, what = judges.pair_trial(judge, journal), "pairs with a certain verdict"
    notes = {"trial": judges.describe_trial(trial, what)}
    if not judge.passes(trial, what, screen):
        judge.settle(journal, judges.PAIR_STAGE, [], notes)
        return []
    with screen.bar(judges.PAIR_STAGE, len(both_orders)) as bar:
        letters = judges.judge_pairs(judge, journal, both_orders, bar.add)
    rows = [
        comparison.verdict_row(pair, judge.name, model_first, rival_first)
        for pair, model_first, rival_first in zip(pairs, letters[0::2], letters[1::2], strict=True)
    ]
    judge.settle(journal, judges.PAIR_STAGE, judges.pair_outcomes(rows), notes)
    *_, unparsable, first, second = comparison.tally(rows).values()
    screen.say(
        f"  judge {judge.name}, {len(rows)} pairs: it preferred the first answer in both orders in {first}, and the "
        f"second in {second}; {unparsable} without a verdict"
    )
    return rows
