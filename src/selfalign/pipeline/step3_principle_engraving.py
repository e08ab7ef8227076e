"""Stage 3, principle engraving: responses -> adapter, with the constitution pruned away.

2_self_align/responses.jsonl -> 3_engrave/examples.jsonl, 3_engrave/adapter/, 3_engrave/adapter.gguf

The kept responses of the training split and the constitution's identity pairs, under the standard system prompt.
(SELF-ALIGN, arXiv 2305.03047, section 3.4.)
"""

from __future__ import annotations

from pathlib import Path

from selfalign.constitution import Constitution
from selfalign.data.records import Example, content_hash
from selfalign.pipeline import adapter_training
from selfalign.run import marks
from selfalign.run.context import Context

STAGE = "engrave"


def identity_examples(constitution: Constitution) -> list[Example]:
    """The identity pairs as training examples."""
    return [
        Example(
            content_hash("identity", pair.question, pair.answer), "standard", pair.question, pair.answer, "identity"
        )
        for pair in constitution.identity
    ]


def run(context: Context) -> list[Path]:
    """Train the engraved adapter; returns the files."""
    responses = context.responses()
    examples = [
        Example(r.id, "standard", r.message, r.response, r.source) for r in responses if r.split == "train"
    ] + identity_examples(context.run.constitution)
    examples, left_out, said = marks.of_run(context.run, STAGE, examples)
    if said:
        context.screen.say(f"  {said}", "dim")
    fates = [*responses.removed(), *left_out]
    return adapter_training.train(context, "engrave", examples, context.recipe.engrave, STAGE, fates)
