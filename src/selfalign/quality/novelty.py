"""Exact ROUGE-L novelty: a text is new if its ROUGE-L F1 with every accepted one is at most the threshold.

The decisions are those of rouge-score (its tokenizer, no stemmer, F-measure). Words are mapped to characters, so that
rapidfuzz's bit-parallel LCS does the work: its normalised Indel similarity 2L/(m+n) is ROUGE-L's F1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from rapidfuzz import process
from rapidfuzz.distance import Indel, LCSseq

_TOKEN = re.compile(r"[a-z0-9]+")
_MARGIN = 1e-6
"""Candidates this far below the threshold are checked with rouge-score's own formula, rounding included."""


def tokens(text: str) -> list[str]:
    """rouge-score's default tokens: lower case, runs of a-z and 0-9."""
    return _TOKEN.findall(text.lower())


def words(text: str) -> list[str]:
    """The text's words in any script, case folded."""
    return re.findall(r"\w+", text.casefold())


def folded(text: str) -> str:
    """The text as it is compared with others for being the same: case, spaces and punctuation do not count."""
    return " ".join(words(text)) or text.strip()


def rouge_l(a: str, b: str, split: Callable[[str], list[str]] | None = None) -> float:
    """ROUGE-L F1 of two texts, as rouge-score computes it, or over the tokens that `split` finds."""
    split = split or tokens
    one, two = split(a), split(b)
    return _f1(int(LCSseq.similarity(one, two)), len(one), len(two))


def _f1(lcs: int, m: int, n: int) -> float:
    if not lcs:
        return 0.0
    precision, recall = lcs / n, lcs / m
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The accepted text that a rejected one is too close to."""

    text: str
    score: float


class NoveltyIndex:
    """Insert or reject.

    Args:
        threshold: a text is rejected if its F1 with an accepted one is strictly above this.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._characters: dict[str, str] = {}
        self._texts: list[str] = []
        self._exact: set[str] = set()
        self._encoded: list[str] = []

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, text: str) -> bool:
        """Whether this very text was accepted: a copy without words, or under a threshold of 1, is near to nothing."""
        return text in self._exact

    def _encode(self, text: str) -> str:
        known = self._characters
        # Surrogates are no characters of their own; the planes above hold a million words.
        return "".join(
            known.setdefault(t, chr(len(known) + (0x10000 if len(known) > 0xD000 else 1))) for t in tokens(text)
        )

    def nearest(self, text: str) -> Nearest | None:
        """The first accepted text that is too close, or None if the text is new."""
        query = self._encode(text)
        matches = process.extract_iter(
            query,
            self._encoded,
            scorer=Indel.normalized_similarity,
            score_cutoff=max(0.0, self.threshold - _MARGIN),
        )
        for other, _, position in matches:
            score = _f1(LCSseq.similarity(query, other), len(query), len(other))
            if score > self.threshold:
                return Nearest(self._texts[position], score)
        return None

    def accept(self, text: str) -> None:
        """Enter a text without a check (the seeds)."""
        self._encoded.append(self._encode(text))
        self._texts.append(text)
        self._exact.add(text)

    def add(self, text: str) -> bool:
        """Enter the text if it is new; False if it is not."""
        if self.nearest(text) is not None:
            return False
        self.accept(text)
        return True
