"""Read scores.json, and format it: grouped, with intervals, and with a verdict only if an interval supports it."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from selfalign.errors import UserError
from selfalign.evaluation.comparison import COUNTS, WIN_RATE
from selfalign.evaluation.results import readings
from selfalign.evaluation.tasks.behaviour import TEST
from selfalign.run.directory import RunDir

Unit = Literal["percent", "words", "number"]

BENCHMARKS = {
    "heldout": "Held-out prompts",
    "hhh": "HHH Eval",
    "truthfulqa": "TruthfulQA",
    "vicuna": "Vicuna questions",
    "questions": "User questions",
    "probes": "Behaviour probes",
    "behaviour": "Behaviour",
    "pressure": "Behaviour under pressure",
}
"""Titles of benchmarks; others are shown under their own name."""
MODELS = ("base", "prompted base", "engraved", "final")
_LOWER = (
    "loss", "run-on", "empty", "perplexity", "evaded", "loops", "thoughts leaked", "constitution leaked"
)  # fmt: skip
"""Measures, by the beginning of their names, for which lower is better."""
_HIGHER = ("accuracy", "mc1", "mc2", "truthful", "informative", "passed", "appropriate", "ended by itself", WIN_RATE)
_NEVER_PERCENT = ("loss", "perplexity", "p(")
_MIN_ROWS_FOR_DECIMAL = 200
"""Number of rows from which a percentage has a decimal."""


def read_scores(run: RunDir) -> list[dict[str, Any]]:
    """Return the entries of scores.json; none before the evaluation."""
    if not run.scores.exists():
        return []
    try:
        value = json.loads(run.scores.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{run.scores} is not JSON ({error}): delete it and run `selfalign evaluate`") from None
    return [dict(v) for v in value] if isinstance(value, list) else []


def readings_of_test_half(run: RunDir) -> int:
    """Return how often new weights of the run read the test half of the scenarios."""
    return readings(run.evaluation, TEST)


def times_read(number: int) -> str:
    """Return the number of readings of the test half as text."""
    return f"test half read {number} time{'s' if number != 1 else ''}"


def unit(score: dict[str, Any]) -> Unit:
    """Return the unit of a score: words, percent (values from 0 to 1, except losses), or number."""
    measure = score["measure"].lower()
    if measure.endswith("words"):
        return "words"
    if measure.startswith(("run-on", "empty")):
        return "percent"
    values = [v for v in (score["value"], score["low"], score["high"]) if v is not None and math.isfinite(v)]
    fraction = all(0 <= v <= 1 for v in values)
    return "percent" if fraction and not measure.startswith(_NEVER_PERCENT) else "number"


def number_text(value: float | None, kind: Unit, n: int = 0, sign: bool = False) -> str:
    """Format a value; a dash if it is missing or not finite.

    Args:
        n: number of rows, which decides the decimals.
        sign: write a plus before positive values.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if kind == "percent":
        text = f"{100 * abs(value):.{int(n >= _MIN_ROWS_FOR_DECIMAL)}f}"
    else:
        text = f"{abs(value):.0f}" if kind == "words" else f"{abs(value):.3f}"
    if float(text) == 0:
        return text
    return f"{'−' if value < 0 else '+' if sign else ''}{text}"


def score_text(score: dict[str, Any], kind: Unit | None = None) -> tuple[str, str, str]:
    """Return (value, interval, difference) of a score as text.

    Args:
        kind: the unit of its group; by default, its own.
    """
    s, kind, n = score, kind or unit(score), score["n"]
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
    """Return the scores with the counts of pairs as `counts` of their win rate instead of scores of their own."""
    counts: dict[tuple[str, ...], dict[str, int]] = {}
    for score in scores:
        if (name := _count_name(score)) and score["value"] is not None:
            counts.setdefault(_pairing(score, name), {})[name] = round(score["value"])
    rows = [score for score in scores if not _count_name(score)]
    return [
        {**row, "counts": _counts_text(c, row["vs"])} if (c := counts.get(_pairing(row, WIN_RATE))) else row
        for row in rows
    ]


def _count_name(score: dict[str, Any]) -> str:
    """Return the name in `COUNTS` of a score that is a count; "" otherwise."""
    return next((name for name in COUNTS if score["measure"].startswith(f"{name} against ")), "")


def _pairing(score: dict[str, Any], name: str) -> tuple[str, ...]:
    """Return a key of the two models and the judge, which follow `name` in the measure."""
    return score["benchmark"], score["measure"].removeprefix(name), score["model"], score["prompt"]


def _counts_text(counts: dict[str, int], rival: str) -> str:
    wins, ties, losses, bad, first, second = (counts.get(name, 0) for name in COUNTS)
    unparsable = f", {bad} unparsable" if bad else ""
    position = f"; by position in both orders: first {first}, second {second}"
    return f"{wins} won, {ties} tied, {losses} lost vs {rival}{unparsable}{position}"


def verdict(score: dict[str, Any]) -> str:
    """Return better, worse, higher, lower or no difference, from the interval of the paired difference; "" without one.

    An exact test must agree if there is one, since intervals of few items are not exact. A win rate is compared with
    one half. Measures that are neither good nor bad, such as lengths, are higher or lower.
    """
    measure, value, neutral = score["measure"].lower(), "difference", 0.0
    low, high = score["difference_low"], score["difference_high"]
    if measure.startswith(WIN_RATE):
        value, neutral, low, high = "value", 0.5, score["low"], score["high"]
    if score[value] is None or low is None or high is None or not math.isfinite(low + high):
        return ""
    p = score["p"] if score.get("holm") is None else score["holm"]
    if low <= neutral <= high or (p is not None and p > 0.05):
        return "no difference"
    up = low > neutral
    if measure.startswith(_LOWER):
        return "worse" if up else "better"
    if measure.startswith(_HIGHER):
        return "better" if up else "worse"
    return "higher" if up else "lower"


def p_text(score: dict[str, Any]) -> str:
    """Return the p value of the comparison as text, corrected for a primary endpoint; "" without one."""
    holm = score.get("holm")
    p, name = (score["p"], "p") if holm is None else (holm, "primary, Holm p")
    if p is None or not math.isfinite(p):
        return ""
    return f"{name} < 0.001" if p < 0.001 else f"{name} {p:.3f}"


def groups(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group scores by benchmark, measure and model, in the order of the file; subsets ("hhh/honest") are apart.

    A model that is compared with two others has two rows; the second is a `repeat`.
    """
    benchmarks: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for score in folded(scores):
        benchmark, _, subset = score["benchmark"].partition("/")
        parts = benchmarks.setdefault(benchmark, {"measures": {}, "subsets": {}})
        name = f"{subset}: {score['measure']}" if subset else score["measure"]
        parts["subsets" if subset else "measures"].setdefault(name, []).append(score)
    return [
        {
            "benchmark": benchmark,
            "title": title(benchmark),
            **{kind: [_measure(name, rows) for name, rows in measures.items()] for kind, measures in parts.items()},
        }
        for benchmark, parts in benchmarks.items()
    ]


def title(benchmark: str) -> str:
    """Return the title of a benchmark."""
    name, space, rest = benchmark.partition(" ")
    return BENCHMARKS.get(name.lower(), name) + space + rest


def _measure(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = {unit(row) for row in rows}
    kind = kinds.pop() if len(kinds) == 1 else "number"
    prompts: dict[str, set[str]] = {}
    for row in rows:
        prompts.setdefault(row["model"], set()).add(row["prompt"])
    labelled, previous = [], None
    for row in sorted(rows, key=lambda row: _position(row["model"])):
        model = (row["model"], row["prompt"])
        label = row["model"] if len(prompts[row["model"]]) == 1 else " · ".join(model)
        labelled.append(
            {
                "counts": "",
                **row,
                "label": label,
                "repeat": model == previous,
                "verdict": verdict(row),
                "p_text": p_text(row),
            }
        )
        previous = model
    return {"name": name, "unit": kind, "rows": labelled}


def _position(model: str) -> int:
    return MODELS.index(model) if model in MODELS else len(MODELS)
