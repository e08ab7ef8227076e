"""How an item is put to a model, and what its log-probabilities are read as. Pure.

A form asks an item as cells: texts whose likelihood is wanted. An system prompt of the constitution, or the whole
constitution, stands before them; all models get the same cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfalign.constitution import Constitution
from selfalign.constitution.rendering import render
from selfalign.data.prompt_text import BOS, Pieces, Turn
from selfalign.data.records import content_hash
from selfalign.evaluation.benchmarks import Item, item_id
from selfalign.generation.scoring.base import Scored, Text
from selfalign.model.dialogue import Template

PromptKind = Literal["standard", "concise", "verbose", "two-shot", "constitution"]
PROMPTS: tuple[PromptKind, ...] = ("standard", "concise", "verbose", "two-shot", "constitution")


@dataclass(frozen=True, slots=True)
class Cell:
    """One text to score."""

    turns: tuple[Turn, ...]
    """The dialogue up to the user's last message."""
    answer: str
    """What is scored, without the space before it."""
    begin: str = ""
    """What the assistant's turn is made to begin with."""
    label: str = ""
    """What the cell is, in the file of results."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to ask the items of a benchmark."""

    name: str
    cells: Callable[[Any], list[Cell]]
    """item -> its cells."""
    read: Callable[[Any, Sequence[Scored]], dict[str, float]]
    """(item, its cells' results) -> the value of each measure, 1 or 0 where it is a matter of right or wrong."""


def opening(template: Template, constitution: Constitution, prompt: PromptKind, turns: Sequence[Turn]) -> Pieces:
    """The text up to where the assistant's next words begin.

    Args:
        prompt: constitution is the base with all principles and exemplars before the dialogue, in the plain turns of
            stage 2; its answer follows at once, without thoughts. two-shot is the standard prompt and two worked turns.
    """
    name = constitution.assistant.name
    if prompt == "constitution":
        said = [f"{'User' if t.role == 'user' else name}: {t.text.strip()}\n\n" for t in turns]
        return (BOS, render(constitution), *said, f"{name}:")
    shots = constitution.prompts.two_shot if prompt == "two-shot" else []
    lead = [turn for shot in shots for turn in (Turn("user", shot.user), Turn("assistant", shot.answer))]
    kind = "standard" if prompt == "two-shot" else prompt
    return template.prompt(constitution.system_prompt(kind), [*lead, *turns], name)


def text(template: Template, constitution: Constitution, prompt: PromptKind, cell: Cell) -> Text:
    """The cell as (context, continuation)."""
    context = opening(template, constitution, prompt, cell.turns)
    space = " " if prompt == "constitution" else template.space
    if cell.begin:
        return (*context, space + cell.begin), " " + cell.answer
    return context, space + cell.answer


def best(item: Item, scores: Sequence[float]) -> int:
    """The place of the highest score. A tie is broken by a hash: whoever always said the first would be right by the
    order in the file."""
    top = max(scores)
    tied = [i for i, score in enumerate(scores) if score == top]
    return tied[0] if len(tied) == 1 else min(tied, key=lambda i: content_hash(item_id(item), i))
