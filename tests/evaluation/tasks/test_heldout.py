"""The scores of the held-out evaluation, on values checked manually."""

from __future__ import annotations

import pytest

from selfalign.evaluation.records import Answer
from selfalign.evaluation.tasks.heldout import LOSS, answer_scores, loss_scores


def answers(model: str, words: list[int], ended: list[bool]) -> list[Answer]:
    return [
        Answer(f"id{i}", "Why?", model, "word " * w, e, w) for i, (w, e) in enumerate(zip(words, ended, strict=True))
    ]


def test_run_on_empty_and_length_by_model() -> None:
    rows = answers("engraved", [0, 20, 30, 40], [True] * 4) + answers("final", [50, 40, 90, 80], [True] * 3 + [False])
    result = {(s.measure, s.model): s for s in answer_scores(rows, 320, ["base", "engraved", "final"])}
    assert result["run-on within 320 tokens", "engraved"].value == 0
    assert result["run-on within 320 tokens", "final"].value == 0.25
    assert result["empty answers", "engraved"].value == 0.25 and result["empty answers", "final"].value == 0
    assert result["median words", "engraved"].value == 25 and result["median words", "final"].value == 65
    longer = result["mean words", "final"]
    assert (longer.vs, longer.difference, longer.n) == ("engraved", pytest.approx(42.5), 4)
    assert longer.difference_low is not None and longer.difference_low > 0
    assert not any(model == "base" for _, model in result)
    # What verbose cloning costs stands beside every rate of the final model.
    tax = result["run-on within 320 tokens", "final"]
    assert (tax.vs, tax.difference, tax.p) == ("engraved", 0.25, 1.0)
    assert result["empty answers", "final"].difference == -0.25
    assert result["run-on within 320 tokens", "engraved"].difference is None


def test_loss_difference_is_paired() -> None:
    base = [1.0, 2.0, 3.0, 4.0]
    result = {s.model: s for s in loss_scores(LOSS, {"base": base, "engraved": [b - 0.5 for b in base]})}
    assert result["base"].value == pytest.approx(2.5) and result["base"].difference is None
    engraved = result["engraved"]
    # Rows differ widely, their differences do not: paired, the interval is narrow.
    assert engraved.difference == pytest.approx(-0.5)
    assert engraved.difference_low == pytest.approx(-0.5) and engraved.difference_high == pytest.approx(-0.5)
    assert engraved.low is not None and engraved.high is not None and engraved.high - engraved.low > 1


def test_final_loss_is_compared_with_base_and_engraved() -> None:
    base = [1.0, 2.0, 3.0]
    rows = loss_scores(LOSS, {"base": base, "engraved": [0.5, 1.5, 2.5], "final": [0.75, 1.75, 2.75]})
    result = [(s.model, s.vs, s.difference) for s in rows]
    assert result == [
        ("base", None, None), ("engraved", "base", -0.5), ("final", "base", -0.25), ("final", "engraved", 0.25)
    ]  # fmt: skip


def test_model_without_answers_has_no_scores() -> None:
    assert answer_scores([], 320, ["base"]) == [] and loss_scores(LOSS, {}) == []
