"""Rows of items -> scores: rates with intervals, and the paired differences between models. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfalign.data.records import ItemScore, Score
from selfalign.evaluation.forms import PROMPTS
from selfalign.evaluation.statistics import Interval, bootstrap_mean, mcnemar, wilson

BY_SUBSET = ("hhh",)
"""Benchmarks whose subsets are scored by themselves, too."""


FEWEST = 5
"""Texts below which a difference has no interval: so few draws say nothing of what others would be."""


@dataclass(frozen=True, slots=True)
class Value:
    """What a model reached on one item by one measure."""

    item: int
    cluster: str
    value: float


Column = tuple[str, str]
"""(model, prompt)."""


def scores(rows: Sequence[ItemScore]) -> list[Score]:
    """One score for each benchmark (and subset), measure and model, and one more for each comparison.

    Each model is compared with the base (where there is none, with the first model), the final one also with the
    engraved one: what verbose cloning costs ("verbose tax") stands there for every measure.
    """
    found: list[Score] = []
    for benchmark in dict.fromkeys(r.benchmark for r in rows):
        mine = [r for r in rows if r.benchmark == benchmark]
        found += _of(benchmark, mine)
        if benchmark.split(" ")[0] in BY_SUBSET:
            for subset in dict.fromkeys(r.subset for r in sorted(mine, key=lambda r: r.item)):
                found += _of(f"{benchmark}/{subset}", [r for r in mine if r.subset == subset])
    return found


def _of(benchmark: str, rows: Sequence[ItemScore]) -> list[Score]:
    table: dict[str, dict[Column, list[Value]]] = {}
    for row in rows:
        for measure, value in row.values.items():
            values = table.setdefault(measure, {}).setdefault((row.model, row.prompt), [])
            values.append(Value(row.item, row.cluster, value))
    found = []
    for measure, columns in table.items():
        for column, values in columns.items():
            own = _own(benchmark, measure, column, values)
            others = rivals(column, list(columns))
            found += [_against(own, values, rival, columns[rival]) for rival in others] or [own]
    return found


def _own(benchmark: str, measure: str, column: Column, values: Sequence[Value]) -> Score:
    numbers = [v.value for v in values]
    if all(n in (0.0, 1.0) for n in numbers):
        interval = wilson(sum(n == 1.0 for n in numbers), len(numbers))
    else:
        interval = bootstrap_mean(numbers, clusters=[v.cluster for v in values])
    model, prompt = column
    return Score(benchmark, measure, model, prompt, len(numbers), interval.value, interval.low, interval.high)


def rivals(column: Column, columns: Sequence[Column]) -> list[Column]:
    """Whom a model is compared with: the base (where there is none, the first model) and, where it is the final one,
    the engraved one.

    Under the same prompt where they have it, else under the first of `PROMPTS`: the order in which models were measured
    plays no part.
    """

    def named(name: str) -> Column | None:
        same = sorted((c for c in columns if c[0] == name), key=lambda c: (c[1] != column[1], *_order(c[1])))
        return same[0] if same else None

    base = named("base") or named(columns[0][0])
    found = [base] if base and base != column else []
    if column[0] == "final" and (engraved := named("engraved")):
        found.append(engraved)
    return found


def _order(prompt: str) -> tuple[int, str]:
    return next((i for i, name in enumerate(PROMPTS) if name == prompt), len(PROMPTS)), prompt


def _against(own: Score, values: Sequence[Value], rival: Column, theirs: Sequence[Value]) -> Score:
    """The score with its paired difference from a rival, over the items that both have."""
    other = {v.item: v.value for v in theirs}
    pairs = [(v, other[v.item]) for v in values if v.item in other]
    if not pairs:
        return own
    clusters = [v.cluster for v, _ in pairs]
    vs = rival[0] if rival[1] == own.prompt or own.prompt == "constitution" else f"{rival[0]} ({rival[1]})"
    if len(set(clusters)) < FEWEST:
        mean = sum(v.value - o for v, o in pairs) / len(pairs)
        return replace(own, vs=vs, difference=mean)
    difference = bootstrap_mean([v.value - o for v, o in pairs], clusters=clusters)
    p = None
    if all(n in (0.0, 1.0) for v, o in pairs for n in (v.value, o)):
        p = mcnemar([o == 1.0 for _, o in pairs], [v.value == 1.0 for v, _ in pairs])
    return replace(
        own,
        vs=vs,
        difference=difference.value,
        difference_low=difference.low,
        difference_high=difference.high,
        p=p,
    )


def interval_of(score: Score) -> Interval | None:
    """The score's difference with its interval; None where it is compared with nothing."""
    if score.difference is None or score.difference_low is None or score.difference_high is None:
        return None
    return Interval(score.difference, score.difference_low, score.difference_high)
