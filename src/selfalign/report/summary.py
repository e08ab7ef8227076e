"""Answer a reader's first questions: did it work, what got worse, what did it cost, which model to use. Pure.

The first answer is about the primary endpoint (evaluation/endpoints.py) and nothing else, so that no other measure can
make a run look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfalign.evaluation.endpoints import MEASURE
from selfalign.report.scores import MODELS, groups, score_text, title, verdict
from selfalign.system.format import duration

_PRIMARY = ("behaviour", "behaviour (test)")
_GROUPS = {
    "live": "says that it has no live data when asked for it",
    "private": "does not invent the life of a private person",
    "harmful": "refuses harmful requests",
}
"""The groups of scenarios that the first answer quotes, in words."""
_MOST_WORSE = 3

Scores = Sequence[dict[str, Any]]


def primary_rows(scores: Scores) -> list[tuple[str, str, str]]:
    """Return (model, value, interval) of the primary endpoint, in the order of the models."""
    rows = {s["model"]: score_text(s)[:2] for s in _primary(scores) if s["model"] in MODELS}
    return [(model, *rows[model]) for model in MODELS if model in rows]


def summary(scores: Scores, items: int, seconds: float) -> list[tuple[str, str]]:
    """Return (question, answer) for a reader who has half a minute; none before the evaluation.

    Args:
        items: number of human-written items.
        seconds: duration of all stages.
    """
    model = _last_model(scores)
    if model is None:
        return []
    return [
        ("Did it work?", _worked(scores, model)),
        ("What got worse?", _worse(scores, model)),
        ("What did it cost?", f"{items:,} human-written items and {duration(seconds)} on this machine."),
        ("Which model to use?", _choice(scores, model)),
    ]


def _last_model(scores: Scores) -> str | None:
    return next((m for m in ("final", "engraved") if any(s["model"] == m for s in scores)), None)


def _primary(scores: Scores) -> list[dict[str, Any]]:
    """Return the scores of the primary endpoint; those of the test half if it was read."""
    by_benchmark = {name: [s for s in scores if (s["benchmark"], s["measure"]) == (name, MEASURE)] for name in _PRIMARY}
    return by_benchmark[_PRIMARY[1]] or by_benchmark[_PRIMARY[0]]


def _compared(scores: Scores, model: str, rival: str) -> dict[str, Any] | None:
    """Return the model's score that has a difference from the rival."""
    rows = (s for s in scores if s["model"] == model and (s["vs"] or "").partition(" (")[0] == rival)
    return next((s for s in rows if s["difference"] is not None), None)


def _worked(scores: Scores, model: str) -> str:
    row = _compared(_primary(scores), model, "base")
    if row is None:
        return "Not measured: `selfalign evaluate RUN --benchmarks behaviour` measures the primary endpoint."
    found, (value, _, difference) = verdict(row), score_text(row)
    base = next((v for name, v, _ in primary_rows(scores) if name == "base"), "–")
    answer = {"better": "Yes", "worse": "No"}.get(found, "Not shown")
    text = f"{answer}: the {model} model responds appropriately to {value} of the scenarios, the base to {base}"
    text += f": {difference}" if found in ("better", "worse") else f"; the difference may be chance: {difference}"
    return f"{text}.{_by_group(scores, row['benchmark'], model)}"


def _by_group(scores: Scores, benchmark: str, model: str) -> str:
    values = {
        (s["benchmark"].partition("/")[2], s["model"]): score_text(s)[0]
        for s in scores
        if s["benchmark"].startswith(f"{benchmark}/") and s["measure"] == MEASURE
    }
    parts = [
        f"{words}: {values[group, model]} (base {values[group, 'base']})"
        for group, words in _GROUPS.items()
        if (group, model) in values and (group, "base") in values
    ]
    return f" It {'; it '.join(parts)}." if parts else ""


def _worse(scores: Scores, model: str) -> str:
    found = []
    for group in groups([s for s in scores if "/" not in s["benchmark"] and s["model"] == model]):
        for measure in group["measures"]:
            for row in measure["rows"]:
                if row["verdict"] == "worse" and (row["vs"] or "").partition(" (")[0] == "base":
                    value, _, difference = score_text(row, measure["unit"])
                    found.append(f"{title(row['benchmark'])}, {measure['name']}: {value}, {difference}")
    if not found:
        return "No measure got worse than the base beyond chance."
    more = f"; and {len(found) - _MOST_WORSE} more" if len(found) > _MOST_WORSE else ""
    return "; ".join(found[:_MOST_WORSE]) + more + "."


def _choice(scores: Scores, model: str) -> str:
    primary = _primary(scores)
    row = _compared(primary, model, "base")
    if row is not None and verdict(row) == "worse":
        return "The base: training made its responses less appropriate."
    against_engraved = _compared(primary, model, "engraved")
    engraved = _compared(primary, "engraved", "base")
    gained = [compared is not None and verdict(compared) == "better" for compared in (engraved, row)]
    if against_engraved is not None and verdict(against_engraved) == "worse":
        best, reason = "engraved", "verbose cloning made the responses less appropriate"
    elif gained == [True, False]:
        best, reason = "engraved", "it is better than the base beyond chance (exploratory), and the final model is not"
    else:
        best, reason = model, "the last one that was trained; its primary endpoint is not worse than before"
    unsure = not gained[best != "engraved"]
    return f"{best}: {reason}." + (
        " More prompts (recipe standard) or a larger base may show a difference." if unsure else ""
    )
