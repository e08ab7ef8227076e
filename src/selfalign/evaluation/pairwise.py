"""Two models' answers to the same questions: who is compared with whom, verdicts in both orders, win rates. Pure.

An answer wins where the judge prefers it in both orders; where the orders disagree, or say tie, it is a tie (the
conservative rule of Zheng et al. 2023, arXiv 2306.05685, section 3.4: judges like a place as well as an answer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfalign.data.records import OpenAnswer, PairVerdict, Score, content_hash
from selfalign.evaluation import tables
from selfalign.evaluation.statistics import Interval, bootstrap_mean, mcnemar, wilson
from selfalign.evaluation.tables import Column

Verdict = Literal["win", "tie", "loss", "unparsable"]
LETTERS = ("A", "B", "tie")
"""What a judge may say of two answers that are shown to it as A and B."""

WIN_RATE = "win rate"
COUNTS = ("wins", "ties", "losses", "unparsable", "first place in both orders", "second place in both orders")
"""Measures that count pairs; the last two say how often the judge chose by the place where an answer stood."""
_NOT_JUDGED = f"{WIN_RATE}: not judged"
_VALUES = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question."""

    model: OpenAnswer
    rival: OpenAnswer

    @property
    def digest(self) -> str:
        """What the verdict is about."""
        return content_hash(self.model.question, self.model.answer, self.rival.answer)

    def id(self, judge: str) -> str:
        """The hash that names the judge's verdict on the pair."""
        mine, theirs = (a.id + a.model for a in (self.model, self.rival))
        return content_hash("pair", mine, theirs, judge)


@dataclass(frozen=True, slots=True)
class Tally:
    """How the pairs of two models ended."""

    wins: int
    ties: int
    losses: int
    unparsable: int
    first: int
    """Pairs in which the judge took the answer in the first place, in both orders."""
    second: int

    @property
    def judged(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def pairs(self) -> int:
        return self.judged + self.unparsable

    @property
    def counts(self) -> dict[str, int]:
        """By the names of `COUNTS`."""
        values = (self.wins, self.ties, self.losses, self.unparsable, self.first, self.second)
        return dict(zip(COUNTS, values, strict=True))


def combined(model_first: str, rival_first: str) -> Verdict:
    """The verdict of both orders together.

    Args:
        model_first: the better answer where the model's is shown as A and the rival's as B: A, B or tie.
        rival_first: the same where they stand the other way round.
    """
    if model_first not in LETTERS or rival_first not in LETTERS:
        return "unparsable"
    if (model_first, rival_first) == ("A", "B"):
        return "win"
    return "loss" if (model_first, rival_first) == ("B", "A") else "tie"


def pairs(answers: Sequence[OpenAnswer]) -> list[Pair]:
    """Every two answers that are compared, benchmark by benchmark, model by model.

    Each model against the base (where there is none, the first model), the final one also against the engraved one;
    under the same prompt where the rival has it.
    """
    found = []
    for benchmark in dict.fromkeys(a.benchmark for a in answers):
        columns: dict[Column, dict[int, OpenAnswer]] = {}
        for answer in (a for a in answers if a.benchmark == benchmark):
            columns.setdefault((answer.model, answer.prompt), {})[answer.item] = answer
        for column, mine in columns.items():
            for rival in tables.rivals(column, list(columns)):
                theirs = columns[rival]
                found += [Pair(mine[i], theirs[i]) for i in sorted(mine) if i in theirs]
    return found


def row(pair: Pair, judge: str, model_first: str, rival_first: str) -> PairVerdict:
    """The judge's verdict on a pair as a record."""
    mine, theirs = pair.model, pair.rival
    return PairVerdict(
        pair.id(judge), mine.benchmark, mine.item, mine.category, mine.question, mine.model, mine.prompt,
        theirs.model, theirs.prompt, judge, pair.digest, model_first, rival_first, combined(model_first, rival_first),
    )  # fmt: skip


def standing(verdicts: Sequence[PairVerdict], answers: Sequence[OpenAnswer]) -> list[PairVerdict]:
    """The verdicts that are about pairs of these answers."""
    known = {(p.digest, p.model.benchmark, *_columns(p)) for p in pairs(answers)}
    return [v for v in verdicts if (v.answers, v.benchmark, v.model, v.prompt, v.rival, v.rival_prompt) in known]


def _columns(pair: Pair) -> tuple[str, str, str, str]:
    return pair.model.model, pair.model.prompt, pair.rival.model, pair.rival.prompt


def tally(rows: Sequence[PairVerdict]) -> Tally:
    """The verdicts, counted."""
    wins, ties, losses = (sum(r.verdict == verdict for r in rows) for verdict in _VALUES)
    first, second = (sum((r.model_first, r.rival_first) == (x, x) for r in rows) for x in ("A", "B"))
    return Tally(wins, ties, losses, len(rows) - wins - ties - losses, first, second)


def win_rate(rows: Sequence[PairVerdict]) -> Interval | None:
    """(wins + ties / 2) of the pairs with a verdict, with its interval; None where there is none.

    A bootstrap draws questions, each with both of its answers. Where there are no ties it is Wilson's interval, which
    does not shrink to a point where all are won.
    """
    judged = [r for r in rows if r.verdict in _VALUES]
    values = [_VALUES[r.verdict] for r in judged]
    if not values:
        return None
    if 0.5 not in values:
        return wilson(values.count(1.0), len(values))
    return bootstrap_mean(values, clusters=[r.question for r in judged])


def scores(answers: Sequence[OpenAnswer], verdicts: Sequence[PairVerdict]) -> list[Score]:
    """Win rates and counts for each two models and judge, of all questions and by category; and who is not judged."""
    found = []
    for benchmark in dict.fromkeys(a.benchmark for a in answers):
        mine = [v for v in verdicts if v.benchmark == benchmark]
        found += _of(benchmark, mine)
        for category in dict.fromkeys(v.category for v in sorted(mine, key=lambda v: v.item) if v.category):
            found += _of(f"{benchmark}/{category}", [v for v in mine if v.category == category])
        judged = {c for v in mine for c in ((v.model, v.prompt), (v.rival, v.rival_prompt))}
        columns = [(a.model, a.prompt) for a in answers if a.benchmark == benchmark]
        found += [
            Score(benchmark, _NOT_JUDGED, *column, columns.count(column), None)
            for column in dict.fromkeys(columns)
            if column not in judged
        ]
    return found


def _of(benchmark: str, verdicts: Sequence[PairVerdict]) -> list[Score]:
    by: dict[tuple[str, str, str, str, str], list[PairVerdict]] = {}
    for v in verdicts:
        by.setdefault((v.model, v.prompt, v.rival, v.rival_prompt, v.judge), []).append(v)
    return [score for key, rows in by.items() for score in _scores(benchmark, key, rows)]


def _scores(benchmark: str, key: tuple[str, str, str, str, str], rows: Sequence[PairVerdict]) -> list[Score]:
    model, prompt, rival, rival_prompt, judge = key
    against = f"against {rival}, judged by {judge}"
    vs = rival if rival_prompt == prompt else f"{rival} ({rival_prompt})"
    counted, rate = tally(rows), win_rate(rows)
    won, lost = ([r.verdict == v for r in rows if r.verdict in _VALUES] for v in ("win", "loss"))
    first = Score(benchmark, f"{WIN_RATE} {against}", model, prompt, counted.judged, None, vs=vs)
    if rate:
        first = replace(first, value=rate.value, low=rate.low, high=rate.high, p=mcnemar(lost, won))
    rest = [
        Score(benchmark, f"{name} {against}", model, prompt, counted.pairs, number, vs=vs)
        for name, number in counted.counts.items()
    ]
    return [first, *rest]
