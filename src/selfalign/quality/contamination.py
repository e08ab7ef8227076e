"""Does a text overlap with what the run will be measured on? Benchmark files and behaviour probes -> a hit, or none.

Two kinds of overlap count: so many words in a row (n-grams, after Brown et al., arXiv 2005.14165, appendix C), and a
ROUGE-L F1 with an item above a threshold, which also finds short items and those with a word changed.
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
from selfalign.quality.rouge import folded, tokens, words

_MIN_WORDS = 5
"""Shorter texts in a benchmark file (labels, "Yes.") say nothing about where a text comes from."""
_LONGEST = 1000
"""Tokens of an item up to which a text may be the same as a whole; longer ones are found by their n-grams."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An overlap."""

    source: str
    """The file's name, or "probes"."""
    item: str
    how: str

    @property
    def reason(self) -> str:
        return f"overlaps with {self.source}"

    def beside(self, text: str) -> str:
        """The text and what it overlaps with, for the list of what was dropped."""
        return f"{text}\n~ {self.item[:1000]} ({self.how})"


class Benchmarks:
    """What the run will be measured on.

    Args:
        words: so many words in a row are an overlap; 0 looks for none.
        rouge: ROUGE-L F1 above which a text is an item; 1 looks for none.
    """

    def __init__(self, words: int = 8, rouge: float = 0.7) -> None:
        self._words = words
        self._items: list[tuple[str, str]] = []
        """(source, item)."""
        self._grams: dict[int, int] = {}
        """Hash of so many words in a row -> the first item that has them."""
        self._exact: dict[str, int] = {}
        self._near = NoveltyIndex(rouge)
        self._positions: dict[str, int] = {}
        self._shorter = rouge / (2 - rouge) - 1e-6
        """The least share of a text's tokens that another one above the threshold has: docs/novelty.md, length."""
        self._longest = 0
        self.sources: dict[str, int] = {}
        """Benchmark file -> items in it."""

    def __len__(self) -> int:
        return len(self._items)

    def add(self, source: str, items: Iterable[str]) -> None:
        """Take up items; of each text once."""
        for item in items:
            key = folded(item)
            if key in self._exact:
                continue
            number = self._exact[key] = len(self._items)
            self._items.append((source, item))
            for gram in self._ngrams(item):
                self._grams.setdefault(gram, number)
            if self._shorter < 1 and len(tokens(item)) <= _LONGEST:
                self._near.accept(item)
                self._positions[item] = number
                self._longest = max(self._longest, len(tokens(item)))

    def add_file(self, path: Path) -> None:
        """Take up every text of a benchmark file.

        Raises:
            UserError: it cannot be read, or holds no text of five words.
        """
        before = len(self)
        found = list(texts(path))
        self.add(path.name, found)
        if not found:
            raise UserError(f"benchmark file {str(path)!r} holds no text of {_MIN_WORDS} words: is it the right one?")
        self.sources[path.name] = self.sources.get(path.name, 0) + len(self) - before

    def find(self, *texts: str) -> Hit | None:
        """The overlap of the first of these texts that has one."""
        for text in dict.fromkeys(texts):
            if (number := self._exact.get(folded(text))) is not None:
                return Hit(*self._items[number], "the same")
            for place, gram in enumerate(self._ngrams(text)):
                if (number := self._grams.get(gram)) is not None:
                    run = " ".join(words(text)[place : place + self._words])
                    return Hit(*self._items[number], f"{self._words} words in a row: {run}")
            if len(tokens(text)) * self._shorter > self._longest:
                continue  # no item is long enough to be like it
            if near := self._near.nearest(text):
                return Hit(*self._items[self._positions[near.text]], f"ROUGE-L {near.score:.2f}")
        return None

    def _ngrams(self, text: str) -> Iterator[int]:
        if not self._words:
            return iter(())
        found = words(text)
        return (hash(gram) for gram in zip(*(found[i:] for i in range(self._words)), strict=False))


def texts(path: Path) -> Iterator[str]:
    """Every text of five words and more in a JSON, JSONL, CSV, TSV or plain text file, keys and parts of lists too.

    Raises:
        UserError: the file cannot be read.
    """
    for value in _values(path):
        for text in _strings(value):
            # A cell may be a list, as TruthfulQA's answers.
            parts = [text, *text.split("; ")] if "; " in text else [text]
            yield from (part.strip() for part in parts if _says_enough(part) and not _is_address(part))


def _says_enough(text: str) -> bool:
    # Scripts without spaces between words: their letters are counted.
    return len(words(text)) >= _MIN_WORDS or (not text.isascii() and sum(map(_is_wide, text)) >= 2 * _MIN_WORDS)


def _is_wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) == "W" and letter.isalpha()


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
        raise UserError(f"benchmark file {path}:{number} is no {path.suffix[1:].upper()}: {why}") from None


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
