"""Find texts that overlap with the benchmark files, behaviour probes and scenarios of the evaluation.

There are two kinds of overlap: a shared n-gram of words (after Brown et al., arXiv 2005.14165, appendix C), and a
ROUGE-L F1 above a threshold, which also finds short items and items with a changed word.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.data import compression
from selfalign.data.files import is_json
from selfalign.errors import UserError
from selfalign.quality.content_words import share_content
from selfalign.quality.novelty import NoveltyIndex
from selfalign.quality.rouge import length, ngrams, normalize, tokens, words

_MIN_WORDS = 5
"""Shorter texts of a benchmark file, such as labels and "Yes.", are no items: they occur in any text."""
_MAX_ROUGE_TOKENS = 1000
"""Items with more tokens are compared by their n-grams only."""
SCENARIO_ROUGE = 0.6 - 1e-9
"""The threshold for scenarios: an F1 of 0.6 is already too near."""
SCENARIO_FRAME = 0.75
"""Below this F1, a text and a scenario must also share more than half of their content words."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An overlap with a benchmark item."""

    source: str
    """The file's name, "probes" or "scenarios"."""
    item: str
    evidence: str
    """The kind of overlap, for the ledger."""

    @property
    def reason(self) -> str:
        """The reason for dropping the text."""
        return f"overlaps with {self.source}"

    def ledger_text(self, text: str) -> str:
        """Return the text followed by the item with which it overlaps."""
        return f"{text}\n~ {self.item[:1000]} ({self.evidence})"


class _Near:
    """An index of items that finds texts with a ROUGE-L F1 above its threshold.

    Two short questions may share a frame of words only ("How do I bake bread?", "How do I repair it?"). Below an F1 of
    `frame`, they must therefore share more than half of their content words.
    """

    def __init__(self, rouge: float, frame: float) -> None:
        self.rouge, self.frame = rouge, frame
        self._index = NoveltyIndex(rouge)
        self._positions: dict[str, int] = {}
        self._length_ratio = rouge / (2 - rouge) - 1e-6
        """Two texts above the threshold have at least this ratio of lengths: see "Length" in docs/novelty.md."""
        self._longest = 0

    def add(self, item: str, number: int) -> None:
        """Add an item with its number. A threshold of 1 disables the test."""
        if self._length_ratio < 1 and len(tokens(item)) <= _MAX_ROUGE_TOKENS:
            self._index.accept(item)
            self._positions[item] = number
            self._longest = max(self._longest, len(tokens(item)))

    def find(self, text: str) -> tuple[int, float] | None:
        """Return (the number of a near item, the F1); None if there is none."""
        if len(tokens(text)) * self._length_ratio > self._longest:
            return None  # every item is too short
        for near in self._index.similar(text):
            if near.score >= self.frame or share_content(text, near.text):
                return self._positions[near.text], near.score
        return None


class Benchmarks:
    """An index of benchmark items and probes.

    Args:
        words: number of shared consecutive words that is an overlap; 0 disables the test.
        rouge: ROUGE-L F1 above which there is an overlap; 1 disables the test.
    """

    def __init__(self, words: int = 8, rouge: float = 0.7) -> None:
        self._words = words
        self._items: list[tuple[str, str]] = []
        """(source, item)."""
        self._grams: dict[int, int] = {}
        """Hash of an n-gram -> the first item that contains it."""
        self._exact: dict[str, int] = {}
        self._rouge = rouge
        self._near: list[_Near] = []
        self.sources: dict[str, int] = {}
        """Benchmark file -> number of items in it."""

    def __len__(self) -> int:
        return len(self._items)

    def add(self, source: str, items: Iterable[str], rouge: float | None = None, frame: float = 0.0) -> None:
        """Add items; a text that was added before is skipped.

        Args:
            rouge: the threshold for these items; by default, that of all.
            frame: the F1 below which a text must also share more than half of its content words with an item.
        """
        rouge = self._rouge if rouge is None else rouge
        near = next((n for n in self._near if (n.rouge, n.frame) == (rouge, frame)), None)
        if near is None:
            near = _Near(rouge, frame)
            self._near.append(near)
        for item in items:
            key = normalize(item)
            if key in self._exact:
                continue
            number = self._exact[key] = len(self._items)
            self._items.append((source, item))
            for gram in self._ngrams(item):
                self._grams.setdefault(hash(gram), number)
            near.add(item, number)

    def add_file(self, path: Path) -> None:
        """Add every text of a benchmark file.

        Raises:
            UserError: the file cannot be read, or has no text of five words.
        """
        before = len(self)
        items = list(texts(path))
        self.add(path.name, items)
        if not items:
            raise UserError(
                f"benchmark file {str(path)!r} has no text of {_MIN_WORDS} words: check that it is the right file"
            )
        self.sources[path.name] = self.sources.get(path.name, 0) + len(self) - before

    def find(self, *texts: str) -> Hit | None:
        """Return the first overlap of the texts with an item, or None."""
        for text in dict.fromkeys(texts):
            if (number := self._exact.get(normalize(text))) is not None:
                return Hit(*self._items[number], "the same")
            for gram in self._ngrams(text):
                if (number := self._grams.get(hash(gram))) is not None:
                    return Hit(*self._items[number], f"{self._words} words in a row: {' '.join(gram)}")
            for near in self._near:
                if match := near.find(text):
                    return Hit(*self._items[match[0]], f"ROUGE-L {match[1]:.2f}")
        return None

    def _ngrams(self, text: str) -> Iterable[tuple[str, ...]]:
        return ngrams(words(text), self._words) if self._words else ()


def texts(path: Path) -> Iterator[str]:
    """Yield every text of at least five words in a JSON, JSONL, CSV, TSV or text file, including keys and list items.

    Raises:
        UserError: the file cannot be read.
    """
    for value in _values(path):
        for text in _strings(value):
            # A cell may contain a list, such as the answers of TruthfulQA.
            parts = [text, *text.split("; ")] if "; " in text else [text]
            yield from (part.strip() for part in parts if _is_item(part))


def _is_item(text: str) -> bool:
    if text.startswith(("http://", "https://")) and " " not in text:
        return False
    return length(words(text)) >= _MIN_WORDS or sum("가" <= c <= "힣" for c in text) >= 2 * _MIN_WORDS


def _values(path: Path) -> Iterator[Any]:
    number, suffix = 1, compression.uncompressed_name(path).suffix.lower()
    try:
        with compression.open_data(path) as file:
            content = file.read()
        compression.check_start(path, content, decompressed=True)
        if content.startswith(b"PAR1"):
            raise UserError(f"benchmark file {str(path)!r} is Parquet: save it as JSON lines or CSV")
        text = content.decode("utf-8-sig")
        if suffix not in (".json", ".jsonl", ".csv", ".tsv") and is_json(start := text.lstrip()):
            suffix = ".json" if start.startswith("[") else ".jsonl"
        if suffix == ".json":
            yield json.loads(text)
        elif suffix == ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):  # noqa: B007  (used in the error)
                if line.strip():
                    yield json.loads(line)
        elif suffix == ".csv":
            csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
            # Without `strict`, an unclosed quote would include the rest of the file.
            yield from csv.reader(io.StringIO(text), strict=True)
        elif suffix == ".tsv":
            yield from ([cell.strip('"') for cell in line.split("\t")] for line in text.split("\n"))
        else:
            yield from text.split("\n")
    except compression.DAMAGED as error:
        raise UserError(f"benchmark file {str(path)!r} is damaged: it cannot be decompressed ({error})") from None
    except OSError as error:
        raise UserError(f"benchmark file {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"benchmark file {str(path)!r} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (ValueError, RecursionError, csv.Error) as error:
        why = getattr(error, "msg", str(error))
        raise UserError(f"benchmark file {path}:{number} is not valid {suffix[1:].upper()}: {why}") from None


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
