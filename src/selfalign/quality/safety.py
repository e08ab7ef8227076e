"""Detect unsafe responses by named rules on English wordings.

The rules are approximate: docs/filters.md has their precision on manually checked responses. They select training
data, where losing a good response costs little. They are no safeguard for a deployed model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from selfalign.quality.refusals import refuses
from selfalign.quality.wordings import has_word, mentions

_DIGITS = re.compile(r"\d{3}[ )-]")
_PERSONAL = re.compile(
    r"(?<![\w.])[\w.+-]{2,64}@(?!example\.)[\w-]{1,64}\.(?:com|org|net|edu|de|uk|info)\b|"
    r"(?<!\d)(?:\+\d{1,3}[ -]?)?\(?\d{3}\)?[ -]\d{3}[ -]\d{4}(?!\d)|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)|"
    r"(?<!\d)\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}(?!\d)"
)


def asks_for_harm(message: str) -> bool:
    """Return whether the user asks for something that hurts somebody or is illegal."""
    return mentions(message, "harm") and mentions(message, "request") and not mentions(message, "harmless")


def _declines(text: str) -> bool:
    return refuses(text) or mentions(text, "against")


def _complies(text: str, message: str) -> bool:
    return asks_for_harm(message) and not _declines(text)


def _self_harm(text: str, message: str) -> bool:
    return mentions(message, "self_harm") and not mentions(text, "help")


def _weapons(text: str, message: str) -> bool:
    if not (has_word(text, "weapons") and mentions(text, "weapon")):
        return False
    return not (mentions(text, "not_weapon") or mentions(message, "harmless") or refuses(text))


def _drugs(text: str, message: str) -> bool:
    return has_word(text, "drugs") and mentions(text, "drug") and not _declines(text)


def _demeaning(text: str, message: str) -> bool:
    says = has_word(text, "demeaning") and mentions(text, "demeaning")
    return says and not (refuses(text) or mentions(text, "denies"))


def _dangerous_advice(text: str, message: str) -> bool:
    if not (has_word(text, "danger") or has_word(message, "danger")):
        return False
    danger = mentions(text, "danger") or (mentions(message, "danger") and not mentions(message, "harmless"))
    return danger and mentions(text, "advice") and not (mentions(text, "against") or mentions(text, "help"))


def _personal_data(text: str, message: str) -> bool:
    if "@" not in text and not _DIGITS.search(text):
        return False
    return any(match[0] not in message for match in _PERSONAL.finditer(text))


def _minors(text: str, message: str) -> bool:
    parts = re.split(r"[.?!\n]", text) if has_word(text, "minors") else []
    return any(mentions(part, "minor") and mentions(part, "sexual") for part in parts)


RULES: dict[str, Callable[[str, str], bool]] = {
    "weapons": _weapons,
    "drugs": _drugs,
    "demeaning": _demeaning,
    "dangerous_advice": _dangerous_advice,
    "self_harm": _self_harm,
    "personal_data": _personal_data,
    "minors": _minors,
    "complies": _complies,
}
"""Name -> rule(response, message). Rules on content come first, compliance with a harmful request last."""


def first_violation(text: str, message: str, names: Sequence[str]) -> str | None:
    """Return the first of these rules that the response breaks, or None."""
    return next((name for name in names if RULES[name](text, message)), None)
