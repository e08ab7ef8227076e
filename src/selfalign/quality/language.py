"""Identify the language of texts: by its script, and languages in Latin letters with py3langid."""

from __future__ import annotations

import re
import unicodedata
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

LATIN = "LATIN"
"""The script of all `LANGUAGES`."""
_MIN_SCRIPT_LETTERS = 6
"""Minimum number of letters; the script of shorter texts is not identified."""
_MIN_SCRIPT_LETTERS_RESPONSE = 20
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


@lru_cache(maxsize=64)
def script(text: str) -> str | None:
    """Return the script of most letters of a text, such as LATIN, CYRILLIC, CJK or JAPANESE (with kana).

    None if the text has few letters, or no script has more than half of them.
    """
    if text.isascii():
        return LATIN if sum(map(str.isalpha, text)) >= _MIN_SCRIPT_LETTERS else None
    letters: Counter[str] = Counter()
    for character, number in Counter(text).items():
        if character.isalpha():
            letters[_script_of(character)] += number
    total, kana = letters.total(), letters["JAPANESE"]
    if kana and kana * 10 >= letters["CJK"]:
        letters["JAPANESE"] += letters.pop("CJK", 0)
    name, number = letters.most_common(1)[0] if total >= _MIN_SCRIPT_LETTERS else ("", 0)
    return name if number * 2 > total else None


@lru_cache(maxsize=1 << 14)
def _script_of(character: str) -> str:
    name = unicodedata.name(character, "?").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    name = re.split("[ -]", name)[0]
    return "JAPANESE" if name in ("HIRAGANA", "KATAKANA") else name


@lru_cache(maxsize=8)
def _identifier(codes: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(list(codes))
    return identifier


def identify(text: str, among: tuple[str, ...] = tuple(LANGUAGES)) -> str | None:
    """Return the ISO 639-1 code of the text's most likely language.

    None if the text is too short, or in another script than Latin.
    """
    if sum(c.isalpha() for c in text) < _MIN_LETTERS or script(text) not in (None, LATIN):
        return None
    return str(_identifier(among).classify(text)[0])


def same_language(text: str, other: str) -> bool:
    """Return whether both texts are in the same script and language, or one of them is too short to identify."""
    mine, theirs = script(text), script(other)
    if mine is None or theirs is None or mine != theirs or mine != LATIN:
        return mine is None or theirs is None or mine == theirs
    mine, theirs = identify(text), identify(other)
    return mine is None or theirs is None or mine == theirs


def other_language(text: str, message: str, expected: str) -> bool:
    """Return whether a response has sentences in another language than its prompt; False if that is about languages.

    Args:
        expected: the constitution's language, ISO 639-1, in which responses are always accepted.
    """
    if script(text) not in (None, LATIN):
        is_long = sum(map(str.isalpha, text)) >= _MIN_SCRIPT_LETTERS_RESPONSE
        return is_long and script(message) == LATIN and not _ABOUT_LANGUAGE.search(message)
    # Run cheap tests first: the identifier takes 0.2 ms.
    least = _FUNCTION_WORD_FRACTION * len(words(text))
    languages = {language for language, n in _function_words(text).items() if n >= least}
    if not languages or expected in languages or sum(map(str.isalpha, text)) < _MIN_LETTERS_RESPONSE:
        return False
    if _ABOUT_LANGUAGE.search(message):
        return False
    prompt_language = identify(message)
    return prompt_language is not None and prompt_language != (language := identify(text)) and language in languages


def is_english(text: str) -> bool:
    """Return whether a text may be English: in Latin letters, and not identified as another language.

    The identifier, which takes 0.2 ms, decides only on texts with fewer function words of English than of another
    language.
    """
    counts = _function_words(text)
    is_likely = counts["en"] >= max(counts.values(), default=0)
    return script(text) in (None, LATIN) and (is_likely or identify(text) in (None, "en"))


def _function_words(text: str) -> Counter[str]:
    """Count the function words of each language in the text."""
    by_word = _languages_by_word()
    return Counter(language for word in words(text) for language in by_word.get(word, ()))


@lru_cache(maxsize=1)
def _languages_by_word() -> dict[str, list[str]]:
    languages: dict[str, list[str]] = {}
    for language, function_words in document()["function_words"].items():
        for word in function_words.split():
            languages.setdefault(word, []).append(language)
    return languages


def lapses(text: str, language: str) -> bool:
    """Return whether a text that should be in `language` is in English or another script.

    English is the usual lapse of mostly English models. Any script is accepted where the language is English.
    """
    return language != "en" and (identify(text, (language, "en")) == "en" or script(text) not in (None, LATIN))
