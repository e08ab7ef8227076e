"""Find duplicate texts within a run, across its stages and across runs. They are reported, not dropped.

There are three methods, and each finds more than the previous one:

- `exact`: the same text, except for case and white space.
- `near`: nearly the same characters. MinHash over character 5-grams (Broder 1997) finds candidate pairs, and their
  exact Jaccard similarity decides.
- `semantic`: a similar meaning, by static word embeddings (wordllama contains the weights).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfalign.errors import UserError
from selfalign.quality.rouge import normalize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHINGLE = 5
_PERMUTATIONS = 128
_ROWS = 1024

JACCARD = 0.7
COSINE = 0.9


def exact(texts: Sequence[str]) -> list[list[int]]:
    """Return clusters of the same texts (`rouge.normalize`), as positions in `texts`, largest first."""
    return _largest_first(_copies(texts))


def _copies(texts: Sequence[str]) -> list[list[int]]:
    """Group the positions of the same texts, in the order of their first positions."""
    positions: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        positions.setdefault(normalize(text), []).append(position)
    return list(positions.values())


def near(texts: Sequence[str], threshold: float = JACCARD) -> list[list[int]]:
    """Return clusters of texts that are linked by a Jaccard similarity of their 5-grams of at least the threshold."""
    from rensa import RMinHash, RMinHashLSH

    # More bands, with fewer hashes each, find less similar pairs: 32 bands find 99.9 % of the pairs with a similarity
    # of 0.65, and 64 bands 99.8 % of those with 0.3.
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
            # The sketches' estimate has a standard deviation of 0.04; the exact value is expensive.
            if joined.root(other) == joined.root(position) or sketch.jaccard(sketches[other]) < threshold - 0.2:
                continue
            # Shingles are recomputed: storing them would take twenty times the memory of the texts.
            if _jaccard(mine, _shingles(texts[other])) >= threshold:
                joined.join(other, position)
        index.insert(position, sketch)
        sketches[position] = sketch
    return joined.clusters()


def semantic(texts: Sequence[str], threshold: float = COSINE) -> list[list[int]]:
    """Return clusters of texts that are linked by a cosine of their mean word vectors of at least the threshold.

    All pairs are compared: this takes seconds for 20,000 texts and about 20 minutes for 366,718.

    Raises:
        UserError: wordllama is not installed.
    """
    import numpy as np

    vectors = embed(texts)
    joined = _Clusters(len(texts))
    for start in range(0, len(texts), _ROWS):
        block = vectors[start : start + _ROWS]
        for row, other in zip(*np.nonzero(block @ vectors[: start + len(block)].T >= threshold), strict=True):
            if other < start + row:
                joined.join(int(other), start + int(row))
    return joined.clusters()


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return unit vectors of shape (texts, 256). Nothing is downloaded."""
    return _embedder().embed([text or " " for text in texts], norm=True)  # type: ignore[no-any-return]


@cache
def _embedder() -> Any:
    """Return the embedding model, which is loaded once."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import wordllama
    except ImportError:
        raise UserError("sentence embeddings need wordllama: pip install wordllama") from None
    finally:  # its import makes every library log to the terminal
        root.handlers[:] = handlers
        root.setLevel(level)
    # The package contains the weights, but does not find its own tokenizer folder.
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)


def _shingles(text: str) -> frozenset[str]:
    whole = normalize(text)
    return frozenset(whole[i : i + _SHINGLE] for i in range(max(1, len(whole) - _SHINGLE + 1)))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def _largest_first(clusters: Iterable[list[int]]) -> list[list[int]]:
    return sorted((c for c in clusters if len(c) > 1), key=lambda c: (-len(c), c[0]))


class _Clusters:
    """Disjoint sets (union-find)."""

    def __init__(self, number: int) -> None:
        self._parent = list(range(number))

    def root(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = item = self._parent[self._parent[item]]
        return item

    def join(self, item: int, other: int) -> None:
        low, high = sorted((self.root(item), self.root(other)))
        self._parent[high] = low

    def clusters(self) -> list[list[int]]:
        members: dict[int, list[int]] = {}
        for item in range(len(self._parent)):
            members.setdefault(self.root(item), []).append(item)
        return _largest_first(members.values())


METHODS: dict[str, Callable[[Sequence[str]], list[list[int]]]] = {"exact": exact, "near": near, "semantic": semantic}
