"""Render the constitution as the prompt of stage 2."""

from __future__ import annotations

from selfalign.constitution.document import Constitution, Exemplar


def render(constitution: Constitution) -> str:
    """Return the principles and exemplars, the part of the prompt that all requests share."""
    layout = constitution.layout
    rules = "\n".join(f"{p.id} ({p.name}). {p.rule}" for p in constitution.principles)
    exemplars = "\n\n".join(_dialogue(e, constitution.assistant.name) for e in constitution.exemplars)
    return "\n\n".join((layout.opening.strip(), rules, layout.examples.strip(), exemplars)) + "\n\n"


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


def query(constitution: Constitution, message: str) -> str:
    """Return the user's message and the cue for the internal thoughts."""
    return f"User: {message}\n\n{constitution.assistant.name} (internal thoughts):"
