"""Rule-based judges for the fake engine."""

from __future__ import annotations

import random
import re

from selfalign.evaluation import judges
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Script


def last_answers(prompt: str) -> tuple[str, str]:
    """Return the two answers at the end of a judge's prompt."""
    result = re.findall(r"Answer A:\n(.*?)\nAnswer B:\n(.*?)\nBetter answer", prompt, re.S)
    return result[-1][0], result[-1][1]


def prefers(good: str) -> Script:
    """Return a judge that knows the certain pairs, and otherwise prefers the (first) answer with that word."""
    certain = {judges.quoted(answer) for _, answer, _ in judges.CERTAIN_PAIRS}

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        assert step.grammar == 'root ::= " A" | " B" | " tie"' and step.sampling.temperature == 0
        first, second = (text in certain or good in text for text in last_answers(prompt))
        return " A" if first else " B" if second else " tie"

    return script
