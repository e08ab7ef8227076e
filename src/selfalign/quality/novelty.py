"""Exact ROUGE-L novelty: a text is new if its ROUGE-L F1 with every accepted one is at most the threshold.

The decisions are those of rouge-score (its tokenizer, no stemmer, F-measure), for each candidate against *all* that was
accepted so far, without comparing it with all: docs/novelty.md has the bounds and their proofs. In short, a pair above
the threshold must be of similar length, must share many tokens, and must share one of the rarest of each; the few pairs
that pass are compared by rapidfuzz's bit-parallel LCS.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rapidfuzz.distance import LCSseq

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.int32]

_TOKEN = re.compile(r"[a-z0-9]+")
_MARGIN = 1e-6
"""Pairs this far below the threshold are still decided by rouge-score's own formula, rounding included."""


def tokens(text: str) -> list[str]:
    """rouge-score's default tokens: lower case, runs of a-z and 0-9."""
    return _TOKEN.findall(text.lower())


def words(text: str) -> list[str]:
    """The text's words in any script, case folded."""
    return re.findall(r"\w+", text.casefold())


def folded(text: str) -> str:
    """The text as it is compared with others for being the same: case, spaces and punctuation do not count."""
    return " ".join(words(text)) or text.strip()


def rouge_l(a: str, b: str, split: Callable[[str], Sequence[str]] | None = None) -> float:
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


class _Growing:
    """An array of 32-bit integers that grows at its end."""

    def __init__(self) -> None:
        import numpy as np

        self._data: Ids = np.empty(1024, np.int32)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def extend(self, values: list[int]) -> None:
        import numpy as np

        size = self._size + len(values)
        if size > len(self._data):
            self._data = np.concatenate([self._data, np.empty(max(len(self._data), size), np.int32)])
        self._data[self._size : size] = values
        self._size = size

    @property
    def values(self) -> Ids:
        return self._data[: self._size]


class NoveltyIndex:
    """Insert or reject.

    Memory: about 57 MB per 100,000 instructions of a dozen words (benchmarks/novelty.py).

    Args:
        threshold: a text is rejected if its F1 with an accepted one is strictly above this; 0 to 1.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        import numpy as np

        self.threshold = threshold
        self._bound = max(0.0, threshold - _MARGIN)
        self._characters: dict[str, str] = {}
        """Token -> a character, so that LCS runs over strings."""
        self._elements: dict[tuple[str, int], int] = {}
        """(token, how often it occurred before in its text) -> number, in the order of first sight: later is rarer."""
        self._texts: list[str] = []
        self._exact: set[str] = set()
        self._encoded: list[str] = []
        self._lengths = _Growing()
        self._ends = _Growing()
        self._members = _Growing()
        """The elements of all texts, one after the other; `_ends` says where each text's end."""
        self._postings: dict[int, array[int]] = {}
        """Element -> texts that have it among their rarest."""
        self._marked: NDArray[np.int8] = np.zeros(1024, np.int8)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, text: str) -> bool:
        """Whether this very text was accepted: a copy without words, or under a threshold of 1, is near to nothing."""
        return text in self._exact

    def add(self, text: str) -> bool:
        """Enter the text if it is new; False if it is not."""
        found = tokens(text)
        if self._first_near(found) is not None:
            return False
        self._enter(text, found)
        return True

    def add_all(self, texts: Iterable[str]) -> list[bool]:
        """`add` of each, in their order."""
        return [self.add(text) for text in texts]

    def accept(self, text: str) -> None:
        """Enter a text without a check (the seeds)."""
        self._enter(text, tokens(text))

    def nearest(self, text: str) -> Nearest | None:
        """The first accepted text that is too close, or None if the text is new."""
        found = self._first_near(tokens(text))
        return None if found is None else Nearest(self._texts[found[0]], found[1])

    # -- the bounds ----------------------------------------------------------------------------------------------

    def _overlap(self, m: int, n: int) -> int:
        """Fewest tokens that two texts of m and n tokens must share to be too close."""
        return max(1, math.ceil(self._bound * (m + n) / 2 - 1e-9))

    def _shortest(self, m: int) -> int:
        """Fewest tokens of a text that can be too close to one of m tokens."""
        return max(1, math.ceil(self._bound * m / (2 - self._bound) - 1e-9))

    def _prefix(self, m: int) -> int:
        """How many of its rarest elements a text of m tokens is known by: too close a text shares one of them."""
        return m - self._overlap(m, self._shortest(m)) + 1

    # -- finding -------------------------------------------------------------------------------------------------

    def _first_near(self, found: list[str]) -> tuple[int, float] | None:
        import numpy as np

        m = len(found)
        if not m:
            return None
        numbers = [n for e in _occurrences(found) if (n := self._elements.get(e)) is not None]
        # Unknown elements are rarer than all known ones: they stand first in the prefix and have no postings.
        numbers.sort(reverse=True)
        rarest = numbers[: max(0, self._prefix(m) - (m - len(numbers)))]
        lists = [np.frombuffer(self._postings[n], np.int32) for n in rarest if n in self._postings]
        if not lists:
            return None
        candidates = np.concatenate(lists)
        lengths = self._lengths.values[candidates]
        fits = (lengths >= self._shortest(m)) & (lengths * self._bound <= m * (2 - self._bound) + 1e-9)
        candidates = np.unique(candidates[fits])
        candidates = self._sharing_enough(candidates, numbers, m)
        if not len(candidates):
            return None
        query = self._encode(found)
        for position in candidates.tolist():
            other = self._encoded[position]
            score = _f1(LCSseq.similarity(query, other), m, len(other))
            if score > self.threshold:
                return position, score
        return None

    def _sharing_enough(self, candidates: Ids, numbers: list[int], m: int) -> Ids:
        """Those candidates that share as many elements with the query as a text too close must."""
        import numpy as np

        if not len(candidates):
            return candidates
        lengths = self._lengths.values[candidates]
        ends = self._ends.values[candidates]
        total = np.cumsum(lengths)
        # Indices of all members of all candidates, one after the other.
        at = np.arange(total[-1]) + np.repeat(ends - total, lengths)
        mine = self._marks(numbers)
        shared = np.add.reduceat(mine[self._members.values[at]], total - lengths)
        self._unmark(numbers)
        return candidates[shared >= self._bound * (lengths + m) / 2 - 1e-9]

    def _marks(self, numbers: list[int]) -> NDArray[np.int8]:
        """An array with 1 at these elements and 0 elsewhere; `_unmark` clears it again."""
        import numpy as np

        if len(self._marked) < len(self._elements):
            self._marked = np.zeros(2 * len(self._elements) + 1024, np.int8)
        self._marked[numbers] = 1
        return self._marked

    def _unmark(self, numbers: list[int]) -> None:
        self._marked[numbers] = 0

    # -- entering ------------------------------------------------------------------------------------------------

    def _encode(self, found: list[str]) -> str:
        known = self._characters
        letters = []
        for token in found:
            letter = known.get(token)
            if letter is None:
                # Surrogates are no characters of their own; the planes above hold a million words.
                letter = known[token] = chr(len(known) + (0x10000 if len(known) > 0xD000 else 1))
            letters.append(letter)
        return "".join(letters)

    def _enter(self, text: str, found: list[str]) -> None:
        position = len(self._texts)
        numbers = [self._elements.setdefault(e, len(self._elements)) for e in _occurrences(found)]
        numbers.sort(reverse=True)
        for number in numbers[: self._prefix(len(found))] if found else ():
            self._postings.setdefault(number, array("i")).append(position)
        self._members.extend(numbers)
        self._lengths.extend([len(numbers)])
        self._ends.extend([len(self._members)])
        self._texts.append(text)
        self._exact.add(text)
        self._encoded.append(self._encode(found))


def _occurrences(found: list[str]) -> list[tuple[str, int]]:
    """Each token with how often it came before: as sets of these, two texts share what their multisets share."""
    seen: dict[str, int] = {}
    elements = []
    for token in found:
        before = seen.get(token, 0)
        seen[token] = before + 1
        elements.append((token, before))
    return elements
