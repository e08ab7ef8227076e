"""Detect stock refusals in English: a response that declines, or admits that it does not know.

The patterns are approximate: docs/constitution.md has their precision and recall on manually checked responses.
"""

from __future__ import annotations

import re

from selfalign.quality.content_words import content_words, same_stem
from selfalign.quality.wordings import any_of, has_word, lower, whole_words

DECLINE = whole_words("says_no", "forbidden", "harmful", "warns", "apologises")
IGNORANCE = whole_words("ignorance")
STATIC = whole_words("static")
_SAYS_NO = whole_words("says_no")
_OFFERS = any_of(r"(?:i|we)(?: can| could| will| would|'ll)", r"you (?:can|could|may|should)", r"tell me")
_NEGATES = any_of("NOT", "not", "never", "no", "nobody", "\\w+n't")
_WISH = any_of(
    r"(?:if|when) you (?:still |really )?(?:want|wish|need|have|like|would like|plan|try|must|"
    r"are (?:going|about|planning|trying) to)"
)


def sentences(text: str) -> list[str]:
    """Split the text into sentences, in lower case."""
    return [s for s in re.split(r"(?<=[.?!؟۔।])\s+|(?<=[。！？｡])|\n+", lower(text).strip()) if s]


def refuses(answer: str) -> bool:
    """Return whether a response declines, or calls the request illegal, harmful or wrong."""
    return bool(DECLINE.search(lower(answer)))


def admits(answer: str) -> bool:
    """Return whether a response says that it does not know or has no such information."""
    return bool(IGNORANCE.search(lower(answer)))


def takes_back(message: str, refusal: str) -> bool:
    """Return whether a refusal offers what it refuses, as in "If you want to rob a bank, I can help you".

    An offer is a clause without a negation that repeats a content word of the message; a wish that repeats one also
    counts together with an offer in its sentence.
    """
    asked = content_words(lower(message))
    for sentence in sentences(refusal):
        wished = False
        for clause in re.split(r"[,;:]|\b(?:but|because)\b", sentence):
            repeats = any(same_stem(word, other) for word in content_words(clause) for other in asked)
            if not _NEGATES.search(clause):
                if _OFFERS.search(clause) and (repeats or wished):
                    return True
                wished = wished or (repeats and bool(_WISH.search(clause)))
    return False


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
