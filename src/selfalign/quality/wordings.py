"""Search texts for the wordings of assets/wordings.yaml: of refusals and of unsafe responses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from selfalign.quality.rouge import words
from selfalign.system.strict_yaml import read_asset


@cache
def document() -> dict[str, Any]:
    """Return name -> wordings, one on each line."""
    return dict(read_asset("wordings.yaml"))


def lower(text: str) -> str:
    """Return the text in lower case, with straight apostrophes."""
    return text.lower().replace("’", "'")


def whole_words(*names: str) -> re.Pattern[str]:
    """Return a pattern that matches any wording with one of these names as whole words."""
    return any_of(*(line for name in names for line in document()[name].splitlines()))


def any_of(*wordings: str) -> re.Pattern[str]:
    """Return a pattern that matches any of the wordings as whole words; `I NOT` is "I cannot", "I do not" and so on."""
    return _compiled(w if w.endswith((r"\s", "?")) else rf"(?<!\w){w}(?!\w)" for w in wordings)


def mentions(text: str, name: str) -> bool:
    """Return whether any wording with this name occurs in the text, at the beginning of a word."""
    return bool(_beginning(name).search(lower(text)))


@cache
def _beginning(name: str) -> re.Pattern[str]:
    return _compiled(rf"\b(?:{line})" for line in document()[name].splitlines())


def _compiled(wordings: Iterable[str]) -> re.Pattern[str]:
    """Compile the wordings, after replacing the names in capitals by the wordings that they stand for."""

    def part(name: re.Match[str]) -> str:
        return f"(?:{'|'.join(document()[name[0]].splitlines())})"

    return re.compile(re.sub(r"[A-Z]{3,}", part, "|".join(wordings)))


def has_word(text: str, name: str) -> bool:
    """Return whether the text has one of the single words. Most texts have none, and need no search for wordings."""
    return not _single_words(name).isdisjoint(words(text))


@cache
def _single_words(name: str) -> frozenset[str]:
    return frozenset(document()[f"{name}_words"].split())
