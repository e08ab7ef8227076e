"""The card of a data set: what the hub and `datasets` read at its top, and what people should know of the rows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from selfalign.export import record, rows
from selfalign.report import model_card
from selfalign.run.context import Context

WHAT = {
    "engrave": "the pairs that stage 3 trained on (principle engraving), identity pairs among them",
    "verbose_cloning": "the pairs that stage 4 trained on (verbose cloning), identity pairs among them",
    "responses": "stage 2's answers under the constitution that the filters kept",
    "prompts": "stage 1's prompts, without answers",
}
_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


@dataclass(slots=True)
class Config:
    """One configuration of the data set: a stage's rows."""

    name: str
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Split (train, test) -> (path in the data set, rows)."""


def text(context: Context, configs: list[Config], form: str, notes: list[str]) -> str:
    """README.md of the data set.

    Args:
        form: one of `formats.OUTPUT_FORMATS`.
        notes: what a trainer must be told.
    """
    constitution = context.run.constitution
    base = model_card.escaped((context.has_weights and context.model.hub_id) or record.base_name(context))
    label = model_card.escaped(constitution.assistant.name)
    told = [f"- {model_card.escaped(note)}" for note in notes]
    return "\n".join(
        [
            _front(context, configs),
            f"# {label}: data of a SELF-ALIGN run of {base}\n",
            f"{record.writers(context)} The texts can be wrong, and prompts of the red-team kind ask for what is wrong "
            "on purpose (SELF-ALIGN, arXiv 2305.03047). No person has read all of them.\n",
            _table(configs, form),
            _loading(configs[0].name),
            *([*told, ""] if told else []),
            _prompts(context),
            model_card.principles(constitution),
            "The whole of it, with exemplars and question types, is `constitution.yaml`.\n",
            record.ledger(context),
            record.measured(context),
            _terms(context),
        ]
    )


def _front(context: Context, configs: list[Config]) -> str:
    constitution = context.run.constitution
    own, given = bool(context.recipe.prompts.file), context.recipe.align.form == "given"
    total = sum(number for config in configs for _, number in config.files.values())
    lines = [f"pretty_name: {json.dumps(f'{constitution.assistant.name}: SELF-ALIGN data')}"]
    lines += model_card.licence(context.model) if context.has_weights else []
    lines += [
        f"language: [{json.dumps(constitution.language)}]",
        "task_categories: [text-generation]",
        f"size_categories: [{size_category(total)}]",
        f"annotations_creators: [{'found' if given else 'machine-generated'}]",
        f"language_creators: [{'found' if own else 'machine-generated'}]",
        f"tags: [self-align{'' if given else ', synthetic'}, alignment, sft]",
        "configs:",
    ]
    for place, config in enumerate(configs):
        lines += [f"- config_name: {config.name}", *(["  default: true"] if not place else []), "  data_files:"]
        for split, (path, _) in config.files.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def size_category(rows_: int) -> str:
    """The hub's word for a number of rows."""
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "n>10M"]
    return names[sum(rows_ >= size for size in _SIZES)]


def _table(configs: list[Config], form: str) -> str:
    lines = ["| configuration | train | test | rows | columns |", "| --- | --- | --- | --- | --- |"]
    for config in configs:
        answered = config.name != "prompts"
        counts = [f"{config.files[s][1]:,}" if s in config.files else "" for s in ("train", "test")]
        names = ", ".join(f"`{name}`" for name in rows.columns(form, answered))
        lines.append(f"| `{config.name}` | {' | '.join(counts)} | {WHAT[config.name]} | {names} |")
    kinds = {kind for config in configs if (kind := rows.trl_type(form, config.name != "prompts"))}
    named = f" In TRL's terms: {', '.join(sorted(kinds))}." if kinds else ""
    held = "The split `test` has the rows that were held out from training."
    return "## Rows\n\n" + "\n".join(lines) + f"\n\nEach row is in the form `{form}`.{named} {held}\n"


def _loading(first: str) -> str:
    code = f'from datasets import load_dataset\n\nrows = load_dataset(".", "{first}")  # or the id on the hub'
    return f"## Loading\n\n```python\n{code}\n```\n"


def _prompts(context: Context) -> str:
    """The system texts of the rows."""
    constitution = context.run.constitution
    said = [f"`{name}`:\n\n{model_card.block(constitution.system_prompt(name))}\n" for name in ("standard", "concise")]
    about = "A row's system text is the system prompt that it was trained under (stage 4 has both, by turns)."
    return f"## System prompts\n\n{about}\n\n" + "\n".join(said)


def _terms(context: Context) -> str:
    found = re.sub(r"\n+$", "", record.notice(context))
    return f"## Terms of the base model\n\n{model_card.block(found)}\n" if found else ""
