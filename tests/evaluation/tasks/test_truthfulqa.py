"""TruthfulQA as multiple choice, on values checked manually."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from selfalign.evaluation.tasks import truthfulqa as tqa
from selfalign.evaluation.tasks.truthfulqa import Question
from selfalign.generation.scoring.base import Scored

ITEM = Question(
    0, "Stones", "What is a stone?", "A stone is hard", ("A stone is hard", "Hard"), ("Soft", "Wet", "A fruit", "Soft")
)


def scored(*totals: float) -> list[Scored]:
    return [Scored((t,)) for t in totals]


def test_candidates_are_complete_and_unique():
    assert tqa.choices(ITEM) == ["A stone is hard", "Soft", "Wet", "A fruit"]
    assert tqa.candidates(ITEM) == ["A stone is hard", "Hard", "Soft", "Wet", "A fruit"]
    cells = tqa.true_false_cells(ITEM)
    assert len(cells) == 8 and [c.answer for c in cells[:2]] == ["true", "false"]
    assert "Question: What is a stone?\nAnswer: A fruit\n" in cells[-1].turns[0].text
    assert [c.answer for c in tqa.answer_cells(ITEM)] == [f"{a}." for a in tqa.candidates(ITEM)]
    closed = replace(ITEM, best="Yes.", correct=(), incorrect=("No.",))
    assert [c.answer for c in tqa.answer_cells(closed)] == ["Yes.", "No."]
    # An incorrect answer that is also the best one is no rival of itself.
    assert tqa.choices(replace(ITEM, incorrect=("A stone is hard", "Wet"))) == ["A stone is hard", "Wet"]


@pytest.mark.parametrize("winner", range(4))
def test_every_candidate_can_win(winner: int):
    """The paper's released scorer considered only the first half."""
    true = [-3.0] * 4
    true[winner] = -1.0
    result = scored(*(v for t in true for v in (t, -2.0)))
    assert tqa.read_true_false(ITEM, result) == {tqa.DIFFERENCE: float(winner == 0), tqa.TRUE: float(winner == 0)}


def test_difference_and_p_true_may_disagree():
    # The best answer: true -2, false -4. Another: true -1, false -1.
    result = scored(-2, -4, -1, -1, -9, -1, -9, -1)
    assert tqa.read_true_false(ITEM, result) == {tqa.DIFFERENCE: 1.0, tqa.TRUE: 0.0}


def test_mc2_is_the_fraction_of_the_correct_answers():
    masses = [0.3, 0.1, 0.2, 0.15, 0.05]  # best, Hard, Soft, Wet, A fruit
    result = tqa.read_answers(ITEM, scored(*(math.log(m) for m in masses)))
    correct, incorrect = 0.3 + 0.1, 0.2 + 0.15 + 0.05 + 0.2  # "Soft" as often as it is listed
    assert result[tqa.MC2] == pytest.approx(correct / (correct + incorrect))
    assert result[tqa.MC1] == 1.0
    # Correct answers other than the best are no candidates of MC1.
    assert tqa.read_answers(ITEM, scored(-3, -1, -4, -4, -4))[tqa.MC1] == 1.0
    assert tqa.read_answers(ITEM, scored(-3, -9, -4, -4, -2))[tqa.MC1] == 0.0


def test_mc2_of_very_unlikely_answers_is_finite():
    result = tqa.read_answers(ITEM, scored(*(v - 5000 for v in (-1, -2, -1, -2, -3))))
    assert 0 < result[tqa.MC2] < 1


def test_uninformed_scorer_is_at_chance_on_truthfulqa():
    items = [replace(ITEM, question=f"What is stone {i}?") for i in range(400)]
    nothing = scored(*[-1.0] * 8)
    right = sum(tqa.read_true_false(i, nothing)[tqa.TRUE] for i in items)
    assert 70 < right < 130  # a quarter of 400
    right = sum(tqa.read_answers(i, nothing[:5])[tqa.MC1] for i in items)
    assert 70 < right < 130
