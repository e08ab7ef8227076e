"""Find overlap of texts with the benchmark files and behaviour probes that the run is measured on.

Two kinds of overlap count: a common n-gram of words (after Brown et al., arXiv 2005.14165, appendix C), and a ROUGE-L
F1 with an item above a threshold, which also finds short items and items with a changed word.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.errors import UserError
from selfalign.quality.novelty import NoveltyIndex
from selfalign.quality.rouge import folded, ngrams, tokens, words

_MIN_WORDS = 5
"""Shorter texts of a benchmark file, such as labels and "Yes.", occur anywhere."""
_MAX_ROUGE_TOKENS = 1000
"""Items with more tokens are found by their n-grams only."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An overlap with a benchmark item."""

    source: str
    """The file's name, or "probes"."""
    item: str
    evidence: str
    """The kind of overlap, for the ledger."""

    @property
    def reason(self) -> str:
        """The reason for dropping the text."""
        return f"overlaps with {self.source}"

    def beside(self, text: str) -> str:
        """Return the text followed by the item that it overlaps with, for the ledger."""
        return f"{text}\n~ {self.item[:1000]} ({self.evidence})"


class Benchmarks:
    """An index of the items that the run is measured on.

    Args:
        words: number of words in a row that is an overlap; 0 disables the test.
        rouge: ROUGE-L F1 above which there is an overlap; 1 disables the test.
    """

    def __init__(self, words: int = 8, rouge: float = 0.7) -> None:
        self._words = words
        self._items: list[tuple[str, str]] = []
        """(source, item)."""
        self._grams: dict[int, int] = {}
        """Hash of an n-gram -> the first item that contains it."""
        self._exact: dict[str, int] = {}
        self._near = NoveltyIndex(rouge)
        self._positions: dict[str, int] = {}
        self._length_ratio = rouge / (2 - rouge) - 1e-6
        """The least ratio of the lengths of two texts above the threshold: see "Length" in docs/novelty.md."""
        self._longest = 0
        self.sources: dict[str, int] = {}
        """Benchmark file -> number of items in it."""

    def __len__(self) -> int:
        return len(self._items)

    def add(self, source: str, items: Iterable[str]) -> None:
        """Add items, each text once."""
        for item in items:
            key = folded(item)
            if key in self._exact:
                continue
            number = self._exact[key] = len(self._items)
            self._items.append((source, item))
            for gram in self._ngrams(item):
                self._grams.setdefault(gram, number)
            if self._length_ratio < 1 and len(tokens(item)) <= _MAX_ROUGE_TOKENS:
                self._near.accept(item)
                self._positions[item] = number
                self._longest = max(self._longest, len(tokens(item)))

    def add_file(self, path: Path) -> None:
        """Add every text of a benchmark file.

        Raises:
            UserError: the file cannot be read, or has no text of five words.
        """
        before = len(self)
        items = list(texts(path))
        self.add(path.name, items)
        if not items:
            raise UserError(f"benchmark file {str(path)!r} has no text of {_MIN_WORDS} words: is it the right file?")
        self.sources[path.name] = self.sources.get(path.name, 0) + len(self) - before

    def find(self, *texts: str) -> Hit | None:
        """Return the first overlap of these texts, or None."""
        for text in dict.fromkeys(texts):
            if (number := self._exact.get(folded(text))) is not None:
                return Hit(*self._items[number], "the same")
            for place, gram in enumerate(self._ngrams(text)):
                if (number := self._grams.get(gram)) is not None:
                    run = " ".join(words(text)[place : place + self._words])
                    return Hit(*self._items[number], f"{self._words} words in a row: {run}")
            if len(tokens(text)) * self._length_ratio > self._longest:
                continue  # every item is too short
            if near := self._near.nearest(text):
                return Hit(*self._items[self._positions[near.text]], f"ROUGE-L {near.score:.2f}")
        return None

    def _ngrams(self, text: str) -> Iterator[int]:
        if not self._words:
            return iter(())
        return map(hash, ngrams(words(text), self._words))


def texts(path: Path) -> Iterator[str]:
    """Yield every text of at least five words in a JSON, JSONL, CSV, TSV or text file, also keys and parts of lists.

    Raises:
        UserError: the file cannot be read.
    """
    for value in _values(path):
        for text in _strings(value):
            # A cell may contain a list, such as TruthfulQA's answers.
            parts = [text, *text.split("; ")] if "; " in text else [text]
            yield from (part.strip() for part in parts if _is_long_enough(part) and not _is_address(part))


def _is_long_enough(text: str) -> bool:
    # In scripts without spaces between words, count letters.
    return len(words(text)) >= _MIN_WORDS or (not text.isascii() and sum(map(_is_wide, text)) >= 2 * _MIN_WORDS)


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) == "W" and character.isalpha()


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://")) and " " not in text


def _values(path: Path) -> Iterator[Any]:
    number = 1
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix == ".json":
            yield json.loads(text)
        elif path.suffix == ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):  # noqa: B007  (the error names it)
                if line.strip():
                    yield json.loads(line)
        elif path.suffix == ".csv":
            csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
            # strict: a quote that is never closed would swallow the rest of the file
            yield from csv.reader(io.StringIO(text), strict=True)
        elif path.suffix == ".tsv":
            yield from ([cell.strip('"') for cell in line.split("\t")] for line in text.split("\n"))
        else:
            yield from text.split("\n")
    except OSError as error:
        raise UserError(f"benchmark file {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"benchmark file {str(path)!r} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (ValueError, RecursionError, csv.Error) as error:
        why = getattr(error, "msg", str(error))
        raise UserError(f"benchmark file {path}:{number} is not valid {path.suffix[1:].upper()}: {why}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
