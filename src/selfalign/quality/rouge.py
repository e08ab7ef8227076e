"""Compute ROUGE-L as rouge-score does, and split texts into words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from rapidfuzz.distance import LCSseq

_TOKEN = re.compile(r"[a-z0-9]+")
_WORD = re.compile(r"\w+")


@lru_cache(maxsize=64)
def tokens(text: str) -> tuple[str, ...]:
    """Return the default tokens of rouge-score: runs of a-z and 0-9 in lower case. Cached for the filters."""
    return tuple(_TOKEN.findall(text.lower()))


@lru_cache(maxsize=64)
def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in any script, case-folded."""
    return tuple(_WORD.findall(text.casefold()))


def ngrams(items: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """Return all n-grams of the items."""
    return zip(*(items[i:] for i in range(n)), strict=False)


def normalize(text: str) -> str:
    """Return the text without differences of case, spaces and punctuation, for comparisons."""
    return " ".join(words(text)) or text.strip()


def rouge_l(a: str, b: str, split: Callable[[str], Sequence[str]] | None = None) -> float:
    """Return the ROUGE-L F1 of two texts, over rouge-score's tokens or those that `split` returns."""
    split = split or tokens
    tokens_a, tokens_b = split(a), split(b)
    return f1(int(LCSseq.similarity(tokens_a, tokens_b)), len(tokens_a), len(tokens_b))


def f1(lcs: int, m: int, n: int) -> float:
    """Return the F-measure of texts of m and n tokens with a common subsequence of `lcs`, rounded as by rouge-score."""
    if not lcs:
        return 0.0
    precision, recall = lcs / n, lcs / m
    return 2 * precision * recall / (precision + recall)
