"""Decide by rules whether a text attempts to answer a question: new and varied words, not the user's voice. Pure.

Small models often answer with the words of the question in another order, or speak as the user. Such a text neither
declines nor loops, and still answers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfalign.evaluation.tasks.numbers import numbers
from selfalign.quality.content_words import content_words, same_stem

VARIED = 0.45
"""The smallest share of different words among the content words of an answer."""
NEW = 0.15
"""The smallest share of new words, each counted once, among the content words of an answer. One must be new."""
JUDGED = 8
"""The fewest content words for which the share is judged."""
OPENING = 30
"""The number of content words that are judged: long texts repeat words, and answer in their first sentences."""

_VAGUE = re.compile(r"lots?|things?|something|kind|sort|idea|fact|used?|call(?:ed)?|ma(?:de|kes)")
"""Words that say nothing by themselves."""


def says_new(ask: str, answer: str) -> bool:
    """Return whether enough content words of the answer are neither in the question nor vague.

    An answer that begins with "yes" or "no" needs no new words.
    """
    ask_words, answer_words = content_words(ask), content_words(answer)[:OPENING]
    new = {w for w in answer_words if not _VAGUE.fullmatch(w) and not any(same_stem(w, a) for a in ask_words)}
    return len(new) >= max(1, NEW * len(answer_words)) or bool(re.match(r"\W*(?:yes|no)\b", answer.lower()))


def is_varied(answer: str) -> bool:
    """Return whether the content words at the beginning of the answer are varied enough."""
    words = content_words(answer)[:OPENING]
    different: list[str] = []
    for word in words:
        if not any(same_stem(word, d) for d in different):
            different.append(word)
    return len(words) < JUDGED or len(different) >= VARIED * len(words)


def gives_number(ask: str, answer: str) -> bool:
    """Return whether the answer to "how many" or "how much" has a number; other questions need none."""
    if not re.search(r"\bhow (?:many|much)\b", ask.lower()):
        return True
    return bool(numbers(answer) or re.search(r"\b(?:one|none|no)\b", answer.lower()))


def begins_as_user(ask: str, sentences: Sequence[str]) -> bool:
    """Return whether a sentence begins as the user speaks: with "my" or "I" and the same word as in the question."""
    of_user = {" ".join(pair) for pair in re.findall(r"\b(my|i) (\w{3,})", ask.lower())}
    return any(match[0] in of_user for s in sentences if (match := re.match(r"(?:my|i) \w{3,}", s)))


def works_on_text(ask: str) -> bool:
    """Return whether the user gives a text to work on, after a colon or in quotation marks."""
    return bool(re.search(r":\s|[\n\"“]", ask.strip()))


_ORDER = re.compile(
    r"(?:please |can you |could you )?"
    r"(?:(write|compose|invent|create|draft|make up|think of|come up with)\b(?: me)?|(tell|give|make|sing) me(?= an? ))"
    r"(?: an?| the| some)?((?: \w+){1,3})"
)


def orders_text(ask: str) -> bool:
    """Return whether the user orders a text, which may speak in any voice."""
    return bool(_ORDER.match(ask.lower()))


def puts_off(ask: str, answer: str, sentences: Sequence[str]) -> bool:
    """Return whether the reply to an order only repeats it, promises the text or says what such a text is."""
    order = _ORDER.match(ask.lower())
    if not order or not sentences or re.search(r"[:\n\"“]", answer.strip()):
        return False
    verb, objects = order[1] or order[2], content_words(order[3].rpartition(" for ")[0] or order[3])
    after_verb = [part for s in sentences[:2] for part in re.findall(rf"\b{verb}\b((?: \w+){{1,5}})", s)]
    subject = re.match(r"an? ((?:\w+ ){1,3})is\b", sentences[0])
    parts = after_verb + ([subject[1]] if subject else [])
    repeats = any(same_stem(w, o) for part in parts for w in content_words(part) for o in objects)
    return repeats or any(re.search(r"\b(?:tell|give|show|write) me an?\b", s) for s in sentences)
