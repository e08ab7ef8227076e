"""Find the words of a message that say what it is about, without those that only frame a question."""

from __future__ import annotations

import re
import unicodedata

from selfalign.quality.rouge import in_other_script, words

_FRAME = re.compile(
    r"an?|the|this|that|these|those|it|its|i|me|my|mine|you|your|he|him|his|she|her|we|us|our|they|them|their|who|whom|"
    r"whose|which|what|when|where|why|how|to|of|in|on|at|from|with|without|for|by|about|as|into|out|up|off|away|and|or|"
    r"but|if|than|then|so|not|no|some|any|all|one|there|here|am|is|are|was|were|be|been|being|do|does|did|done|has|"
    r"have|had|can|could|will|would|should|may|might|must|shall|let|please|tell|give|name|write|find|get|make|take|"
    r"say|help|want|need|like|best|better|good|way|much|many|long|far|often|most|more|very|just|also|still|now|today|"
    r"getting|making|taking|doing|having|giving|going|s|t|m|re|ve|ll|d"
)


def content_words(text: str) -> list[str]:
    """Return the words of an English text, in lower case, that do not merely frame a question or request."""
    return [word for word in words(text) if not _FRAME.fullmatch(word)]


def same_stem(a: str, b: str) -> bool:
    """Return whether two words begin alike, as "stealing" and "steal" do."""
    length = max(3, min(5, max(len(a), len(b)) - 4))
    return a[:length] == b[:length]


_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()…–—-]")
"""A character that may say what a text is about, such as an operator."""


def _symbols(text: str) -> list[str]:
    """Return the symbols of a text, without punctuation and marks of other scripts; emoji are words."""
    found = _SYMBOL.findall(text)
    return [c for c in found if c.isascii() or (unicodedata.category(c)[0] == "S" and not in_other_script(c))]


def share_content(a: str, b: str) -> bool:
    """Return whether two texts share more than half of their content words and symbols, or one of them has none.

    The half is of the text that has more of them: "What is 8 + 2?" and "What is 7 plus 8?" share one of three.
    """
    words_a, words_b = ([*content_words(text), *_symbols(text)] for text in (a, b))
    if not words_a or not words_b:
        return True
    shared = min(
        sum(any(same_stem(word, other) for other in others) for word in these)
        for these, others in ((words_a, words_b), (words_b, words_a))
    )
    return 2 * shared > max(len(words_a), len(words_b))
