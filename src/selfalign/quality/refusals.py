"""Detect stock refusals in English: a response that declines, or admits that it does not know.

The patterns are approximate: docs/constitution.md has their precision and recall on manually checked responses.
"""

from __future__ import annotations

import re

from selfalign.quality.wordings import has_word, lower, whole_words

DECLINE = whole_words("says_no", "forbidden", "harmful", "warns", "apologises")
IGNORANCE = whole_words("ignorance")
STATIC = whole_words("static")
_SAYS_NO = whole_words("says_no")


def sentences(text: str) -> list[str]:
    """Split the text into sentences, in lower case."""
    return [s for s in re.split(r"(?<=[.?!؟۔।])\s+|(?<=[。！？｡])|\n+", lower(text).strip()) if s]


def refuses(answer: str) -> bool:
    """Return whether a response declines, or calls the request illegal, harmful or wrong."""
    return bool(DECLINE.search(lower(answer)))


def admits(answer: str) -> bool:
    """Return whether a response says that it does not know or has no such information."""
    return bool(IGNORANCE.search(lower(answer)))


def stock_refusal(answer: str, admissions: bool = True) -> bool:
    """Return whether a refusal opens the response or fills half of its sentences.

    Args:
        admissions: count admissions of ignorance, and of having no live data, as refusals.
    """
    if not has_word(answer, "refusal"):
        return False
    hits = [_declines(s) or (admissions and _admits_or_is_static(s)) for s in sentences(answer)]
    return bool(hits) and (hits[0] or sum(hits) * 2 >= len(hits))


def _admits_or_is_static(sentence: str) -> bool:
    return bool(IGNORANCE.search(sentence) or STATIC.search(sentence))


def _declines(sentence: str) -> bool:
    """Return whether a sentence declines, and does not only apologise for what the assistant cannot know."""
    if not _admits_or_is_static(sentence):
        return bool(DECLINE.search(sentence))
    return bool(_SAYS_NO.search(sentence)) and not STATIC.search(sentence)
