"""Which language a text is in, through py3langid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from selfalign.quality.rouge import words

LANGUAGES = {
    "cs": "Czech", "da": "Danish", "de": "German", "en": "English", "es": "Spanish", "fi": "Finnish", "fr": "French",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "sv": "Swedish", "tr": "Turkish", "vi": "Vietnamese",
}  # fmt: skip

_MIN_LETTERS = 12
"""Shorter texts are too short to tell."""
_MIN_LETTERS_ANSWER = 60
_FUNCTION_WORDS = {
    "cs": "a je se na v že to s do jsou jako ale pro nebo byl by",
    "da": "og er det at en den til af som på med ikke der har for et",
    "de": "der die das und ist ein eine nicht mit zu von sich auf den im sie",
    "en": "the of and to in is it that was for you with are this have not but can they which he she we if",
    "es": "el la de que y en los se del las un una por con no es para su",
    "fi": "ja on ei se että oli hän mutta ovat kun niin myös voi tai kuin",
    "fr": "le la les de des et est un une que qui dans en pour il elle ne pas du",
    "hu": "a az és hogy nem egy is van azt meg ez de volt mint csak",
    "id": "yang dan di itu dengan untuk tidak ini dari dalam akan pada adalah",
    "it": "il la di che e un una è per non in sono del della con le gli",
    "nl": "de het een en van is dat in te niet op zijn met voor er die",
    "no": "og er det at en den til av som på med ikke har for et jeg",
    "pl": "i w na że się nie jest to z do jak ale co po są",
    "pt": "o a de que e do da em um uma para com não os as é se",
    "ro": "și de la în cu nu o este un că pe din mai sunt pentru",
    "sv": "och är det att en den till av som på med inte har för ett jag",
    "tr": "ve bir bu da için ile çok olarak daha gibi ne var olan değil",
    "vi": "và của là có trong cho được các một với không người này những",
}
_SPEAKS = 0.12
"""A text of sentences has at least so large a share of its language's function words; a list of names has not."""
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
    """Whether an answer is in sentences of another language than its prompt, where the prompt is not about languages.

    Args:
        expected: ISO 639-1, the constitution's: an answer in it is never in another.
    """
    # Cheap questions first: the identifier takes a fifth of a millisecond.
    spoken = _spoken(words(text))
    if not spoken or expected in spoken or sum(map(str.isalpha, text)) < _MIN_LETTERS_ANSWER:
        return False
    if _ABOUT_LANGUAGE.search(message):
        return False
    asked = identify(message)
    return asked is not None and (mine := identify(text)) in spoken and mine != asked


def _spoken(found: Sequence[str]) -> set[str]:
    """The languages of whose function words the text has its share."""
    speakers = _speakers()
    counts = Counter(language for word in found for language in speakers.get(word, ()))
    return {language for language, number in counts.items() if number >= _SPEAKS * len(found)}


@lru_cache(maxsize=1)
def _speakers() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for language, common in _FUNCTION_WORDS.items():
        for word in common.split():
            found.setdefault(word, []).append(language)
    return found


def lapses(text: str, language: str) -> bool:
    """Whether a text that should be in `language` is in English: how a model fails that was mostly trained on it."""
    return language != "en" and identify(text, (language, "en")) == "en"
