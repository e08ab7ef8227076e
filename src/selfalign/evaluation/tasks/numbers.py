"""Read the numbers of a text, in digits or in English words. Pure."""

from __future__ import annotations

import re

from selfalign.quality.wordings import lower

_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {w: n for n, w in enumerate(_UNITS)} | {w: 10 * n for n, w in enumerate(_TENS, 2)}
_WORD = "|".join(_VALUES)
_NUMBER = re.compile(rf"\b(?:(?:{_WORD}|an?)[ -](?:hundred|thousand)|(?:{'|'.join(_TENS)})-(?:{_WORD})|{_WORD})\b")
_DIGITS = re.compile(r"\d+(?:[.,:]\d+)*")


def in_digits(text: str) -> str:
    """Return the text in lower case, with number words as digits, and without separators of thousands."""
    text = re.sub(r"(?<=\d)[, ](?=\d{3}\b)", "", lower(text))
    return _NUMBER.sub(lambda match: str(_value(match[0])), text)


def numbers(text: str) -> list[str]:
    """Return the numbers of a text in order, as digits; a time is written as 10:45."""
    matches = _DIGITS.findall(in_digits(text))
    return [re.sub(r"[.,]0+$", "", n) if ":" not in n else n for n in matches]


def number_before(text: str) -> dict[str, str]:
    """Return word -> the number directly before it."""
    return {noun: number for number, noun in re.findall(r"\b(\d+) ([a-z]+)", in_digits(text))}


def _value(words: str) -> int:
    first, _, second = words.replace("-", " ").partition(" ")
    value = _VALUES.get(first, 1)
    if second in ("hundred", "thousand"):
        return value * (100 if second == "hundred" else 1000)
    return value + _VALUES.get(second, 0)
