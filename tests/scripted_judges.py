"""Judges that decide by rule, for the fake engine."""

from __future__ import annotations

import random
import re

from selfalign.evaluation import judges
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Script


def shown(prompt: str) -> tuple[str, str]:
    """The two answers that a judge's prompt ends with."""
    found = re.findall(r"Answer A:\n(.*?)\nAnswer B:\n(.*?)\nBetter answer", prompt, re.S)
    return found[-1][0], found[-1][1]


def prefers(good: str) -> Script:
    """A judge that knows the certain pairs, else prefers the answer with that word: the first where both have it."""
    certain = {judges.quoted(answer) for _, answer, _ in judges.CERTAIN_PAIRS}

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        assert step.grammar == 'root ::= " A" | " B" | " tie"' and step.sampling.temperature == 0
        first, second = (text in certain or good in text for text in shown(prompt))
        return " A" if first else " B" if second else " tie"

    return script
