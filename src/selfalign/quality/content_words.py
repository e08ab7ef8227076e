"""Find the words of a message that say what it is about, without those that only frame a question."""

from __future__ import annotations

import re

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
    return [word for word in re.findall(r"\w+", text.casefold()) if not _FRAME.fullmatch(word)]


def same_stem(a: str, b: str) -> bool:
    """Return whether two words begin alike, as "stealing" and "steal" do."""
    length = max(3, min(5, max(len(a), len(b)) - 4))
    return a[:length] == b[:length]


def share_content(a: str, b: str) -> bool:
    """Return whether two texts have a content word in common, or one of them has none."""
    words_a, words_b = content_words(a), content_words(b)
    return not words_a or not words_b or any(same_stem(x, y) for x in words_a for y in words_b)
