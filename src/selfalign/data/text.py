"""Clean texts that people bring: control and invisible characters, line ends, blank lines."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


def cleaned(text: str) -> str:
    """A user's own prompt without control and invisible characters, trailing spaces and runs of blank lines."""
    lines = [line.rstrip() for line in without_controls(text).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def without_controls(text: str) -> str:
    """The text without control and invisible characters, its lines ended by "\\n"."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


CITATION = re.compile(r"(?<![\w.])(\d{1,3})\s{0,9}\(\s{0,9}([^()\s][^()]{0,38}[^()\s])\s{0,9}\)")
"""A principle cited by number and name, as in "7 (candor)"."""
