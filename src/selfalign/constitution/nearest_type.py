"""Find the question type of a prompt without one, by the nearest questions of the constitution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selfalign.constitution.document import Constitution
from selfalign.quality.duplicates import embed

_NEAREST = 3
_AGREE = 2
"""Of the `_NEAREST` questions, at least `_AGREE` must be of the type."""
MIN_SIMILARITY = 0.35
"""The cosine that the nearest question of the type must have."""
SAME = 0.6
"""From this cosine on, the nearest question decides alone."""
_ROWS = 4096


def nearest_types(constitution: Constitution, messages: Sequence[str]) -> list[str]:
    """Return the question type nearest to each message; "" if none is near.

    The questions are those of the types with exemplars: the question of each type, and the users' messages of its
    exemplars. The result for a message does not depend on the other messages.

    Raises:
        UserError: wordllama is not installed.
    """
    known = _questions(constitution)
    if not known or not messages:
        return [""] * len(messages)
    vectors = embed([text for _, text in known])
    types: list[str] = []
    for start in range(0, len(messages), _ROWS):
        block = embed(messages[start : start + _ROWS])
        for similarities in (block @ vectors.T).tolist():
            near = sorted(range(len(known)), key=lambda at: -similarities[at])[:_NEAREST]
            types.append(_agreed([(known[at][0], similarities[at]) for at in near]))
    return types


def types_near(constitution: Constitution, messages: Sequence[str]) -> list[set[str]]:
    """Return the types of the `_NEAREST` questions nearest to each message; types without exemplars count, too.

    Raises as `nearest_types`.
    """
    known = _questions(constitution, all_types=True)
    if not known or not messages:
        return [set() for _ in messages]
    similarities = embed(messages) @ embed([text for _, text in known]).T
    return [{known[at][0] for at in row.argsort()[::-1][:_NEAREST]} for row in similarities]


def _questions(constitution: Constitution, all_types: bool = False) -> list[tuple[str, str]]:
    """Return (type, question) for the question of each type with exemplars, and for the messages of its exemplars.

    Args:
        all_types: also return the questions of the types without exemplars.
    """
    return [
        (kind.name, text)
        for kind in constitution.question_types
        if kind.exemplars or all_types
        for text in (kind.question, *(e.user for e in kind.exemplars))
    ]


def _agreed(nearest: Sequence[tuple[str, float]]) -> str:
    """Return the type of most of the nearest questions, each given as (type, similarity), the nearest first."""
    if nearest[0][1] >= SAME:
        return nearest[0][0]
    name, count = Counter(kind for kind, _ in nearest).most_common(1)[0]
    similarity = next(similarity for kind, similarity in nearest if kind == name)
    return name if count >= _AGREE and similarity >= MIN_SIMILARITY else ""
