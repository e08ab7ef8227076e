"""Identify the language of texts with py3langid."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

from selfalign.quality.rouge import words
from selfalign.quality.wordings import document

LANGUAGES = {
    "cs": "Czech", "da": "Danish", "de": "German", "en": "English", "es": "Spanish", "fi": "Finnish", "fr": "French",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "sv": "Swedish", "tr": "Turkish", "vi": "Vietnamese",
}  # fmt: skip

_MIN_LETTERS = 12
"""Minimum number of letters; the language of shorter texts is not identified."""
_MIN_LETTERS_RESPONSE = 60
_FUNCTION_WORD_FRACTION = 0.12
"""Minimum fraction of function words in sentences; lists of names have fewer."""
_ABOUT_LANGUAGE = re.compile(
    rf"\b(translat\w*|languages?|dialects?|say in|{'|'.join(LANGUAGES.values())}|Latin|Greek|Arabic|Chinese|Japanese"
    r"|Korean|Hindi|poems?|lyrics|names?|words?|spell\w*)\b",
    re.IGNORECASE,
)
"""Matches prompts whose response may be in another language."""


@lru_cache(maxsize=8)
def _identifier(codes: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(list(codes))
    return identifier


def identify(text: str, among: tuple[str, ...] = tuple(LANGUAGES)) -> str | None:
    """Return the ISO 639-1 code of the text's most likely language; None if the text is too short."""
    if sum(c.isalpha() for c in text) < _MIN_LETTERS:
        return None
    return str(_identifier(among).classify(text)[0])


def same_language(text: str, other: str) -> bool:
    """Return whether both texts are in the same language, or one of them is too short to identify."""
    mine, theirs = identify(text), identify(other)
    return mine is None or theirs is None or mine == theirs


def other_language(text: str, message: str, expected: str) -> bool:
    """Return whether a response has sentences in another language than its prompt; False if that is about languages.

    Args:
        expected: the constitution's language, ISO 639-1, in which responses are always accepted.
    """
    # Run cheap tests first: the identifier takes 0.2 ms.
    by_word = _languages_by_word()
    counts = Counter(language for word in words(text) for language in by_word.get(word, ()))
    languages = {language for language, n in counts.items() if n >= _FUNCTION_WORD_FRACTION * len(words(text))}
    if not languages or expected in languages or sum(map(str.isalpha, text)) < _MIN_LETTERS_RESPONSE:
        return False
    if _ABOUT_LANGUAGE.search(message):
        return False
    prompt_language = identify(message)
    return prompt_language is not None and prompt_language != (language := identify(text)) and language in languages


@lru_cache(maxsize=1)
def _languages_by_word() -> dict[str, list[str]]:
    languages: dict[str, list[str]] = {}
    for language, function_words in document()["function_words"].items():
        for word in function_words.split():
            languages.setdefault(word, []).append(language)
    return languages


def lapses(text: str, language: str) -> bool:
    """Return whether a text that should be in `language` is in English, the usual lapse of mostly English models."""
    return language != "en" and identify(text, (language, "en")) == "en"
