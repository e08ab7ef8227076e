"""Turn the items of a benchmark into texts for a model: system prompts, dialogues and forms. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfalign.constitution import Constitution
from selfalign.constitution.rendering import render
from selfalign.data.prompt_text import BOS, Pieces, Turn
from selfalign.data.records import content_hash
from selfalign.errors import UserError
from selfalign.evaluation.benchmarks import Item, item_id
from selfalign.generation.scoring.base import Scored, Text
from selfalign.model.dialogue import Template

PromptKind = Literal["standard", "concise", "verbose", "two-shot", "constitution"]
PROMPTS: tuple[PromptKind, ...] = ("standard", "concise", "verbose", "two-shot", "constitution")
SYSTEM_PROMPTS = PROMPTS[:-1]


def check_system_prompt(name: str) -> PromptKind:
    """Return the name of a system prompt. Raises UserError if it is not known."""
    kind = next((known for known in SYSTEM_PROMPTS if known == name), None)
    if kind is None:
        raise UserError(f"system prompt {name!r} is not known; use one of {', '.join(SYSTEM_PROMPTS)}")
    return kind


@dataclass(frozen=True, slots=True)
class Cell:
    """One text to score."""

    turns: tuple[Turn, ...]
    """The dialogue up to the user's last message."""
    answer: str
    """The scored text, without the space before it."""
    begin: str = ""
    """Words at the beginning of the assistant's turn, before the scored text."""
    label: str = ""
    """The name of the cell in the file of results."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to ask the items of a benchmark by log-likelihoods. All models score the same cells."""

    name: str
    cells: Callable[[Any], list[Cell]]
    """item -> its cells."""
    read: Callable[[Any, Sequence[Scored]], dict[str, float]]
    """(item, the results of its cells) -> the value of each measure: 1 (correct), 0 (wrong) or a fraction."""
    accuracies: tuple[str, ...] = ()
    """The measures that are 1 if the model chooses the best answer, and 0 otherwise."""
    choices: Callable[[Any], tuple[Sequence[str], int]] = lambda item: ((), 0)
    """item -> (the answers to choose from, the index of the best one), for the baselines of the accuracies."""

    def baselines(self, item: Item) -> dict[str, dict[str, float]]:
        """Return accuracy -> baseline -> its value on the item.

        A benchmark whose better answers are longer is solved in part without reading them, so these rules stand beside
        the models. The order of the answers in the file plays no role in any form, so there is no rule "the first one".
        """
        if not self.accuracies:
            return {}
        answers, right = self.choices(item)
        lengths = [float(len(answer)) for answer in answers]
        values = {
            "longest answer": float(best(item, lengths) == right),
            "shortest answer": float(best(item, [-n for n in lengths]) == right),
            "random guess": 1 / len(answers),
        }
        return dict.fromkeys(self.accuracies, values)


def opening(template: Template, constitution: Constitution, prompt: PromptKind, turns: Sequence[Turn]) -> Pieces:
    """Return the prompt up to the first word of the assistant's answer.

    Args:
        prompt: the system prompt. `constitution` is all principles and exemplars, in the plain turns of stage 2, and
            the answer follows immediately, without internal thoughts. `two-shot` is the standard system prompt with
            two example turns.
    """
    name = constitution.assistant.name
    if prompt == "constitution":
        lines = [f"{'User' if t.role == 'user' else name}: {t.text.strip()}\n\n" for t in turns]
        return (BOS, render(constitution), *lines, f"{name}:")
    shots = constitution.prompts.two_shot if prompt == "two-shot" else []
    examples = [turn for shot in shots for turn in (Turn("user", shot.user), Turn("assistant", shot.answer))]
    kind = "standard" if prompt == "two-shot" else prompt
    return template.prompt(constitution.system_prompt(kind), [*examples, *turns], name)


def cell_text(template: Template, constitution: Constitution, prompt: PromptKind, cell: Cell) -> Text:
    """Return the cell as (context, continuation)."""
    context = opening(template, constitution, prompt, cell.turns)
    space = " " if prompt == "constitution" else template.space
    if cell.begin:
        return (*context, space + cell.begin), " " + cell.answer
    return context, space + cell.answer


def best(item: Item, scores: Sequence[float]) -> int:
    """Return the index of the highest score; a hash decides between equal scores.

    If the first answer won every tie, the order of the file would matter.
    """
    top = max(scores)
    tied = [i for i, score in enumerate(scores) if score == top]
    return tied[0] if len(tied) == 1 else min(tied, key=lambda i: content_hash(item_id(item), i))
