"""Compare models on the same items: scores with paired differences, and win rates of pairs that a judge compared. Pure.

Each model is compared with the base (without a base, with the first model), and the final one also with the engraved
one: the cost of verbose cloning ("verbose tax") is a part of every measure.

An answer wins if the judge prefers it in both orders. If the orders disagree, or the judge says tie, it is a tie: the
conservative rule of Zheng et al. 2023 (arXiv 2306.05685, section 3.4), because judges also prefer a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from selfalign.data.records import content_hash
from selfalign.evaluation.prompting import PROMPTS
from selfalign.evaluation.records import ItemScore, OpenAnswer, PairVerdict, Score
from selfalign.evaluation.statistics import Interval, bootstrap_mean, mcnemar, wilson

MIN_CLUSTERS = 5
"""Texts below which a difference has no interval: a bootstrap of so few values is not meaningful."""

Column: TypeAlias = tuple[str, str]
"""(model, prompt)."""


def rivals(column: Column, columns: Sequence[Column]) -> list[Column]:
    """Return the models that a model is compared with.

    Under the same prompt if they were measured under it, otherwise under the first of `PROMPTS`: the order in which
    models were measured has no effect.
    """

    def named(name: str) -> Column | None:
        same = sorted((c for c in columns if c[0] == name), key=lambda c: (c[1] != column[1], *_prompt_order(c[1])))
        return same[0] if same else None

    base = named("base") or named(columns[0][0])
    chosen = [base] if base and base != column else []
    if column[0] == "final" and (engraved := named("engraved")):
        chosen.append(engraved)
    return chosen


def _prompt_order(prompt: str) -> tuple[int, str]:
    return next((i for i, name in enumerate(PROMPTS) if name == prompt), len(PROMPTS)), prompt


# -- scores of items -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Value:
    """A model's value on one item by one measure."""

    item: int
    cluster: str
    value: float


def item_scores(rows: Sequence[ItemScore], by_subset: bool = False) -> list[Score]:
    """Return a score for each benchmark (and subset), measure and model; one per rival if a model has several."""
    scores: list[Score] = []
    for benchmark in dict.fromkeys(r.benchmark for r in rows):
        mine = [r for r in rows if r.benchmark == benchmark]
        scores += _benchmark_scores(benchmark, mine)
        if by_subset:
            for subset in dict.fromkeys(r.subset for r in sorted(mine, key=lambda r: r.item)):
                scores += _benchmark_scores(f"{benchmark}/{subset}", [r for r in mine if r.subset == subset])
    return scores


def _benchmark_scores(benchmark: str, rows: Sequence[ItemScore]) -> list[Score]:
    table: dict[str, dict[Column, list[_Value]]] = {}
    for row in rows:
        for measure, value in row.values.items():
            values = table.setdefault(measure, {}).setdefault((row.model, row.prompt), [])
            values.append(_Value(row.item, row.cluster, value))
    scores = []
    for measure, columns in table.items():
        for column, values in columns.items():
            alone = _score(benchmark, measure, column, values)
            others = rivals(column, list(columns))
            scores += [_with_difference(alone, values, rival, columns[rival]) for rival in others] or [alone]
    return scores


def _score(benchmark: str, measure: str, column: Column, values: Sequence[_Value]) -> Score:
    numbers = [v.value for v in values]
    if all(n in (0.0, 1.0) for n in numbers):
        interval = wilson(sum(n == 1.0 for n in numbers), len(numbers))
    else:
        interval = bootstrap_mean(numbers, clusters=[v.cluster for v in values])
    return Score(benchmark, measure, *column, len(numbers), interval.value, interval.low, interval.high)


def _with_difference(score: Score, values: Sequence[_Value], rival: Column, theirs: Sequence[_Value]) -> Score:
    """Return the score with its paired difference from a rival, over the items that both have."""
    other = {v.item: v.value for v in theirs}
    pairs = [(v, other[v.item]) for v in values if v.item in other]
    if not pairs:
        return score
    clusters = [v.cluster for v, _ in pairs]
    vs = rival[0] if rival[1] == score.prompt or score.prompt == "constitution" else f"{rival[0]} ({rival[1]})"
    if len(set(clusters)) < MIN_CLUSTERS:
        mean = sum(v.value - o for v, o in pairs) / len(pairs)
        return replace(score, vs=vs, difference=mean)
    p = None
    if all(n in (0.0, 1.0) for v, o in pairs for n in (v.value, o)):
        p = mcnemar([o == 1.0 for _, o in pairs], [v.value == 1.0 for v, _ in pairs])
    return replace(compared(score, vs, bootstrap_mean([v.value - o for v, o in pairs], clusters=clusters)), p=p)


def compared(score: Score, vs: str, difference: Interval) -> Score:
    """Return the score with a difference and its interval."""
    return replace(
        score, vs=vs, difference=difference.value, difference_low=difference.low, difference_high=difference.high
    )


# -- verdicts on pairs of answers ----------------------------------------------------------------------------------

Verdict = Literal["win", "tie", "loss", "unparsable"]
LETTERS = ("A", "B", "tie")
"""The judge's possible replies about two answers that it sees as A and B."""

WIN_RATE = "win rate"
COUNTS = ("wins", "ties", "losses", "unparsable", "first place in both orders", "second place in both orders")
"""Measures that count pairs; the last two count pairs in which the judge chose by position."""
_VALUES = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models' answers to one question."""

    model: OpenAnswer
    rival: OpenAnswer

    @property
    def digest(self) -> str:
        """A hash of the judged texts."""
        return content_hash(self.model.question, self.model.answer, self.rival.answer)

    def id(self, judge: str) -> str:
        """Return the id of the judge's verdict on the pair."""
        mine, theirs = (a.id + a.model for a in (self.model, self.rival))
        return content_hash("pair", mine, theirs, judge)


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of the verdicts on two models' pairs."""

    wins: int
    ties: int
    losses: int
    unparsable: int
    first: int
    """Pairs in which the judge preferred the answer in the first position, in both orders."""
    second: int

    @property
    def judged(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def pairs(self) -> int:
        return self.judged + self.unparsable

    @property
    def counts(self) -> dict[str, int]:
        """The counts by the names of `COUNTS`."""
        values = (self.wins, self.ties, self.losses, self.unparsable, self.first, self.second)
        return dict(zip(COUNTS, values, strict=True))


def combine_orders(model_first: str, rival_first: str) -> Verdict:
    """Return the verdict of both orders.

    Args:
        model_first: the better answer if the model's is shown as A and the rival's as B: A, B or tie.
        rival_first: the better answer in the other order.
    """
    if model_first not in LETTERS or rival_first not in LETTERS:
        return "unparsable"
    if (model_first, rival_first) == ("A", "B"):
        return "win"
    return "loss" if (model_first, rival_first) == ("B", "A") else "tie"


def pairs_of(answers: Sequence[OpenAnswer]) -> list[Pair]:
    """Return every two answers that are compared, by benchmark and model; see `rivals`."""
    pairs = []
    for benchmark in dict.fromkeys(a.benchmark for a in answers):
        columns: dict[Column, dict[int, OpenAnswer]] = {}
        for answer in (a for a in answers if a.benchmark == benchmark):
            columns.setdefault((answer.model, answer.prompt), {})[answer.item] = answer
        for column, mine in columns.items():
            for rival in rivals(column, list(columns)):
                theirs = columns[rival]
                pairs += [Pair(mine[i], theirs[i]) for i in sorted(mine) if i in theirs]
    return pairs


def verdict_row(pair: Pair, judge: str, model_first: str, rival_first: str) -> PairVerdict:
    """Return the judge's verdict on a pair as a record."""
    mine, theirs, verdict = pair.model, pair.rival, combine_orders(model_first, rival_first)
    return PairVerdict(
        pair.id(judge), mine.benchmark, mine.item, mine.category, mine.question, mine.model, mine.prompt,
        theirs.model, theirs.prompt, judge, pair.digest, model_first, rival_first, verdict,
    )  # fmt: skip


def valid_verdicts(verdicts: Sequence[PairVerdict], answers: Sequence[OpenAnswer]) -> list[PairVerdict]:
    """Return the verdicts that are about pairs of these answers."""
    known = {
        (p.digest, p.model.benchmark, p.model.model, p.model.prompt, p.rival.model, p.rival.prompt)
        for p in pairs_of(answers)
    }
    return [v for v in verdicts if (v.answers, v.benchmark, v.model, v.prompt, v.rival, v.rival_prompt) in known]


def tally(rows: Sequence[PairVerdict]) -> Tally:
    """Count the verdicts."""
    wins, ties, losses = (sum(r.verdict == verdict for r in rows) for verdict in _VALUES)
    first, second = (sum((r.model_first, r.rival_first) == (x, x) for r in rows) for x in ("A", "B"))
    return Tally(wins, ties, losses, len(rows) - wins - ties - losses, first, second)


def win_rate(rows: Sequence[PairVerdict]) -> Interval | None:
    """Return (wins + ties / 2) / judged pairs with its interval; None without a judged pair.

    The bootstrap resamples questions. Without ties the interval is Wilson's, which keeps a width even if all are won.
    """
    judged = [r for r in rows if r.verdict in _VALUES]
    values = [_VALUES[r.verdict] for r in judged]
    if not values:
        return None
    if 0.5 not in values:
        return wilson(values.count(1.0), len(values))
    return bootstrap_mean(values, clusters=[r.question for r in judged])


def pair_scores(answers: Sequence[OpenAnswer], verdicts: Sequence[PairVerdict]) -> list[Score]:
    """Return win rates and counts for each two models and judge, over all questions and by category, and a score
    without a value for each model that is not judged."""
    scores = []
    for benchmark in dict.fromkeys(a.benchmark for a in answers):
        mine = [v for v in verdicts if v.benchmark == benchmark]
        scores += _verdict_scores(benchmark, mine)
        for category in dict.fromkeys(v.category for v in sorted(mine, key=lambda v: v.item) if v.category):
            scores += _verdict_scores(f"{benchmark}/{category}", [v for v in mine if v.category == category])
        judged = {c for v in mine for c in ((v.model, v.prompt), (v.rival, v.rival_prompt))}
        columns = [(a.model, a.prompt) for a in answers if a.benchmark == benchmark]
        scores += [
            Score(benchmark, f"{WIN_RATE}: not judged", *column, columns.count(column), None)
            for column in dict.fromkeys(columns)
            if column not in judged
        ]
    return scores


def _verdict_scores(benchmark: str, verdicts: Sequence[PairVerdict]) -> list[Score]:
    groups: dict[tuple[str, str, str, str, str], list[PairVerdict]] = {}
    for v in verdicts:
        groups.setdefault((v.model, v.prompt, v.rival, v.rival_prompt, v.judge), []).append(v)
    scores = []
    for (model, prompt, rival, rival_prompt, judge), rows in groups.items():
        against = f"against {rival}, judged by {judge}"
        vs = rival if rival_prompt == prompt else f"{rival} ({rival_prompt})"
        counted, rate = tally(rows), win_rate(rows)
        won, lost = ([r.verdict == v for r in rows if r.verdict in _VALUES] for v in ("win", "loss"))
        score = Score(benchmark, f"{WIN_RATE} {against}", model, prompt, counted.judged, None, vs=vs)
        if rate:
            score = replace(score, value=rate.value, low=rate.low, high=rate.high, p=mcnemar(lost, won))
        scores.append(score)
        scores += [
            Score(benchmark, f"{name} {against}", model, prompt, counted.pairs, number, vs=vs)
            for name, number in counted.counts.items()
        ]
    return scores
