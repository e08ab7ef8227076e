"""ROUGE-L as rouge-score computes it, and the ways in which a text is split into words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from rapidfuzz.distance import LCSseq

_TOKEN = re.compile(r"[a-z0-9]+")
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=64)
def tokens(text: str) -> tuple[str, ...]:
    """rouge-score's default tokens: lower case, runs of a-z and 0-9. Every rule of a row looks at the same texts."""
    return tuple(_TOKEN.findall(text.lower()))


@lru_cache(maxsize=64)
def words(text: str) -> tuple[str, ...]:
    """The text's words in any script, case folded."""
    return tuple(_WORD.findall(text.casefold()))


def folded(text: str) -> str:
    """The text as it is compared with others for being the same: case, spaces and punctuation do not count."""
    return " ".join(words(text)) or text.strip()


def rouge_l(a: str, b: str, split: Callable[[str], Sequence[str]] | None = None) -> float:
    """ROUGE-L F1 of two texts, as rouge-score computes it, or over the tokens that `split` finds."""
    split = split or tokens
    one, two = split(a), split(b)
    return f1(int(LCSseq.similarity(one, two)), len(one), len(two))


def f1(lcs: int, m: int, n: int) -> float:
    """F-measure of a common subsequence of `lcs` tokens, of texts of m and n tokens, with rouge-score's rounding."""
    if not lcs:
        return 0.0
    precision, recall = lcs / n, lcs / m
    return 2 * precision * recall / (precision + recall)
