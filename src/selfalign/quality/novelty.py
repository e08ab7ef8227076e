"""Exact ROUGE-L novelty: a text is new if its ROUGE-L F1 with every accepted one is at most the threshold.

The decisions are those of rouge-score (its tokenizer, no stemmer, F-measure), for each candidate against *all* that was
accepted so far, without comparing it with all: docs/novelty.md has the bounds and their proofs. In short, a pair above
the threshold must be of similar length, must share many tokens, and must share one of the rarest of each; the few pairs
that pass are compared by rapidfuzz's bit-parallel LCS.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rapidfuzz.distance import LCSseq

from selfalign.quality.encoding import Characters, Growing, Numbers, occurrences
from selfalign.quality.rouge import f1, tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

_MARGIN = 1e-6
"""Pairs this far below the threshold are still decided by rouge-score's own formula, rounding included."""
_ROUNDING = 1e-9
_BLOCK = 512
"""Texts that are looked up together."""
_AT_ONCE = 1 << 18
"""Postings that are looked at together: what a processor's cache holds."""
_FEW = 100
"""Postings that are faster looked at one by one."""
_FIRST_NUMBERING = 1000
_PLACE_BITS = 20
_PLACE = (1 << _PLACE_BITS) - 1
_POSITION = (1 << 2 * _PLACE_BITS) - 1
"""Of a key that is a place in a block, then a position."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The accepted text that a rejected one is too close to."""

    text: str
    score: float


@dataclass(slots=True)
class _Candidate:
    """A text as the index sees it."""

    text: str
    encoded: str
    """A character for each token."""
    numbers: list[int]
    """Its elements, rarest first."""
    rarest: list[int]
    """Those that it is listed under."""
    signature: int
    """A bit for each element's number, modulo 64."""


class NoveltyIndex:
    """Insert or reject.

    Memory: about 70 MB per 100,000 instructions of a dozen words (benchmarks/novelty.py).

    Args:
        threshold: a text is rejected if its F1 with an accepted one is strictly above this; 0 to 1.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        import numpy as np

        self.threshold = threshold
        self._bound = max(0.0, threshold - _MARGIN)
        self._characters = Characters()
        """Token -> a character, so that LCS runs over strings."""
        self._elements = Numbers()
        """Token, or (token, how often it occurred before in its text) -> number: the higher, the rarer."""
        self._texts: list[str] = []
        self._exact: set[str] = set()
        self._encoded: list[str] = []
        self._signatures = Growing(np.uint64)
        self._members = Growing(np.int32)
        """The elements of all texts, one after the other, each text's rarest first."""
        self._postings: dict[int, array[int]] = {}
        """Element -> entries of texts that have it among their rarest. An entry is, packed into one number, the text's
        position, its length, and how many of its elements stand from this one on."""
        self._prefixes: dict[int, int] = {}
        self._numbered_at = _FIRST_NUMBERING
        """Texts at which the elements are numbered anew by how frequent they are."""

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, text: str) -> bool:
        """Whether this very text was accepted: a copy without words, or under a threshold of 1, is near to nothing."""
        return text in self._exact

    def add(self, text: str) -> bool:
        """Enter the text if it is new; False if it is not."""
        return self.add_all([text])[0]

    def add_all(self, texts: Iterable[str]) -> list[bool]:
        """`add` of each, in their order: the same decisions, and faster, since many are looked up together."""
        return [near is None for near in self.nearest_all(texts, enter=True)]

    def accept(self, text: str) -> None:
        """Enter a text without a check (the seeds, or what was decided before)."""
        candidate, lists = self._candidate(text), dict[int, list[int]]()
        self._list(candidate, len(self._texts), lists)
        self._enter([candidate], lists)

    def nearest(self, text: str) -> Nearest | None:
        """The first accepted text that is too close, or None if the text is new."""
        return self.nearest_all([text])[0]

    def nearest_all(self, texts: Iterable[str], enter: bool = False) -> list[Nearest | None]:
        """`nearest` of each.

        Args:
            enter: enter those that are new, so that the ones after them are compared with them, too.
        """
        found: list[Nearest | None] = []
        remaining = iter(texts)
        known = len(self._elements), len(self._characters)
        while block := [self._candidate(text) for text in islice(remaining, _BLOCK)]:
            found += self._decide(block, enter)
            while not enter and len(self._elements) > known[0]:  # what was only asked about leaves nothing behind
                self._elements.popitem()
            while not enter and len(self._characters) > known[1]:
                self._characters.popitem()
        return found

    def mean_similarity(self, text: str, among: int | None = None) -> float:
        """Mean ROUGE-L F1 with the accepted texts; 0 where there are none.

        Compares with every one of them: about 0.15 s for 1,000,000 accepted texts of a dozen words, so for all of a
        pool of 100,000 about 11 minutes. Decides nothing.

        Args:
            among: so many of them, in their order; None is all.
        """
        from rapidfuzz import process
        from rapidfuzz.distance import Indel

        others = self._encoded[:among]
        query = self._encode(tokens(text))
        if not query or not others:
            return 0.0
        # What has no tokens is like nothing; Indel would say that two empty texts are the same.
        scores = process.cdist([query], others, scorer=Indel.normalized_similarity, workers=1)
        return float(scores.sum(dtype=float)) / len(others)

    # -- the bounds ----------------------------------------------------------------------------------------------

    def _overlap(self, m: int, n: int) -> int:
        """Fewest tokens that two texts of m and n tokens must share to be too close."""
        return max(1, math.ceil(self._bound * (m + n) / 2 - _ROUNDING))

    def _shortest(self, m: int) -> int:
        """Fewest tokens of a text that can be too close to one of m tokens."""
        return max(1, math.ceil(self._bound * m / (2 - self._bound) - _ROUNDING))

    def _prefix(self, m: int) -> int:
        """How many of its rarest elements a text of m tokens is known by: too close a text shares one of them."""
        known = self._prefixes.get(m)
        if known is None:
            known = self._prefixes[m] = max(0, m - self._overlap(m, self._shortest(m)) + 1) if m else 0
        return known

    # -- finding -------------------------------------------------------------------------------------------------

    def _decide(self, block: list[_Candidate], enter: bool) -> list[Nearest | None]:
        """What is too close to each of the block, among the accepted texts and then among those before it."""
        old, first = self._near_pairs(block), len(self._texts)
        found: list[Nearest | None] = []
        entered: list[_Candidate] = []
        recent: dict[int, list[int]] = {}
        for own, candidate in enumerate(block):
            near = None
            if own in old:
                near = self._first(candidate, ((self._encoded[p], self._texts[p]) for p in old[own]))
            if enter and near is None:
                before = self._scan(candidate, recent, lambda at: entered[at - first].signature)
                near = self._first(candidate, ((entered[p - first].encoded, entered[p - first].text) for p in before))
                if near is None:
                    self._list(candidate, first + len(entered), recent)
                    entered.append(candidate)
            found.append(near)
        self._enter(entered, recent)
        return found

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
        """The same bounds as in `_pass_bounds`, for few entries: positions in their order."""
        found: set[int] = set()
        b, m, signature = self._bound, len(candidate.numbers), candidate.signature
        for left, number in zip(range(m, 0, -1), candidate.rarest, strict=False):
            for entry in lists.get(number, ()):
                n = entry >> _PLACE_BITS & _PLACE
                both = b * (m + n) - _ROUNDING
                if 2 * left >= both and 2 * (entry & _PLACE) >= both:
                    other = entry >> 2 * _PLACE_BITS
                    if (signature ^ signature_at(other)).bit_count() <= m + n - both:
                        found.add(other)
        return sorted(found)

    def _near_pairs(self, block: list[_Candidate]) -> dict[int, list[int]]:
        """For each of the block the accepted texts, in their order, that no bound leaves out."""
        import numpy as np

        pairs: dict[int, list[int]] = {}
        views: list[Integers] = []
        owners: list[tuple[int, int, int]] = []
        waiting = 0
        for own, candidate in enumerate(block):
            m = len(candidate.numbers)
            for place, number in enumerate(candidate.rarest):
                entries = self._postings.get(number)
                if entries is not None:
                    views.append(np.frombuffer(entries, np.int64))
                    owners.append((own, m, place))
                    waiting += len(entries)
            if len(block) == 1 and waiting < _FEW:
                return {0: self._scan(candidate, self._postings, lambda at: int(self._signatures.values[at]))}
            if waiting > _AT_ONCE or (views and own == len(block) - 1):
                for one, other in self._pass_bounds(block, views, owners):
                    pairs.setdefault(one, []).append(other)
                views, owners, waiting = [], [], 0
        return pairs

    def _pass_bounds(
        self, block: list[_Candidate], views: list[Integers], owners: list[tuple[int, int, int]]
    ) -> list[tuple[int, int]]:
        """(place in the block, position) of pairs that may be too close: prefix, position and signature bounds."""
        import numpy as np

        b = self._bound
        counts = np.fromiter(map(len, views), np.int64, len(views))
        entries = np.concatenate(views)
        own, m, place = np.array(owners, np.int64).T
        n, rest = entries >> _PLACE_BITS & _PLACE, entries & _PLACE
        # What can still be shared from these places on must be enough: docs/novelty.md.
        longest = np.repeat(2 * (m - place) - b * m + _ROUNDING, counts)
        least = np.repeat(b * m - _ROUNDING, counts)
        kept = np.flatnonzero((b * n <= longest) & (2 * rest - b * n >= least))
        if not len(kept):
            return []
        view = np.searchsorted(np.cumsum(counts), kept, side="right")
        mine, other = own[view], entries[kept] >> 2 * _PLACE_BITS
        signatures = np.fromiter((c.signature for c in block), np.uint64, len(block))
        differ = np.bitwise_count(signatures[mine] ^ self._signatures.values[other])
        close = differ <= (m[view] + n[kept]) * (1 - b) + _ROUNDING
        found = np.unique(mine[close] << 2 * _PLACE_BITS | other[close])
        return list(zip((found >> 2 * _PLACE_BITS).tolist(), (found & _POSITION).tolist(), strict=True))

    # -- entering ------------------------------------------------------------------------------------------------

    def _candidate(self, text: str) -> _Candidate:
        found = tokens(text)
        if len(found) > _PLACE:
            raise ValueError(f"a text of {len(found):,} tokens: the index takes {_PLACE:,} at most")
        numbers = list(map(self._elements.__getitem__, occurrences(found)))
        numbers.sort(reverse=True)
        signature = 0
        for number in numbers:
            signature |= 1 << (number & 63)
        return _Candidate(text, self._encode(found), numbers, numbers[: self._prefix(len(found))], signature)

    def _encode(self, found: Sequence[str]) -> str:
        return "".join(map(self._characters.__getitem__, found))

    def _list(self, candidate: _Candidate, position: int, lists: dict[int, list[int]]) -> None:
        """List the text under its rarest elements."""
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
        self._members.extend([number for c in candidates for number in c.numbers])
        self._signatures.extend([c.signature for c in candidates])
        self._texts += [c.text for c in candidates]
        self._exact.update(c.text for c in candidates)
        self._encoded += [c.encoded for c in candidates]
        if len(self._texts) >= self._numbered_at:
            self._number_by_frequency()
            self._numbered_at = 2 * len(self._texts)

    def _number_by_frequency(self) -> None:
        """Number the elements anew, the most frequent first, and list the texts under what is rarest in them now."""
        import numpy as np

        members = self._members.values
        frequency = np.bincount(members, minlength=len(self._elements))
        number = np.empty(len(frequency), np.int32)
        number[np.argsort(-frequency, kind="stable")] = np.arange(len(frequency), dtype=np.int32)
        self._elements = Numbers(
            zip(self._elements, number[np.fromiter(self._elements.values(), np.int64)].tolist(), strict=True)
        )
        lengths = np.fromiter(map(len, self._encoded), np.int64, len(self._encoded))
        starts = np.cumsum(lengths) - lengths
        text = np.repeat(np.arange(len(lengths)), lengths)
        # Each text's members, rarest (highest) first, in one sort.
        highest = len(frequency) - 1
        order = np.sort(text << 2 * _PLACE_BITS | highest - number[members])
        members[:] = highest - (order & _POSITION)
        bits = np.uint64(1) << (members & 63).astype(np.uint64)
        signatures = self._signatures.values
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
