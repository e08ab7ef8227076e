"""How the novelty index turns texts into numbers: characters for words, elements for sets, arrays that grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfalign.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_WORDS = 1_000_000


class Characters(dict[str, str]):
    """Token -> a character of its own."""

    def __missing__(self, token: str) -> str:
        if len(self) > _MOST_WORDS:
            raise UserError(f"more than {_MOST_WORDS:,} different words: split the file, or the run")
        # Surrogates are no characters of their own; the planes above hold a million words.
        letter = self[token] = chr(len(self) + (0x10000 if len(self) > 0xD000 else 1))
        return letter


class Numbers(dict["str | tuple[str, int]", int]):
    """Element -> number. A new one comes last: rarer than all known ones."""

    def __missing__(self, element: str | tuple[str, int]) -> int:
        number = self[element] = len(self)
        return number


class Growing:
    """An array that grows at its end."""

    def __init__(self, kind: type[np.generic]) -> None:
        import numpy as np

        self._data: NDArray[Any] = np.empty(1024, kind)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def extend(self, values: Sequence[int]) -> None:
        import numpy as np

        size = self._size + len(values)
        if size > len(self._data):
            room = np.empty(max(len(self._data) // 2, size), self._data.dtype)
            self._data = np.concatenate([self._data, room])
        self._data[self._size : size] = values
        self._size = size

    @property
    def values(self) -> NDArray[Any]:
        """A view; the array grows under another address."""
        return self._data[: self._size]


def occurrences(found: Sequence[str]) -> Sequence[str | tuple[str, int]]:
    """Each token with how often it came before: as sets of these, two texts share what their multisets share."""
    if len(set(found)) == len(found):
        return found
    seen: dict[str, int] = {}
    elements: list[str | tuple[str, int]] = []
    for token in found:
        before = seen.get(token, 0)
        seen[token] = before + 1
        elements.append((token, before) if before else token)
    return elements
