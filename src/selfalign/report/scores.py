"""scores.json as people read it: grouped, with intervals, and called better or worse only where an interval says so."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any, Literal

from selfalign.data.records import Score
from selfalign.errors import UserError
from selfalign.evaluation.comparison import COUNTS, WIN_RATE
from selfalign.run.directory import RunDir

Unit = Literal["percent", "words", "number"]

BENCHMARKS = {
    "heldout": "Held-out prompts",
    "hhh": "HHH Eval",
    "truthfulqa": "TruthfulQA",
    "vicuna": "Vicuna questions",
    "questions": "Own questions",
    "probes": "Behaviour probes",
    "behaviour": "Behaviour",
}
"""What benchmarks are called; others by their own names."""
MODELS = ("base", "prompted base", "engraved", "final")
_LOWER = (
    "loss", "run-on", "empty", "perplexity", "over-refusal", "evaded", "indirect", "invented", "loops",
    "thoughts leaked", "constitution leaked",
)  # fmt: skip
"""Measures that are better when they are lower, by how their names begin."""
_HIGHER = ("accuracy", "mc1", "mc2", "truthful", "informative", "passed", "refused", WIN_RATE)
_NEITHER_PERCENT = ("loss", "perplexity", "p(")
_MANY = 200
"""Rows from which on a percentage has a decimal."""


def read_scores(run: RunDir) -> list[dict[str, Any]]:
    """scores.json as it stands; empty before the evaluation."""
    if not run.scores.exists():
        return []
    try:
        value = json.loads(run.scores.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{run.scores} is not JSON ({error}): delete it, `selfalign evaluate` makes it again") from None
    return [dict(v) for v in value] if isinstance(value, list) else []


def unit(score: dict[str, Any]) -> Unit:
    """What a measure is counted in: words, shares (what lies between 0 and 1 and is no loss), or plain numbers."""
    measure = score["measure"].lower()
    if measure.endswith("words"):
        return "words"
    if measure.startswith(("run-on", "empty")):
        return "percent"
    values = [v for v in (score["value"], score["low"], score["high"]) if v is not None and math.isfinite(v)]
    share = all(0 <= v <= 1 for v in values)
    return "percent" if share and not measure.startswith(_NEITHER_PERCENT) else "number"


def number_text(value: float | None, kind: Unit, n: int = 0, sign: bool = False) -> str:
    """A value as people read it; a dash for what is no number.

    Args:
        n: rows that it is of.
        sign: a gain gets its plus.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if kind == "percent":
        text = f"{100 * abs(value):.{int(n >= _MANY)}f}"
    else:
        text = f"{abs(value):.0f}" if kind == "words" else f"{abs(value):.3f}"
    if float(text) == 0:
        return text
    return f"{'−' if value < 0 else '+' if sign else ''}{text}"


def score_text(score: dict[str, Any] | Score, kind: Unit | None = None) -> tuple[str, str, str]:
    """(value, interval, difference) of a score as people read it.

    Args:
        kind: what it is counted in, where the group that it stands in has decided.
    """
    s = score if isinstance(score, dict) else asdict(score)
    kind, n = kind or unit(s), s["n"]
    mark = "%" if kind == "percent" else ""

    def number(value: float | None) -> str:
        text = number_text(value, kind, n)
        return text if text == "–" else text + mark

    interval = f"{number(s['low'])} to {number(s['high'])}" if s["low"] is not None else ""
    difference = ""
    if s["difference"] is not None:
        low, high = (number_text(s[f"difference_{end}"], kind, n, sign=True) for end in ("low", "high"))
        points = " points" if mark else ""
        difference = f"{number_text(s['difference'], kind, n, sign=True)}{points} vs {s['vs']} ({low} to {high})"
    return number(s["value"]), interval, s.get("counts") or difference


def folded(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, each win rate with what its pairs came to in `counts`; counts have no row of their own then."""
    found: dict[tuple[str, ...], dict[str, int]] = {}
    for score in scores:
        if (name := _count(score)) and score["value"] is not None:
            found.setdefault(_pairing(score, name), {})[name] = round(score["value"])
    rows = [score for score in scores if not _count(score)]
    return [
        {**row, "counts": _counts_text(c, row["vs"])} if (c := found.get(_pairing(row, WIN_RATE))) else row
        for row in rows
    ]


def _count(score: dict[str, Any]) -> str:
    """Which of `COUNTS` a score is; empty for others."""
    return next((name for name in COUNTS if score["measure"].startswith(f"{name} against ")), "")


def _pairing(score: dict[str, Any], name: str) -> tuple[str, ...]:
    """Which two models, and by which judge: what stands behind the measure's name."""
    return score["benchmark"], score["measure"].removeprefix(name), score["model"], score["prompt"]


def _counts_text(counts: dict[str, int], rival: str) -> str:
    wins, ties, losses, bad, first, second = (counts.get(name, 0) for name in COUNTS)
    none = f", {bad} unparsable" if bad else ""
    place = f"; by place in both orders: first {first}, second {second}"
    return f"{wins} won, {ties} tied, {losses} lost vs {rival}{none}{place}"


def verdict(score: dict[str, Any]) -> str:
    """better, worse, higher, lower or no difference, from the interval of the paired difference; else empty.

    Where there is an exact test, it must agree: of few items no interval is exact. A win rate is compared with one
    half. Higher and lower are said of measures that are neither good nor bad in themselves, as lengths are.
    """
    measure, value, equal = score["measure"].lower(), "difference", 0.0
    low, high = score["difference_low"], score["difference_high"]
    if measure.startswith(WIN_RATE):
        value, equal, low, high = "value", 0.5, score["low"], score["high"]
    if score[value] is None or low is None or high is None or not math.isfinite(low + high):
        return ""
    if low <= equal <= high or (score["p"] is not None and score["p"] > 0.05):
        return "no difference"
    up = low > equal
    if measure.startswith(_LOWER):
        return "worse" if up else "better"
    if measure.startswith(_HIGHER):
        return "better" if up else "worse"
    return "higher" if up else "lower"


def p_text(score: dict[str, Any]) -> str:
    """The p of the comparison; empty where there is none."""
    p = score["p"]
    if p is None or not math.isfinite(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def groups(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Benchmarks, each with its measures, each with its rows by model; subsets ("hhh/honest") under their benchmark.

    In the order of the file, win rates with their counts. A model that is compared with two others has two rows, the
    second of which is a `repeat`.
    """
    found: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for score in folded(scores):
        benchmark, _, subset = score["benchmark"].partition("/")
        parts = found.setdefault(benchmark, {"measures": {}, "subsets": {}})
        name = f"{subset}: {score['measure']}" if subset else score["measure"]
        parts["subsets" if subset else "measures"].setdefault(name, []).append(score)
    return [
        {
            "benchmark": benchmark,
            "title": title(benchmark),
            **{kind: [_measure(name, rows) for name, rows in measures.items()] for kind, measures in parts.items()},
        }
        for benchmark, parts in found.items()
    ]


def title(benchmark: str) -> str:
    """What a benchmark is called on the page."""
    name, space, rest = benchmark.partition(" ")
    return BENCHMARKS.get(name.lower(), name) + space + rest


def _measure(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = {unit(row) for row in rows}
    kind = kinds.pop() if len(kinds) == 1 else "number"
    prompts: dict[str, set[str]] = {}
    for row in rows:
        prompts.setdefault(row["model"], set()).add(row["prompt"])
    shown, before = [], None
    for row in sorted(rows, key=lambda row: _place(row["model"])):
        which = (row["model"], row["prompt"])
        label = row["model"] if len(prompts[row["model"]]) == 1 else " · ".join(which)
        shown.append(
            {
                "counts": "",
                **row,
                "label": label,
                "repeat": which == before,
                "verdict": verdict(row),
                "p_text": p_text(row),
            }
        )
        before = which
    return {"name": name, "unit": kind, "rows": shown}


def _place(model: str) -> int:
    return MODELS.index(model) if model in MODELS else len(MODELS)


def findings(scores: list[dict[str, Any]]) -> list[str]:
    """What the comparisons of the final model (or else the engraved one) say, a line each; nothing beyond intervals."""
    compared = [s for s in folded(scores) if s["difference"] is not None or s.get("counts")]
    model = next((m for m in ("final", "engraved") if any(s["model"] == m for s in compared)), "")
    lines = []
    for group in groups([s for s in compared if s["model"] == model and "/" not in s["benchmark"]]):
        for measure in group["measures"]:
            for row in measure["rows"]:
                value, interval, difference = score_text(row, measure["unit"])
                said = f"{value} ({interval}), {difference}" if row.get("counts") else difference
                lines.append(f"{group['title']}, {measure['name']}: {row['verdict'] or 'unknown'}, {said}")
    return lines
