"""Read a JSON array of objects or texts one element at a time, with memory for the longest element only.

The standard library decodes each element, so that numbers, escapes and limits are the same as in other files. ijson
cannot replace this module: its C backend crashes on an integer of 5,000 digits, and replaces lone surrogates by "?".
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from selfalign.data.compression import open_data
from selfalign.data.records import check_characters
from selfalign.errors import UserError

CHUNK = 1 << 20
"""Minimum number of bytes to read at once."""


def elements(path: Path, allow_surrogates: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, object or text) for each element of the array.

    Args:
        allow_surrogates: whether values may contain lone surrogates.

    Raises:
        UserError: the file is not UTF-8, or not an array of objects; the message names the line.
        OSError: the file cannot be read.
    """
    with open_data(path) as file:
        yield from _Reader(path, file, allow_surrogates).elements()


class _Reader:
    """A window of the file's text, parsed up to `_position`, which is in line `_line`."""

    def __init__(self, path: Path, file: IO[bytes], allow_surrogates: bool) -> None:
        self._path = path
        self._allow_surrogates = allow_surrogates
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._position = 0
        self._line = 1

    def elements(self) -> Iterator[tuple[str, Any]]:
        self._expect("[", "expected [")
        while self._next_character() != "]":
            if self._next_character() not in '{"':
                raise self._error("expected an object or a text")
            yield self._element()
            if self._next_character() != ",":
                break
            self._move_to(self._position + 1)
            if self._next_character() == "]":
                raise self._error("trailing comma")
        self._expect("]", "expected a comma or ]")
        if self._next_character():
            raise self._error("text after the end of the array")

    def _element(self) -> tuple[str, Any]:
        decoder = json.JSONDecoder()
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._position)
                if not self._allow_surrogates:
                    check_characters(value, self._text[self._position : end])
                break
            except json.JSONDecodeError as error:
                # Either the JSON is invalid here, or the text in memory ends within the element.
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 16
                parsed = error.pos - self._position
                if not (cut and self._read_more()):
                    self._move_to(min(self._position + parsed, len(self._text)))
                    raise self._error(error.msg) from None
            except (ValueError, RecursionError) as error:  # an integer of thousands of digits, deep nesting
                raise self._error(str(error)) from None
        where = f"{self._path}:{self._line}"
        self._move_to(end)
        return where, value

    def _next_character(self) -> str:
        """Move to the next character that is not white space and return it, or "" at the end of the file."""
        while True:
            position = self._position
            while position < len(self._text) and self._text[position] in " \t\r\n":
                position += 1
            self._move_to(position)
            if position < len(self._text):
                return self._text[position]
            if not self._read_more():
                return ""

    def _expect(self, character: str, message: str) -> None:
        if self._next_character() != character:
            raise self._error(message)
        self._move_to(self._position + 1)

    def _read_more(self) -> bool:
        """Double the text in memory, so that long elements take linear time; return False at the end of the file."""
        data = self._file.read(max(CHUNK, len(self._text) - self._position))
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            self._move_to(len(self._text))
            line = self._line + error.object[: error.start].count(b"\n")
            raise UserError(f"{self._path}:{line} is not UTF-8: save it as UTF-8") from None
        self._text, self._position = self._text[self._position :] + text, 0
        return bool(data)

    def _move_to(self, position: int) -> None:
        self._line += self._text.count("\n", self._position, position)
        self._position = position

    def _error(self, reason: str) -> UserError:
        excerpt = self._text[self._position : self._position + 60]
        return UserError(f"{self._path}:{self._line} is not JSON ({reason}): correct it at {excerpt!r}")
