"""Turn the human-written items into training examples: identity pairs, exemplars and seed tasks.

The paper trains on the identity pairs only. A small base writes few good responses, and with the exemplars and seed
tasks among them it learns the wanted behaviour better and declines less where it should answer (docs/training.md).
"""

from __future__ import annotations

from typing import Literal

from selfalign.constitution import Constitution, SeedTask, load_seeds
from selfalign.data.records import Example, content_hash, join_input
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome

Source = Literal["identity", "exemplar", "seed"]


def of_identity(constitution: Constitution, repeats: int = 1) -> list[Example]:
    """Return the identity pairs, each `repeats` times."""
    return _repeated("identity", [(pair.question, pair.answer) for pair in constitution.identity], repeats)


def of_exemplars(constitution: Constitution, repeats: int) -> list[Example]:
    """Return the first turns of all exemplars without their internal thoughts, each `repeats` times."""
    types = (exemplar for kind in constitution.question_types for exemplar in kind.exemplars)
    pairs = [(exemplar.user.strip(), exemplar.answer.strip()) for exemplar in (*constitution.exemplars, *types)]
    return _repeated("exemplar", pairs, repeats)


def of_seeds(seeds: list[SeedTask], repeats: int) -> list[Example]:
    """Return the seed tasks that have an output, each `repeats` times."""
    return _repeated("seed", [(join_input(s.instruction, s.input), s.output) for s in seeds if s.output], repeats)


def _repeated(source: Source, pairs: list[tuple[str, str]], repeats: int) -> list[Example]:
    return [
        Example(content_hash(source, user, answer, *([copy] if copy else [])), "standard", user, answer, source)
        for copy in range(repeats)
        for user, answer in dict.fromkeys(pairs)
    ]


def of_run(context: Context) -> tuple[list[Example], list[RowOutcome]]:
    """Return the examples that the recipe asks for, and the outcomes of those that overlap with the evaluation.

    With a constitution in another language than English, the shipped seed tasks are skipped.

    Raises:
        UserError: the seed tasks cannot be read.
    """
    config, constitution = context.recipe.engrave, context.run.constitution
    examples = of_exemplars(constitution, config.exemplar_repeats)
    is_english = constitution.language == "en"
    if config.seed_repeats and (is_english or context.recipe.seeds != "default"):  # the shipped seeds are English
        examples += of_seeds(load_seeds(context.recipe.seeds), config.seed_repeats)
    kept, dropped = [], []
    for position, example in enumerate(examples):
        if hit := context.benchmarks.find(example.user, example.assistant):
            text = hit.ledger_text(example.user)
            dropped.append(RowOutcome(example.id, position, "dropped", hit.reason, text))
        else:
            kept.append(example)
    return of_identity(constitution, config.identity_repeats) + kept, dropped
