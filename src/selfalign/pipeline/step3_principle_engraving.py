"""Stage 3, principle engraving: responses -> adapter, without the constitution in the prompt.

2_self_align/responses.jsonl -> 3_engrave/examples.jsonl, 3_engrave/adapter/, 3_engrave/adapter.gguf

The examples are the kept responses of the training split, the constitution's identity pairs and, if the recipe asks
for them, the other human-written items (`human_examples`), under the standard system prompt. (SELF-ALIGN, arXiv
2305.03047, section 3.4.) With `engrave.method: dpo`, the responses are also preferred
to rejected ones (`preference_pairs`). With `on_policy`, the model then trains on its own responses (`on_policy`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from selfalign.data.records import Example
from selfalign.pipeline import adapter_training, human_examples, on_policy, preference_pairs
from selfalign.run.context import Context

STAGE: Final = "engrave"


def run(context: Context, adapter: Path | None = None) -> list[Path]:
    """Train the engraved adapter; return the files.

    Args:
        adapter: an adapter that was trained elsewhere, to publish instead of training.
    """
    on_policy.check(context)
    responses, method = context.responses(), context.recipe.engrave.method
    train = [r for r in responses if r.split == "train"]
    examples = [Example(r.id, "standard", r.message, r.response, r.source) for r in train]
    rejected, files = None, list[Path]()
    if method == "dpo" and context.run.jsonl("user_pairs").exists():
        more, rejected = preference_pairs.from_user(context)
        examples += more
    elif method == "dpo":
        rejected = preference_pairs.run(context, examples, {r.id: r.principles for r in train})
    elif context.run.jsonl("pairs").exists():  # of a run whose method has changed
        context.journal.restart(preference_pairs.STAGE)
        context.journal.finish(preference_pairs.STAGE, 0, 0.0)
        context.run.jsonl("pairs").unlink()
    if rejected is not None:
        files = [context.run.jsonl("pairs")]
    rounds = None
    if method == "on_policy" and adapter is None and not context.model.is_fake:
        rounds, files = on_policy.Rounds(context, train), [context.run.jsonl("on_policy")]
    else:
        on_policy.remove(context)
    written, dropped = human_examples.of_run(context)
    removed = [*responses.removed(), *dropped]
    files += adapter_training.run(context, STAGE, examples + written, removed, adapter, rejected, rounds)
    shutil.rmtree(context.run.rounds, ignore_errors=True)
    return files
