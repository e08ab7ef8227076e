"""Which language a text is in, through py3langid."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from selfalign.constitution.document import LANGUAGES
from selfalign.quality.rouge import words

_MIN_LETTERS = 12
"""Shorter texts are too short to tell."""
_MIN_LETTERS_ANSWER = 60
_ENGLISH = frozenset([
    "the", "of", "and", "to", "in", "is", "it", "that", "was", "for", "you", "with", "are", "this", "have", "from",
    "not", "but", "be", "can", "they", "there", "which", "he", "she", "we", "my", "your", "their", "if", "so", "or",
])  # fmt: skip
_ENGLISH_SHARE = 0.15
"""A text with so large a share of these is English: told much faster than by the identifier."""
_ABOUT_LANGUAGE = re.compile(
    rf"\b(translat\w*|languages?|dialects?|say in|{'|'.join(LANGUAGES.values())}|Latin|Greek|Arabic|Chinese|Japanese"
    r"|Korean|Hindi|poems?|lyrics|names?|words?|spell\w*)\b",
    re.IGNORECASE,
)
"""Prompts whose answer may well be in another language."""


@lru_cache(maxsize=8)
def _identifier(codes: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(list(codes))
    return identifier


def identify(text: str, among: tuple[str, ...] = tuple(LANGUAGES)) -> str | None:
    """The ISO 639-1 code of the text's likeliest language; None where it is too short to tell."""
    if sum(c.isalpha() for c in text) < _MIN_LETTERS:
        return None
    return str(_identifier(among).classify(text)[0])


def same_language(text: str, other: str) -> bool:
    """Whether both are in one language. A text too short to tell is taken to be."""
    mine, theirs = identify(text), identify(other)
    return mine is None or theirs is None or mine == theirs


def other_language(text: str, message: str, expected: str) -> bool:
    """Whether an answer is in another language than its prompt, where the prompt is not about languages.

    Args:
        expected: ISO 639-1, the constitution's: an answer in it is never in another.
    """
    found = words(text)
    if expected == "en" and sum(map(_ENGLISH.__contains__, found)) >= _ENGLISH_SHARE * len(found):
        return False
    if sum(map(len, found)) < _MIN_LETTERS_ANSWER or _ABOUT_LANGUAGE.search(message):
        return False
    return identify(text) not in (expected, identify(message))


def lapses(text: str, language: str) -> bool:
    """Whether a text that should be in `language` is in English: how a model fails that was mostly trained on it."""
    return language != "en" and identify(text, (language, "en")) == "en"
