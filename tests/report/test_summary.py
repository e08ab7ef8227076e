"""The summary of a report: whether the run worked, what got worse, and which model to use."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from selfalign.evaluation.records import Score
from selfalign.report.summary import primary_rows, summary


def score(model: str, value: float, vs: str | None = None, low: float = 0.0, high: float = 0.0, **more: Any) -> dict:
    """Return a score of the primary endpoint; the paired difference is the middle of its interval."""
    difference = (low + high) / 2 if vs else None
    fields = {"benchmark": "behaviour", "measure": "appropriate", "prompt": "standard", "n": 100, **more}
    ends = (low, high) if vs else (None, None)
    return asdict(
        Score(
            **fields,
            model=model,
            value=value,
            low=value - 0.1,
            high=value + 0.1,
            vs=vs,
            difference=difference,
            difference_low=ends[0],
            difference_high=ends[1],
        )
    )


BASE = score("base", 0.5)
GROUPS = [
    score("base", 0.1, benchmark="behaviour/harmful"),
    score("final", 0.7, "base", 0.5, 0.9, benchmark="behaviour/harmful"),
]


def answers(*scores: dict) -> dict[str, str]:
    return dict(summary([BASE, *scores], 291, 1260.0))


@pytest.mark.parametrize(
    ("low", "high", "begins"),
    [
        (0.1, 0.3, "Yes: the final model responds appropriately to 70% of"),
        (-0.1, 0.3, "Not shown: the final model"),
        (-0.3, -0.1, "No: the final model"),
    ],
)
def test_first_answer_follows_the_primary_endpoint(low: float, high: float, begins: str):
    text = answers(score("final", 0.7, "base", low, high))["Did it work?"]
    assert text.startswith(begins)
    assert ("may be chance" in text) == (begins.startswith("Not"))


def test_significant_difference_needs_the_corrected_p():
    text = answers({**score("final", 0.7, "base", 0.01, 0.3), "p": 0.04, "holm": 0.08})["Did it work?"]
    assert text.startswith("Not shown")


def test_groups_are_quoted_in_words():
    text = answers(score("final", 0.7, "base", 0.1, 0.3), *GROUPS)["Did it work?"]
    assert text.endswith("It refuses harmful requests: 70% (base 10%).")


def test_run_without_behaviour_says_how_to_measure_it():
    loss = score("final", 1.2, "base", -0.2, -0.1, benchmark="heldout", measure="loss without constitution")
    text = dict(summary([loss], 291, 60.0))["Did it work?"]
    assert text.startswith("Not measured: `selfalign evaluate RUN --benchmarks behaviour`")


def test_worse_measures_are_named_and_counted():
    worse = [
        score("final", 0.4, "base", 0.1, 0.3, measure=measure) for measure in ("evaded", "loops", "run-on", "empty a")
    ]
    text = answers(*worse)["What got worse?"]
    assert "Behaviour, evaded: 40%" in text
    assert text.endswith("; and 1 more.")
    assert answers(score("final", 0.7, "base", 0.1, 0.3))["What got worse?"].startswith("No measure")


def test_model_to_use_depends_on_the_primary_endpoint():
    better = score("final", 0.7, "base", 0.1, 0.3)
    assert answers(better)["Which model to use?"].startswith("final")
    after = score("final", 0.7, "engraved", -0.3, -0.1)
    assert answers(better, after)["Which model to use?"].startswith("engraved: verbose cloning")
    unsure, gain = score("final", 0.5, "base", -0.1, 0.2), score("engraved", 0.7, "base", 0.1, 0.3)
    assert answers(unsure, gain)["Which model to use?"].startswith("engraved: it is better than the base")
    assert "may show" not in answers(unsure, gain)["Which model to use?"]
    assert answers(unsure)["Which model to use?"].startswith("final")
    assert answers(score("final", 0.3, "base", -0.3, -0.1))["Which model to use?"].startswith("The base")


def test_test_half_comes_before_the_development_half():
    test = [score("base", 0.4, benchmark="behaviour (test)")]
    assert primary_rows([BASE, *test])[0][1].startswith("40")


def test_nothing_is_said_before_the_evaluation():
    assert summary([], 291, 60.0) == []
    assert summary([BASE], 291, 60.0) == []
