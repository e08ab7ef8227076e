"""Write the card of a data set: YAML for the hub and `datasets`, and a description of the rows."""

from __future__ import annotations

import json

from selfalign.export import record, row_files
from selfalign.report import model_card
from selfalign.run.context import Context

DESCRIPTIONS = {
    "engrave": "the pairs that stage 3 trained on (principle engraving), including the identity pairs",
    "verbose_cloning": "the pairs that stage 4 trained on (verbose cloning), including the identity pairs",
    "pairs": "the preference pairs of stage 3: a chosen and a rejected response to each prompt",
    "responses": "stage 2's responses that passed the filters",
    "prompts": "stage 1's prompts, without responses",
}
_SIZES = {"n<1K": 1_000, "1K<n<10K": 10_000, "10K<n<100K": 100_000, "100K<n<1M": 1_000_000, "1M<n<10M": 10_000_000}


Configs = dict[str, dict[str, tuple[str, int]]]
"""Stage -> split (train, test) -> (path in the data set, rows). Each stage is a configuration of the data set."""


def card(context: Context, configs: Configs, row_format: str, notes: list[str]) -> str:
    """Return README.md of the data set, with notes on skipped rows and on settings for a trainer."""
    constitution, facts = context.run.constitution, model_card.run_facts(context)
    base = model_card.escaped(context.model.hub_id or context.model.name)
    label = model_card.escaped(constitution.assistant.name)
    escaped_notes = [f"- {model_card.escaped(note)}" for note in notes]
    terms = record.base_terms(context).rstrip("\n")
    return "\n".join(
        [
            _front_matter(context, configs),
            f"# {label}: data of a SELF-ALIGN run of {base}\n",
            f"{facts.authors} The texts can be wrong, and red-team prompts ask for harmful content on purpose "
            "(SELF-ALIGN, arXiv 2305.03047). They have not all been reviewed by a person.\n",
            _rows_section(configs, row_format),
            f'## Loading\n\n```python\nfrom datasets import load_dataset\n\nrows = load_dataset(".", '
            f'"{next(iter(configs))}")  # or the id on the hub\n```\n',
            *([*escaped_notes, ""] if escaped_notes else []),
            _system_prompts_section(context),
            model_card.principles(constitution),
            "The complete constitution, with exemplars and question types, is in `constitution.yaml`.\n",
            facts.data,
            facts.scores,
            f"## Terms of the base model\n\n{model_card.block(terms)}\n" if terms else "",
        ]
    )


def _front_matter(context: Context, configs: Configs) -> str:
    constitution = context.run.constitution
    user_prompts, user_responses = bool(context.recipe.prompts.file), context.recipe.align.form == "given"
    total = sum(count for files in configs.values() for _, count in files.values())
    size = next((name for name, limit in _SIZES.items() if total < limit), "n>10M")
    lines = [f"pretty_name: {json.dumps(f'{constitution.assistant.name}: SELF-ALIGN data')}"]
    lines += model_card.licence(context.model)
    lines += [
        f"language: [{json.dumps(constitution.language)}]",
        "task_categories: [text-generation]",
        f"size_categories: [{size}]",
        f"annotations_creators: [{'found' if user_responses else 'machine-generated'}]",
        f"language_creators: [{'found' if user_prompts else 'machine-generated'}]",
        f"tags: [self-align{'' if user_responses else ', synthetic'}, alignment, sft]",
        "configs:",
    ]
    for position, (stage, files) in enumerate(configs.items()):
        lines += [f"- config_name: {stage}", *(["  default: true"] if not position else []), "  data_files:"]
        for split, (path, _) in files.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _rows_section(configs: Configs, row_format: str) -> str:
    lines = ["| configuration | train | test | rows | columns |", "| --- | --- | --- | --- | --- |"]
    trl_types = set()
    for stage, files in configs.items():
        has_responses = stage != "prompts"
        counts = [f"{files[split][1]:,}" if split in files else "" for split in ("train", "test")]
        names = ", ".join(f"`{name}`" for name in row_files.columns(row_format, has_responses))
        lines.append(f"| `{stage}` | {' | '.join(counts)} | {DESCRIPTIONS[stage]} | {names} |")
        trl_types.add(row_files.trl_type(row_format, has_responses))
    in_trl = f" TRL calls it {', '.join(sorted(trl_types - {''}))}." if trl_types - {""} else ""
    table = "\n".join(lines)
    return (
        f"## Rows\n\n{table}\n\nThe row format is `{row_format}`.{in_trl} The split `test` has the rows that were held "
        "out from training.\n"
    )


def _system_prompts_section(context: Context) -> str:
    constitution = context.run.constitution
    texts = [f"`{name}`:\n\n{model_card.block(constitution.system_prompt(name))}\n" for name in ("standard", "concise")]
    intro = "Each row has the system prompt that it was trained under (stage 4 alternates between both)."
    return f"## System prompts\n\n{intro}\n\n" + "\n".join(texts)
