"""Render the constitution as the prompt of stage 2."""

from __future__ import annotations

from collections.abc import Callable

from selfalign.constitution.document import Constitution, Exemplar


def render(constitution: Constitution, question_type: str = "") -> str:
    """Return the principles and the exemplars for questions of this type; by default, the general exemplars."""
    return render_principles(constitution) + render_exemplars(constitution, question_type)


def render_principles(constitution: Constitution) -> str:
    """Return the beginning of the prompt, which the questions of all types share."""
    layout = constitution.layout
    rules = "\n".join(f"{p.id} ({p.name}). {p.rule}" for p in constitution.principles)
    return "\n\n".join((layout.opening.strip(), rules, layout.examples.strip())) + "\n\n"


def render_exemplars(constitution: Constitution, question_type: str = "") -> str:
    """Return the exemplars for questions of this type."""
    exemplars = constitution.exemplars_for(question_type)
    return "\n\n".join(_dialogue(e, constitution.assistant.name) for e in exemplars) + "\n\n"


def longest(constitution: Constitution, count: Callable[[str], int]) -> int:
    """Return the largest number of tokens of the prompt without a message, over all question types.

    Args:
        count: returns the number of tokens of a text.
    """
    end = query(constitution, "")
    return max(count(render(constitution, name) + end) for name in prompt_types(constitution))


def prompt_types(constitution: Constitution) -> list[str]:
    """Return the names of the question types with exemplars of their own, after "" for the general exemplars."""
    return ["", *(t.name for t in constitution.question_types if t.exemplars)]


def _dialogue(exemplar: Exemplar, name: str) -> str:
    parts = []
    for turn in exemplar.turns():
        parts.append(f"User: {turn.user.strip()}")
        parts.append(f"{name} (internal thoughts): {turn.thoughts.strip()}")
        parts.append(f"{name}: {turn.answer.strip()}")
    if exemplar.closing:
        parts.append(f"User: {exemplar.closing.user.strip()}")
        parts.append(f"{name} (auto reply): {exemplar.closing.reply.strip()}")
    return "\n\n".join(parts)


def direct_query(name: str, message: str) -> str:
    """Return the user's message and the cue for the response of the assistant `name`, without internal thoughts."""
    return f"User: {message}\n\n{name}:"


def query(constitution: Constitution, message: str) -> str:
    """Return the user's message and the cue for the internal thoughts."""
    return f"User: {message}\n\n{constitution.assistant.name} (internal thoughts):"
