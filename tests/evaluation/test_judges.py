"""The pair judge: its trial, its prompt and its replies."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripted_judges import prefers
from selfalign.evaluation import judges
from selfalign.evaluation.judges import AnswerPair, Judge
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Fake, Script
from selfalign.run.journal import Journal


def a_judge(script: Script, name: str = "by rule") -> Judge:
    return Judge(name, Fake(parallel=2, script=script), f"identity of {name}")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def test_trial_is_balanced_between_positions(journal: Journal) -> None:
    seen: list[str] = []

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        seen.append(prompt)
        return prefers("good")(prompt, step, rng)

    result = judges.pair_trial(a_judge(script), journal)
    assert result.value == 1 and result.low > 0.5 and len(seen) == len(set(seen)) == 2 * len(judges.CERTAIN_PAIRS)
    always = judges.pair_trial(a_judge(lambda p, s, r: " B", "b"), journal)
    assert always.value == 0.5 and always.low < 0.5
    questions = [q for q, _, _ in judges.CERTAIN_PAIRS] + [q for q, *_ in judges._PAIR_SHOTS]
    assert len(set(questions)) == len(questions)


@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=80))
def test_no_text_passes_for_a_line_of_the_prompt(question: str, first: str, second: str):
    block = judges._pair_block(AnswerPair(question, first, second))
    ours = [line for line in block.split("\n") if not line.startswith("|")]
    assert ours == ["Question:", "Answer A:", "Answer B:", "Better answer (A, B or tie):"]


@given(st.text(max_size=12))
def test_only_a_letter_or_tie_is_a_verdict(text: str):
    result = judges.parse_letter(text)
    assert result == "" or text.strip().strip(".").lower() == result.lower()


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (" A", "A"),
        ("b", "B"),
        (" tie.", "tie"),
        ("A is better", ""),
        ("Answer A", ""),
        ("", ""),
        ("AB", ""),
        ("ties", ""),
    ],
)
def test_verdict_is_parsed_strictly(text: str, verdict: str):
    assert judges.parse_letter(text) == verdict
