"""Read text files line by line, and clean user texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from selfalign.data.compression import open_data
from selfalign.errors import UserError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]")

CITATION = re.compile(r"(?<![\w.])(\d{1,3})\s{0,9}\(\s{0,9}([^()\s][^()]{0,38}[^()\s])\s{0,9}\)")
"""A principle cited by number and name, as in "7 (candor)"."""


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) for each line of a UTF-8 file, which may be compressed. Lines end at "\\n" and include it.

    Raises:
        UserError: a line is not UTF-8.
        OSError: the file cannot be read.
    """
    # Text mode would also split at U+2028 and similar separators, which are legal inside a JSON string.
    with open_data(path) as file:
        for number, data in enumerate(file, 1):
            try:
                yield number, data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number} is not UTF-8 (byte {error.start}): save it as UTF-8") from None


def clean_text(text: str) -> str:
    """Return the text without control characters, invisible characters, trailing spaces and repeated blank lines."""
    lines = [line.rstrip() for line in remove_control_characters(text).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def remove_control_characters(text: str) -> str:
    """Return the text without control and invisible characters, with "\\n" as line ends."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
