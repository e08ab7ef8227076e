"""Compare models on the same items: scores with paired differences, and win rates from a judge's verdicts. Pure.

Each model is compared with the base (without a base, with the first model). The final model is also compared with the
prompted base, which reads the constitution that training engraved, and with the engraved model, so that every measure
shows the cost of verbose cloning (the "verbose tax").

An answer wins if the judge prefers it in both orders. If the orders disagree, or the judge replies tie, the pair is a
tie. This is the conservative rule of Zheng et al. 2023 (arXiv 2306.05685, section 3.4): judges prefer positions, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from selfalign.data.records import content_hash
from selfalign.evaluation.prompting import PROMPTS
from selfalign.evaluation.records import ItemScore, OpenAnswer, PairVerdict, Score
from selfalign.evaluation.statistics import Interval, bootstrap_mean, mcnemar, wilson

MIN_CLUSTERS = 5
"""The fewest clusters for an interval of a difference: a bootstrap of fewer values is not meaningful."""

Column: TypeAlias = tuple[str, str]
"""(model, prompt)."""


def rivals(column: Column, columns: Sequence[Column]) -> list[Column]:
    """Return the models that a model is compared with.

    A rival's column is the one with the same prompt, if there is one, and otherwise the one with the first prompt in
    `PROMPTS`. The order in which models were measured has no effect.
    """

    def named(name: str) -> Column | None:
        same = sorted((c for c in columns if c[0] == name), key=lambda c: (c[1] != column[1], *_prompt_order(c[1])))
        return same[0] if same else None

    base = named("base") or named(columns[0][0])
    chosen = [base] if base and base != column else []
    if column[0] == "final":
        chosen += [rival for name in ("prompted base", "engraved") if (rival := named(name))]
    return chosen


def _prompt_order(prompt: str) -> tuple[int, str]:
    return next((i for i, name in enumerate(PROMPTS) if name == prompt), len(PROMPTS)), prompt


# -- scores of items -----------------------------------------------------------------------------------------------


def item_scores(rows: Sequence[ItemScore], by_subset: bool = False) -> list[Score]:
    """Return a score for each benchmark, measure and model, or one per rival if a model has several.

    Args:
        by_subset: add the scores of each subset.
    """
    scores: list[Score] = []
    for benchmark in dict.fromkeys(r.benchmark for r in rows):
        mine = [r for r in rows if r.benchmark == benchmark]
        scores += _benchmark_scores(benchmark, mine)
        if by_subset:
            for subset in dict.fromkeys(r.subset for r in sorted(mine, key=lambda r: r.item)):
                scores += _benchmark_scores(f"{benchmark}/{subset}", [r for r in mine if r.subset == subset])
    return scores


def _benchmark_scores(benchmark: str, rows: Sequence[ItemScore]) -> list[Score]:
    table: dict[str, dict[Column, list[ItemScore]]] = {}
    for row in rows:
        for measure in row.values:
            table.setdefault(measure, {}).setdefault((row.model, row.prompt), []).append(row)
    scores = []
    for measure, columns in table.items():
        for column, mine in columns.items():
            score = _score(benchmark, measure, column, mine)
            others = rivals(column, list(columns))
            scores += [_with_difference(score, mine, rival, columns[rival]) for rival in others] or [score]
        scores += _baselines(benchmark, measure, next(iter(columns.values())))
    return scores


def _baselines(benchmark: str, measure: str, rows: Sequence[ItemScore]) -> list[Score]:
    """Return the scores of the baselines without a model on the items of these rows."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.baselines.get(measure, {}).items():
            values.setdefault(name, []).append(value)
    return [Score(benchmark, measure, name, "", len(v), sum(v) / len(v)) for name, v in values.items()]


def _score(benchmark: str, measure: str, column: Column, rows: Sequence[ItemScore]) -> Score:
    values = [r.values[measure] for r in rows]
    if _all_binary(values):
        interval = wilson(values.count(1.0), len(values))
    else:
        interval = bootstrap_mean(values, clusters=[r.cluster for r in rows])
    return Score(benchmark, measure, *column, len(values), interval.value, interval.low, interval.high)


def _with_difference(score: Score, mine: Sequence[ItemScore], rival: Column, theirs: Sequence[ItemScore]) -> Score:
    """Return the score with its paired difference from a rival, over the items that both have."""
    rival_values = {r.item: r.values[score.measure] for r in theirs}
    common = [r for r in mine if r.item in rival_values]
    if not common:
        return score
    pairs = [(r.values[score.measure], rival_values[r.item]) for r in common]
    clusters = [r.cluster for r in common]
    has_own_prompt = "constitution" in (score.prompt, rival[1])
    vs = rival[0] if rival[1] == score.prompt or has_own_prompt else f"{rival[0]} ({rival[1]})"
    if len(set(clusters)) < MIN_CLUSTERS:
        return replace(score, vs=vs, difference=sum(v - r for v, r in pairs) / len(pairs))
    return paired(score, vs, pairs, clusters, exact=_all_binary([v for pair in pairs for v in pair]))


def _all_binary(values: Sequence[float]) -> bool:
    return all(v in (0.0, 1.0) for v in values)


def paired(
    score: Score,
    vs: str,
    pairs: Sequence[tuple[float, float]],
    clusters: Sequence[str] | None = None,
    exact: bool = False,
) -> Score:
    """Return the score with the mean of the paired differences and its interval.

    Args:
        vs: the name of the rival.
        pairs: (the model's value, the rival's value) for each item that both have.
        clusters: as in `bootstrap_mean`.
        exact: add the p of McNemar's exact test; all values must be 0 or 1.
    """
    interval = bootstrap_mean([v - r for v, r in pairs], clusters=clusters)
    p = mcnemar([r == 1.0 for _, r in pairs], [v == 1.0 for v, _ in pairs]) if exact else None
    return replace(
        score, vs=vs, difference=interval.value, difference_low=interval.low, difference_high=interval.high, p=p
    )


# -- verdicts on pairs of answers ----------------------------------------------------------------------------------

Verdict = Literal["win", "tie", "loss", "unparsable"]
LETTERS = ("A", "B", "tie")
"""The judge's possible replies about two answers that it sees as A and B."""

WIN_RATE = "win rate"
COUNTS = ("wins", "ties", "losses", "unparsable", "first place in both orders", "second place in both orders")
"""Measures that count pairs. In the last two the judge preferred the same position in both orders."""
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


def combine_orders(model_first: str, rival_first: str) -> Verdict:
    """Return the verdict that follows from the judge's replies in both orders.

    Args:
        model_first: the reply when the model's answer is shown as A and the rival's as B.
        rival_first: the reply in the other order.
    """
    if model_first not in LETTERS or rival_first not in LETTERS:
        return "unparsable"
    if (model_first, rival_first) == ("A", "B"):
        return "win"
    return "loss" if (model_first, rival_first) == ("B", "A") else "tie"


def pairs_of(answers: Sequence[OpenAnswer]) -> list[Pair]:
    """Return the pairs of answers to compare, by benchmark and model; see `rivals`."""
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


def tally(rows: Sequence[PairVerdict]) -> dict[str, int]:
    """Return the number of pairs for each measure in `COUNTS`."""
    verdicts = Counter(r.verdict for r in rows)
    replies = Counter((r.model_first, r.rival_first) for r in rows)
    counts = [*(verdicts[v] for v in ("win", "tie", "loss", "unparsable")), replies["A", "A"], replies["B", "B"]]
    return dict(zip(COUNTS, counts, strict=True))


def win_rate(rows: Sequence[PairVerdict]) -> Interval | None:
    """Return (wins + ties / 2) / judged pairs with its interval; None without a judged pair.

    The bootstrap resamples questions. Without ties the interval is Wilson's, which has a width even if all are won.
    """
    judged = [r for r in rows if r.verdict in _VALUES]
    values = [_VALUES[r.verdict] for r in judged]
    if not values:
        return None
    if 0.5 not in values:
        return wilson(values.count(1.0), len(values))
    return bootstrap_mean(values, clusters=[r.question for r in judged])


def pair_scores(answers: Sequence[OpenAnswer], verdicts: Sequence[PairVerdict]) -> list[Score]:
    """Return the win rates and counts of each pair of models by each judge, over all questions and by category.

    A model that no judge compared has one score without a value.
    """
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
        rate = win_rate(rows)
        won, lost = ([r.verdict == v for r in rows if r.verdict in _VALUES] for v in ("win", "loss"))
        score = Score(benchmark, f"{WIN_RATE} {against}", model, prompt, len(won), None, vs=vs)
        if rate:
            score = replace(score, value=rate.value, low=rate.low, high=rate.high, p=mcnemar(lost, won))
        scores.append(score)
        scores += [
            Score(benchmark, f"{name} {against}", model, prompt, len(rows), number, vs=vs)
            for name, number in tally(rows).items()
        ]
    return scores
