"""A JSON array of objects, read element by element: a file of any size takes the memory of its longest element."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfalign.data.records import check_characters
from selfalign.errors import UserError

CHUNK = 1 << 20
"""Bytes that are read at once, at least."""


def elements(path: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, object) of each element.

    Raises:
        UserError: the text is not UTF-8 or not such an array.
        OSError: the file cannot be read.
    """
    return _Array(path).elements()


class _Array:
    """A stretch of the file's text in memory: `_text`, of which all before `_at` is done; `_line` is the line there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def elements(self) -> Iterator[tuple[str, Any]]:
        decoder = json.JSONDecoder()
        with self._path.open("rb") as file:
            chunks = self._chunks(file)
            self._expect("[", chunks)
            while (found := self._next(chunks)) != "]":
                if found != "{":
                    raise self._wrong("an object was expected")
                yield self._element(decoder, chunks)
                if self._next(chunks) == ",":
                    self._move(self._at + 1)
                    if self._next(chunks) == "]":
                        raise self._wrong("a comma before the end")
                elif self._next(chunks) != "]":
                    raise self._wrong("a comma or ] was expected")
            self._move(self._at + 1)
            if self._next(chunks):
                raise self._wrong("text after the array's end")

    def _chunks(self, file: Any) -> Iterator[str]:
        """The file's text in stretches, each twice as long as what is in memory, so that a long element is quick."""
        decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        line = 1
        while True:
            raw = file.read(max(CHUNK, len(self._text) - self._at))
            try:
                text = decode(raw, not raw)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise UserError(f"{self._path}:{line} is not UTF-8: save it as UTF-8") from None
            line += text.count("\n")
            if text:
                yield text
            if not raw:
                return

    def _more(self, chunks: Iterator[str]) -> bool:
        text = next(chunks, "")
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(text)

    def _move(self, at: int) -> None:
        self._line += self._text.count("\n", self._at, at)
        self._at = at

    def _next(self, chunks: Iterator[str]) -> str:
        """The next character that is no space, and go there; "" at the end."""
        while True:
            at = self._at
            while at < len(self._text) and self._text[at] in " \t\r\n":
                at += 1
            self._move(at)
            if at < len(self._text):
                return self._text[at]
            if not self._more(chunks):
                return ""

    def _expect(self, wanted: str, chunks: Iterator[str]) -> None:
        if self._next(chunks) != wanted:
            raise self._wrong(f"{wanted} was expected")
        self._move(self._at + 1)

    def _element(self, decoder: json.JSONDecoder, chunks: Iterator[str]) -> tuple[str, Any]:
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                check_characters(value, self._text[self._at : end])
                break
            except json.JSONDecodeError as error:
                # Either it is wrong there, or the text in memory ends within the element.
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 16
                ahead = error.pos - self._at
                if not (cut and self._more(chunks)):
                    self._move(min(self._at + ahead, len(self._text)))
                    raise self._wrong(error.msg) from None
            except (ValueError, RecursionError) as error:  # an integer of thousands of digits, a deep one
                raise self._wrong(str(error)) from None
        where = f"{self._path}:{self._line}"
        self._move(end)
        return where, value

    def _wrong(self, why: str) -> UserError:
        shown = self._text[self._at : self._at + 60]
        return UserError(f"{self._path}:{self._line} is not JSON ({why}): mend it at {shown!r}")
