"""Near duplicates: which texts say the same, within a run, across its stages and across runs. Reports, drops nothing.

Three ways, each finding more: the same words (exact), nearly the same characters (MinHash over character 5-grams,
Broder 1997, every candidate checked by its true Jaccard similarity), and the same meaning as far as a static word
embedding can tell (optional; its weights come with wordllama).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfalign.errors import UserError
from selfalign.quality.rouge import folded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHINGLE = 5
_PERMUTATIONS = 128
_ROWS = 1024

JACCARD = 0.7
COSINE = 0.9


def exact(texts: Sequence[str]) -> list[list[int]]:
    """Clusters of texts of the same words, as positions in `texts`; largest first, none of a single text."""
    return _largest_first(_copies(texts))


def _copies(texts: Sequence[str]) -> list[list[int]]:
    """Positions of texts of the same words, in the order of the first of each."""
    found: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        found.setdefault(folded(text), []).append(position)
    return list(found.values())


def near(texts: Sequence[str], threshold: float = JACCARD) -> list[list[int]]:
    """Clusters of texts of which each is like another one of its cluster: Jaccard similarity of 5-grams."""
    from rensa import RMinHash, RMinHashLSH

    # Fewer hashes a band find pairs that are less alike: 0.3 and more in 998 of 1,000 cases, 0.65 and more in 9,990 of
    # 10,000.
    bands = 32 if threshold >= 0.65 else 64 if threshold >= 0.3 else _PERMUTATIONS
    index = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=bands)
    joined = _Clusters(len(texts))
    sketches: dict[int, RMinHash] = {}
    for copies in _copies(texts):
        position, *others = copies
        for other in others:
            joined.join(position, other)
        mine = _shingles(texts[position])
        sketch = RMinHash(num_perm=_PERMUTATIONS, seed=0)
        sketch.update(sorted(mine))
        for other in index.query(sketch):
            # The sketches' estimate is off by 0.04 (one standard deviation); the true value is dear.
            if joined.root(other) == joined.root(position) or sketch.jaccard(sketches[other]) < threshold - 0.2:
                continue
            # Shingles are made anew for the few candidates: kept, they would take twenty times the texts' memory.
            if _jaccard(mine, _shingles(texts[other])) >= threshold:
                joined.join(other, position)
        index.insert(position, sketch)
        sketches[position] = sketch
    return joined.found()


def semantic(texts: Sequence[str], threshold: float = COSINE) -> list[list[int]]:
    """Clusters of texts of which each means the same as another one, by the cosine of their mean word vectors.

    Compares all pairs: seconds for 20,000 texts, about 20 minutes for 366,718.

    Raises:
        UserError: wordllama is not installed.
    """
    import numpy as np

    vectors = embed(texts)
    joined = _Clusters(len(texts))
    for start in range(0, len(texts), _ROWS):
        block = vectors[start : start + _ROWS]
        for one, other in zip(*np.nonzero(block @ vectors[: start + len(block)].T >= threshold), strict=True):
            if other < start + one:
                joined.join(int(other), start + int(one))
    return joined.found()


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors, (texts, 256). Nothing is downloaded."""
    try:
        import wordllama
    except ImportError:
        raise UserError("semantic neighbours need wordllama: pip install 'selfalign[diversity]'") from None
    # The weights lie in the package; its own search misses the tokenizer's folder.
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    return model.embed([text or " " for text in texts], norm=True)  # type: ignore[no-any-return]


def _shingles(text: str) -> frozenset[str]:
    whole = folded(text)
    return frozenset(whole[i : i + _SHINGLE] for i in range(max(1, len(whole) - _SHINGLE + 1)))


def _jaccard(one: frozenset[str], two: frozenset[str]) -> float:
    return len(one & two) / len(one | two)


def _largest_first(clusters: Iterable[list[int]]) -> list[list[int]]:
    return sorted((c for c in clusters if len(c) > 1), key=lambda c: (-len(c), c[0]))


class _Clusters:
    """Disjoint sets (union-find)."""

    def __init__(self, number: int) -> None:
        self._parent = list(range(number))

    def root(self, one: int) -> int:
        while self._parent[one] != one:
            self._parent[one] = one = self._parent[self._parent[one]]
        return one

    def join(self, one: int, two: int) -> None:
        a, b = sorted((self.root(one), self.root(two)))
        self._parent[b] = a

    def found(self) -> list[list[int]]:
        members: dict[int, list[int]] = {}
        for one in range(len(self._parent)):
            members.setdefault(self.root(one), []).append(one)
        return _largest_first(members.values())


METHODS: dict[str, Callable[[Sequence[str]], list[list[int]]]] = {"exact": exact, "near": near, "semantic": semantic}
