"""Decide exactly whether a text is new: its ROUGE-L F1 with each accepted text must not exceed a threshold.

The decisions equal those of rouge-score (its tokenizer, no stemmer, F-measure) for each candidate and *all* accepted
texts in Latin letters; other scripts have tokens, too (`rouge.tokens`). A text counts with its first million tokens.

Few pairs are compared. A pair above the threshold has similar lengths, shares many tokens, and shares one of the rarest
tokens of each text; docs/novelty.md proves these bounds. rapidfuzz's bit-parallel LCS decides the rest.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rapidfuzz.distance import LCSseq

from selfalign.errors import UserError
from selfalign.quality.rouge import f1, tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

_MARGIN = 1e-6
"""The bounds are applied this far below the threshold, so that rounding errors never exclude a pair."""
_ROUNDING = 1e-9
_BLOCK = 512
"""Number of texts per lookup."""
_POSTINGS_AT_ONCE = 1 << 18
"""Number of postings that numpy compares at once; they must fit the processor's cache."""
_FEW_POSTINGS = 100
"""Below this number, a loop over the postings is faster than numpy."""
_FIRST_NUMBERING = 1000
_PLACE_BITS = 20
_PLACE = (1 << _PLACE_BITS) - 1
_POSITION = (1 << 2 * _PLACE_BITS) - 1
"""Mask of the position in a key that consists of an index in a block and a position."""
_MAX_WORDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Nearest:
    """An accepted text that is too similar to a rejected one."""

    text: str
    score: float


@dataclass(slots=True)
class _Candidate:
    """A text in the index's encoding."""

    text: str
    encoded: str
    """One character per token."""
    numbers: list[int]
    """The numbers of its elements, rarest first."""
    rarest: list[int]
    """The elements whose postings list the text."""
    signature: int
    """64 bits: bit k is set if the number of an element is k modulo 64."""


class _Characters(dict[str, str]):
    """Token -> a character that stands for it."""

    def __missing__(self, token: str) -> str:
        if len(self) > _MAX_WORDS:
            raise UserError(f"more than {_MAX_WORDS:,} different words in the prompts: split the file or the run")
        # Skip the surrogates, which are not characters; the planes above them hold a million words.
        character = self[token] = chr(len(self) + (0x10000 if len(self) > 0xD000 else 1))
        return character


class _Numbers(dict["str | tuple[str, int]", int]):
    """Element -> number. A new element counts as the rarest and gets the highest number."""

    def __missing__(self, element: str | tuple[str, int]) -> int:
        number = self[element] = len(self)
        return number


def _elements(tokens: Sequence[str]) -> Sequence[str | tuple[str, int]]:
    """Pair each repeated token with the number of its earlier occurrences, which turns a multiset into a set."""
    if len(set(tokens)) == len(tokens):
        return tokens
    counts: dict[str, int] = {}
    elements: list[str | tuple[str, int]] = []
    for token in tokens:
        before = counts.get(token, 0)
        counts[token] = before + 1
        elements.append((token, before) if before else token)
    return elements


class NoveltyIndex:
    """An index of accepted texts that accepts new texts and rejects similar ones.

    Memory: about 70 MB per 100,000 instructions of a dozen words (benchmarks/novelty.py).

    Args:
        threshold: a text is rejected if its F1 with an accepted text is greater; from 0 to 1.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._bound = max(0.0, threshold - _MARGIN)
        self._characters = _Characters()
        """The characters of tokens, so that the LCS runs over strings."""
        self._elements = _Numbers()
        """Token, or (token, number of earlier occurrences in its text) -> number: the higher, the rarer."""
        self._texts: list[str] = []
        self._exact: set[str] = set()
        self._encoded: list[str] = []
        self._signatures = array("Q")
        self._members = array("i")
        """The concatenated elements of all texts, each text's rarest first."""
        self._postings: dict[int, array[int]] = {}
        """Element -> entries of the texts with this element among their rarest. An entry is one number, composed of the
        position of the text, its length, and the number of its elements from this one to the most frequent."""
        self._prefixes: dict[int, int] = {}
        self._next_numbering = _FIRST_NUMBERING
        """The number of texts at which the elements are next renumbered by frequency."""

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, text: str) -> bool:
        """Return whether exactly this text was accepted. The F1 does not find copies of texts without tokens."""
        return text in self._exact

    def add(self, text: str) -> bool:
        """Accept the text if it is new; return whether it is."""
        return self.add_all([text])[0]

    def add_all(self, texts: Iterable[str]) -> list[bool]:
        """Add texts in order. The decisions equal those of `add`, which is slower."""
        return [near is None for near in self.nearest_all(texts, enter=True)]

    def accept(self, text: str) -> None:
        """Accept a text without a check (a seed, or a text that was accepted before)."""
        candidate, lists = self._candidate(text), dict[int, list[int]]()
        self._list(candidate, len(self._texts), lists)
        self._enter([candidate], lists)

    def nearest(self, text: str) -> Nearest | None:
        """Return the first accepted text that is too similar, or None if the text is new."""
        return self.nearest_all([text])[0]

    def similar(self, text: str) -> list[Nearest]:
        """Return every accepted text that is too similar, in the order of acceptance."""
        known = len(self._elements), len(self._characters)
        candidate = self._candidate(text)
        positions = self._near_pairs([candidate]).get(0, [])
        others = [self._first(candidate, [(self._encoded[p], self._texts[p])]) for p in positions]
        self._forget(*known)
        return [near for near in others if near]

    def nearest_all(self, texts: Iterable[str], enter: bool = False) -> list[Nearest | None]:
        """Return `nearest` of each text.

        Args:
            enter: accept the new texts, so that later texts are compared with them.
        """
        results: list[Nearest | None] = []
        remaining = iter(texts)
        known = len(self._elements), len(self._characters)
        while block := [self._candidate(text) for text in islice(remaining, _BLOCK)]:
            results += self._decide(block, enter)
            if not enter:
                self._forget(*known)
        return results

    def _forget(self, elements: int, characters: int) -> None:
        """Remove the tokens of a query, which must not enlarge the index."""
        while len(self._elements) > elements:
            self._elements.popitem()
        while len(self._characters) > characters:
            self._characters.popitem()

    def mean_similarity(self, text: str, among: int | None = None) -> float:
        """Return the mean ROUGE-L F1 with the accepted texts, or 0 if there are none. No decision depends on it.

        The text is compared with every accepted one: this takes about 0.15 s for 1,000,000 texts of a dozen words, and
        about 11 minutes in total for a pool of 100,000.

        Args:
            among: number of accepted texts to compare with, the first ones; None for all.
        """
        from rapidfuzz import process
        from rapidfuzz.distance import Indel

        others = self._encoded[:among]
        query = self._encode(tokens(text))
        if not query or not others:
            return 0.0
        # Indel treats two texts without tokens as equal; their ROUGE-L is 0.
        scores = process.cdist([query], others, scorer=Indel.normalized_similarity, workers=1)
        return float(scores.sum(dtype=float)) / len(others)

    # -- the bounds ----------------------------------------------------------------------------------------------

    def _overlap(self, m: int, n: int) -> int:
        """Return the minimum number of tokens that two too similar texts of m and n tokens share."""
        return max(1, math.ceil(self._bound * (m + n) / 2 - _ROUNDING))

    def _shortest(self, m: int) -> int:
        """Return the minimum number of tokens of a text that can be too similar to one of m tokens."""
        return max(1, math.ceil(self._bound * m / (2 - self._bound) - _ROUNDING))

    def _prefix(self, m: int) -> int:
        """Return the number of rarest elements that index a text of m tokens; each similar text shares one of them."""
        length = self._prefixes.get(m)
        if length is None:
            length = self._prefixes[m] = max(0, m - self._overlap(m, self._shortest(m)) + 1) if m else 0
        return length

    # -- lookup --------------------------------------------------------------------------------------------------

    def _decide(self, block: list[_Candidate], enter: bool) -> list[Nearest | None]:
        """Return for each text of the block the first too similar text, accepted before or earlier in the block."""
        old, first = self._near_pairs(block), len(self._texts)
        results: list[Nearest | None] = []
        entered: list[_Candidate] = []
        recent: dict[int, list[int]] = {}
        for index, candidate in enumerate(block):
            near = None
            if index in old:
                near = self._first(candidate, ((self._encoded[p], self._texts[p]) for p in old[index]))
            if enter and near is None:
                before = self._scan(candidate, recent, lambda at: entered[at - first].signature)
                near = self._first(candidate, ((entered[p - first].encoded, entered[p - first].text) for p in before))
                if near is None:
                    self._list(candidate, first + len(entered), recent)
                    entered.append(candidate)
            results.append(near)
        self._enter(entered, recent)
        return results

    def _first(self, candidate: _Candidate, others: Iterable[tuple[str, str]]) -> Nearest | None:
        mine, m = candidate.encoded, len(candidate.encoded)
        for other, text in others:
            score = f1(LCSseq.similarity(mine, other), m, len(other))
            if score > self.threshold:
                return Nearest(text, score)
        return None

    def _scan(
        self, candidate: _Candidate, lists: Mapping[int, Iterable[int]], signature_at: Callable[[int], int]
    ) -> list[int]:
        """Apply the bounds of `_pass_bounds` in a loop over few entries; return the positions in ascending order."""
        positions: set[int] = set()
        b, m, signature = self._bound, len(candidate.numbers), candidate.signature
        for left, number in zip(range(m, 0, -1), candidate.rarest, strict=False):
            for entry in lists.get(number, ()):
                n = entry >> _PLACE_BITS & _PLACE
                both = b * (m + n) - _ROUNDING
                if 2 * left >= both and 2 * (entry & _PLACE) >= both:
                    other = entry >> 2 * _PLACE_BITS
                    if (signature ^ signature_at(other)).bit_count() <= m + n - both:
                        positions.add(other)
        return sorted(positions)

    def _near_pairs(self, block: list[_Candidate]) -> dict[int, list[int]]:
        """Return for each index in the block the ascending positions of the accepted texts that no bound excludes."""
        import numpy as np

        pairs: dict[int, list[int]] = {}
        views: list[Integers] = []
        owners: list[tuple[int, int, int]] = []
        waiting = 0
        for index, candidate in enumerate(block):
            m = len(candidate.numbers)
            for place, number in enumerate(candidate.rarest):
                entries = self._postings.get(number)
                if entries is not None:
                    views.append(np.frombuffer(entries, np.int64))
                    owners.append((index, m, place))
                    waiting += len(entries)
            if len(block) == 1 and waiting < _FEW_POSTINGS:
                return {0: self._scan(candidate, self._postings, lambda at: self._signatures[at])}
            if waiting > _POSTINGS_AT_ONCE or (views and index == len(block) - 1):
                for mine, other in self._pass_bounds(block, views, owners):
                    pairs.setdefault(mine, []).append(other)
                views, owners, waiting = [], [], 0
        return pairs

    def _pass_bounds(
        self, block: list[_Candidate], views: list[Integers], owners: list[tuple[int, int, int]]
    ) -> list[tuple[int, int]]:
        """Return (index in the block, position) of the pairs that pass the prefix, place and signature bounds."""
        import numpy as np

        b = self._bound
        counts = np.fromiter(map(len, views), np.int64, len(views))
        entries = np.concatenate(views)
        index, m, place = np.array(owners, np.int64).T
        n, rest = entries >> _PLACE_BITS & _PLACE, entries & _PLACE
        # The number of elements from these places on must suffice: see "Places" in docs/novelty.md.
        longest = np.repeat(2 * (m - place) - b * m + _ROUNDING, counts)
        least = np.repeat(b * m - _ROUNDING, counts)
        passed = np.flatnonzero((b * n <= longest) & (2 * rest - b * n >= least))
        if not len(passed):
            return []
        view = np.searchsorted(np.cumsum(counts), passed, side="right")
        mine, other = index[view], entries[passed] >> 2 * _PLACE_BITS
        signatures = np.fromiter((c.signature for c in block), np.uint64, len(block))
        differ = np.bitwise_count(signatures[mine] ^ np.frombuffer(self._signatures, np.uint64)[other])
        close = differ <= (m[view] + n[passed]) * (1 - b) + _ROUNDING
        keys = np.unique(mine[close] << 2 * _PLACE_BITS | other[close])
        return list(zip((keys >> 2 * _PLACE_BITS).tolist(), (keys & _POSITION).tolist(), strict=True))

    # -- insertion -----------------------------------------------------------------------------------------------

    def _candidate(self, text: str) -> _Candidate:
        words = tokens(text)[:_PLACE]
        numbers = list(map(self._elements.__getitem__, _elements(words)))
        numbers.sort(reverse=True)
        signature = 0
        for number in numbers:
            signature |= 1 << (number & 63)
        return _Candidate(text, self._encode(words), numbers, numbers[: self._prefix(len(words))], signature)

    def _encode(self, words: Sequence[str]) -> str:
        return "".join(map(self._characters.__getitem__, words))

    def _list(self, candidate: _Candidate, position: int, lists: dict[int, list[int]]) -> None:
        """Add the text to the postings of its rarest elements."""
        m = len(candidate.numbers)
        entry = position << 2 * _PLACE_BITS | m << _PLACE_BITS | m
        for number in candidate.rarest:
            if number in lists:
                lists[number].append(entry)
            else:
                lists[number] = [entry]
            entry -= 1

    def _enter(self, candidates: Sequence[_Candidate], lists: dict[int, list[int]]) -> None:
        for number, entries in lists.items():
            if number in self._postings:
                self._postings[number].fromlist(entries)
            else:
                self._postings[number] = array("q", entries)
        self._members.fromlist([number for c in candidates for number in c.numbers])
        self._signatures.fromlist([c.signature for c in candidates])
        self._texts += [c.text for c in candidates]
        self._exact.update(c.text for c in candidates)
        self._encoded += [c.encoded for c in candidates]
        if len(self._texts) >= self._next_numbering:
            self._number_by_frequency()
            self._next_numbering = 2 * len(self._texts)

    def _number_by_frequency(self) -> None:
        """Renumber the elements, the most frequent first, and rebuild the postings."""
        import numpy as np

        members = np.frombuffer(self._members, np.int32)
        frequency = np.bincount(members, minlength=len(self._elements))
        number = np.empty(len(frequency), np.int32)
        number[np.argsort(-frequency, kind="stable")] = np.arange(len(frequency), dtype=np.int32)
        self._elements = _Numbers(
            zip(self._elements, number[np.fromiter(self._elements.values(), np.int64)].tolist(), strict=True)
        )
        lengths = np.fromiter(map(len, self._encoded), np.int64, len(self._encoded))
        starts = np.cumsum(lengths) - lengths
        text = np.repeat(np.arange(len(lengths)), lengths)
        # One sort puts the members of each text in order, rarest (highest) first.
        highest = len(frequency) - 1
        order = np.sort(text << 2 * _PLACE_BITS | highest - number[members])
        members[:] = highest - (order & _POSITION)
        bits = np.uint64(1) << (members & 63).astype(np.uint64)
        signatures = np.frombuffer(self._signatures, np.uint64)
        signatures[:] = 0
        np.bitwise_or.at(signatures, text, bits)
        place = np.arange(len(text)) - starts[text]
        prefixes = np.array([self._prefix(m) for m in range(int(lengths.max(initial=0)) + 1)])
        listed = place < prefixes[lengths[text]]
        text, place, element = text[listed], place[listed], members[listed]
        m = lengths[text]
        entries = text << 2 * _PLACE_BITS | m << _PLACE_BITS | m - place
        by_element = np.argsort(element, kind="stable")
        element, entries = element[by_element], entries[by_element]
        ends = np.flatnonzero(np.diff(element, append=-1)) + 1
        self._postings = {
            number: array("q", part.tobytes())
            for number, part in zip(element[ends - 1].tolist(), np.split(entries, ends[:-1]), strict=False)
        }
