"""Write model cards: how a model was made and measured, how to load it, and its licence terms.

Every text that a person or a model wrote is escaped, so it never becomes Markdown or HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from selfalign.constitution import Constitution
from selfalign.model.base_model import Model
from selfalign.report.scores import read_scores, score_text
from selfalign.run.context import Context
from selfalign.run.ledger import TITLES, StageCounts
from selfalign.system.console import plain

STAGE_DESCRIPTIONS = {
    "engrave": "Stage 3, principle engraving: trained on the base model's own responses, written under the "
    "constitution, without the constitution in the prompt.",
    "verbose_cloning": "Stage 4, verbose cloning: trained on the engraved model's verbose responses, without the "
    "verbose system prompt.",
    "given": "Trained on the user's responses, as in stage 3 of SELF-ALIGN.",
}
_LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf-adapter": "gguf", "gguf": "gguf"}
"""Form -> the hub's name of the library that loads it."""
_FORM_NAMES = {
    "adapter": "LoRA adapter (PEFT)",
    "merged": "merged model",
    "gguf-adapter": "LoRA adapter (GGUF)",
    "gguf": "merged model (GGUF)",
}


def escaped(text: str) -> str:
    """Return the text on one line, escaped so that Markdown shows it unchanged."""
    line = " ".join(plain(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", line)
    return re.sub(r"^(\d{0,9})([-+.)=])(?=[-=\s]|$)", r"\1\\\2", line)  # else it may begin a list or a rule


def block(text: str) -> str:
    """Return the text as an indented code block."""
    return "\n".join(f"    {plain(line)}".rstrip() for line in text.splitlines())


def front_matter(model: Model, constitution: Constitution, form: str, tags: Sequence[str]) -> str:
    """Return the YAML at the top of the card, which the hub reads.

    Args:
        form: adapter, merged, gguf-adapter or gguf.
    """
    lines = [f"library_name: {_LIBRARIES[form]}", "pipeline_tag: text-generation"]
    if model.hub_id:
        relation = "adapter" if "adapter" in form else "finetune"
        lines += [f"base_model: {json.dumps(model.hub_id)}", f"base_model_relation: {relation}"]
    lines += licence(model)
    lines += [f"language: [{json.dumps(constitution.language)}]", f"tags: [{', '.join(tags)}]"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def licence(model: Model) -> list[str]:
    """Return the YAML lines of the base model's licence; none if it is unknown."""
    if model.licence:
        return [f"license: {model.licence}"]
    return ["license: other", "license_name: terms-of-the-base-model"] if model.notice else []


def principles(constitution: Constitution) -> str:
    """Return the section with the numbered principles."""
    rules = "\n".join(f"{p.id}. **{escaped(p.name)}**: {escaped(p.rule)}" for p in constitution.principles)
    return f"## Constitution {escaped(constitution.name)}\n\n{rules}\n"


def _turns(model: Model) -> str:
    template = model.template
    return f"Turns use the template `{template.name}`; a response ends with {escaped(template.end)}.\n"


def _terms(model: Model) -> str:
    return f"## Terms of the base model\n\n{block(model.notice)}\n" if model.notice else ""


# -- sections from the run -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The parts of a card that come from the run's files."""

    authors: str
    """Who wrote prompts and responses, as a sentence."""
    data: str
    """The section with the counts of each stage."""
    scores: str
    """The section with the scores and their intervals."""


def run_facts(context: Context) -> RunFacts:
    """Read the parts of a card that come from the run's files."""
    journal, recipe = context.journal, context.recipe
    rows = [
        (f"{s['benchmark']}: {s['measure']}", str(s["model"]), str(s["n"]), *score_text(s))
        for s in read_scores(context.run)
    ]
    return RunFacts(
        authors(bool(recipe.prompts.file), recipe.align.form == "given"),
        data_section([journal.counts(stage) for stage in journal.stages()]),
        scores_section(rows),
    )


def authors(user_prompts: bool, user_responses: bool) -> str:
    """Return a sentence on who wrote the training data."""
    if user_responses:
        return "The user provided prompts and responses; people or other programs wrote them."
    if user_prompts:
        return "The user provided the prompts; the base model wrote the responses under the constitution below."
    return "The base model wrote prompts and responses under the constitution below."


def data_section(stages: Sequence[StageCounts]) -> str:
    """Return the section with rows in, rows kept, and the reasons of dropped and failed rows of each stage."""
    rows = []
    for stage in stages:
        reasons = {**stage.dropped, **{f"failed: {k}": n for k, n in stage.failed.items()}}
        text = "; ".join(f"{escaped(reason)} {n}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1]))
        rows.append([TITLES.get(stage.stage, escaped(stage.stage)), str(stage.rows_in), str(stage.kept), text])
    return "## Data\n\n" + _table(["stage", "in", "kept", "dropped, failed"], rows)


def scores_section(rows: Sequence[tuple[str, str, str, str, str, str]]) -> str:
    """Return the section with (measure, model, n, value, interval, difference) of each score."""
    if not rows:
        return "## Scores\n\nNot evaluated.\n"
    head = ["measure", "model", "n", "value", "95 % interval", "paired difference"]
    return "## Scores\n\n" + _table(head, [[escaped(cell) for cell in row] for row in rows])


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


# -- cards -----------------------------------------------------------------------------------------------------------


def adapter_card(model: Model, constitution: Constitution, kind: str, count: int) -> str:
    """Return the card that is written next to an adapter after its training.

    Args:
        kind: a key of `STAGE_DESCRIPTIONS`: the stage, or given if the responses are the user's.
        count: number of examples that it was trained on.
    """
    author = "people or other programs wrote" if kind == "given" else "the base model wrote itself"
    return "\n".join(
        [
            front_matter(model, constitution, "adapter", ("self-align", "lora")),
            f"# {escaped(constitution.assistant.name)}: adapter of {escaped(model.hub_id or model.name)}\n",
            f"{STAGE_DESCRIPTIONS[kind]}\n",
            f"Trained on {count} single-turn examples that {author} (SELF-ALIGN, arXiv 2305.03047).\n",
            _turns(model),
            principles(constitution),
            _terms(model),
        ]
    )


def export_card(
    model: Model,
    constitution: Constitution,
    facts: RunFacts,
    *,
    form: str,
    name: str,
    weight_type: str,
    stage: str,
    comparison: str,
) -> str:
    """Return the card of an exported model.

    Args:
        form: adapter, merged, gguf-adapter or gguf.
        name: engraved or final.
        weight_type: type of the weights; "" for adapters.
        stage: a key of `STAGE_DESCRIPTIONS`.
        comparison: how the export, loaded back, compares with the trained model.
    """
    tags = ["self-align", *(["lora"] if "adapter" in form else []), *(["gguf"] if "gguf" in form else [])]
    label, base = escaped(constitution.assistant.name), escaped(model.hub_id or model.name)
    return "\n".join(
        [
            front_matter(model, constitution, form, tags),
            f"# {label}, {_FORM_NAMES[form]}{f', {weight_type}' if weight_type else ''}: the {name} model of {base}\n",
            f"{STAGE_DESCRIPTIONS[stage]}\n",
            f"{facts.authors} Training was without the constitution in the prompt (SELF-ALIGN, arXiv 2305.03047). The "
            "model's responses can be wrong.\n",
            _turns(model),
            _loading(form, weight_type, constitution.assistant.name),
            f"## Comparison with the trained model\n\n{escaped(comparison)}\n",
            principles(constitution),
            facts.data,
            facts.scores,
            _terms(model),
        ]
    )


def _loading(form: str, weight_type: str, label: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "assistant"
    code = {
        "adapter": _PEFT,
        "merged": _TRANSFORMERS,
        "gguf-adapter": "llama-server -m BASE.gguf --lora adapter.gguf --jinja --chat-template-file "
        "chat_template.jinja",
        "gguf": f"llama-server -m model-{weight_type}.gguf --jinja\n\nollama create {slug} -f Modelfile\n"
        f"ollama run {slug}",
    }[form]
    language = "python" if form in ("adapter", "merged") else "sh"
    return (
        f"## Loading\n\n```{language}\n{code}\n```\n\nThe chat template contains the standard system prompt; a first "
        "system message replaces it. Training was single-turn: later turns may be weaker. Servers read the text of a "
        "control token in a message as that token.\n"
    )


_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
messages = [{"role": "user", "content": "What is a tide?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0][inputs["input_ids"].shape[1] :]))"""
_PEFT = """\
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = "BASE"  # the base model's folder or hub id
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), ".")
tokenizer = AutoTokenizer.from_pretrained(base)
tokenizer.chat_template = Path("chat_template.jinja").read_text("utf-8")"""
