"""Stage 3, principle engraving: responses -> adapter, without the constitution in the prompt.

2_self_align/responses.jsonl -> 3_engrave/examples.jsonl, 3_engrave/adapter/, 3_engrave/adapter.gguf

The examples are the kept responses of the training split and the constitution's identity pairs, under the standard
system prompt. (SELF-ALIGN, arXiv 2305.03047, section 3.4.) With `engrave.method: dpo`, the responses are also preferred
to rejected ones (`preference_pairs`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from selfalign.constitution import Constitution
from selfalign.data.records import Example, content_hash
from selfalign.pipeline import adapter_training, preference_pairs
from selfalign.run.context import Context

STAGE: Final = "engrave"


def identity_examples(constitution: Constitution, repeats: int = 1) -> list[Example]:
    """Return the constitution's identity pairs as training examples, each `repeats` times."""
    return [
        Example(
            content_hash("identity", pair.question, pair.answer, *([number] if number else [])),
            "standard",
            pair.question,
            pair.answer,
            "identity",
        )
        for number in range(repeats)
        for pair in constitution.identity
    ]


def run(context: Context, adapter: Path | None = None) -> list[Path]:
    """Train the engraved adapter; return the files.

    Args:
        adapter: an adapter that was trained elsewhere, to publish instead of training.
    """
    responses = context.responses()
    train = [r for r in responses if r.split == "train"]
    examples = [Example(r.id, "standard", r.message, r.response, r.source) for r in train]
    rejected, files = None, list[Path]()
    if context.recipe.engrave.method == "dpo" and context.run.jsonl("user_pairs").exists():
        more, rejected = preference_pairs.from_user(context)
        examples += more
        files = [context.run.jsonl("pairs")]
    elif context.recipe.engrave.method == "dpo":
        rejected = preference_pairs.run(context, examples, {r.id: r.principles for r in train})
        files = [context.run.jsonl("pairs")]
    elif context.run.jsonl("pairs").exists():  # of a run whose method has changed
        context.journal.restart(preference_pairs.STAGE)
        context.journal.finish(preference_pairs.STAGE, 0, 0.0)
        context.run.jsonl("pairs").unlink()
    examples += identity_examples(context.run.constitution, context.recipe.engrave.identity_repeats)
    return [*files, *adapter_training.run(context, STAGE, examples, responses.removed(), adapter, rejected)]
