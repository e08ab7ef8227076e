"""Model cards: what a model was made of, how it was measured, how to load it, under which terms.

Every text that a person or a model wrote is escaped: it is shown as it stands and never becomes Markdown or HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from selfalign.constitution import Constitution
from selfalign.model.base_model import Model
from selfalign.run.ledger import StageCounts
from selfalign.system.console import plain

TITLES = {
    "engrave": "Stage 3, principle engraving: the base model's own answers under the constitution, without it.",
    "verbose_cloning": "Stage 4, verbose cloning: the engraved model's verbose answers, without the verbose prompt.",
    "given": "Answers that were brought along, learnt as in stage 3 of SELF-ALIGN.",
}
"""What a stage's adapter learnt."""
_LIBRARY = {"adapter": "peft", "merged": "transformers", "gguf-adapter": "gguf", "gguf": "gguf"}
"""What loads it, as the hub calls it."""


def escaped(text: str) -> str:
    """The text on one line, as Markdown that shows it as it stands."""
    line = " ".join(plain(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", line)
    return re.sub(r"^(\d{0,9})([-+.)=])(?=[-=\s]|$)", r"\1\\\2", shown)  # else it may begin a list, or a rule


def block(text: str) -> str:
    """The text line by line as a block in which nothing has a meaning."""
    return "\n".join(f"    {plain(line)}".rstrip() for line in text.splitlines())


def front(model: Model, constitution: Constitution, form: str, tags: Sequence[str]) -> str:
    """The card's YAML, with the keys that the hub reads.

    Args:
        form: adapter, merged, gguf-adapter or gguf.
    """
    lines = [f"library_name: {_LIBRARY[form]}", "pipeline_tag: text-generation"]
    if model.hub_id:
        relation = "adapter" if "adapter" in form else "finetune"
        lines += [f"base_model: {json.dumps(model.hub_id)}", f"base_model_relation: {relation}"]
    lines += licence(model)
    lines += [f"language: [{json.dumps(constitution.language)}]", f"tags: [{', '.join(tags)}]"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def licence(model: Model) -> list[str]:
    """The YAML lines of the base's terms; none where they are not known."""
    if model.licence:
        return [f"license: {model.licence}"]
    return ["license: other", "license_name: terms-of-the-base-model"] if model.notice else []


def adapter_card(model: Model, constitution: Constitution, kind: str, count: int) -> str:
    """The card beside an adapter at the end of its training.

    Args:
        kind: engrave, clone, or given where the answers are the user's own.
        count: examples that it was trained on.
    """
    writer = "people or other programs wrote" if kind == "given" else "the base model wrote itself"
    return "\n".join(
        [
            front(model, constitution, "adapter", ("self-align", "lora")),
            f"# {escaped(constitution.assistant.name)}: adapter of {escaped(model.hub_id or model.name)}\n",
            f"{TITLES[kind]}\n",
            f"Trained on {count} single-turn examples that {writer} (SELF-ALIGN, arXiv 2305.03047).\n",
            turns(model),
            principles(constitution),
            terms(model),
        ]
    )


def turns(model: Model) -> str:
    """How turns are written."""
    template = model.template
    return f"Turns are written in the form `{template.name}`; an answer ends with {escaped(template.end)}.\n"


def principles(constitution: Constitution) -> str:
    """The constitution's principles by number."""
    rules = "\n".join(f"{p.id}. **{escaped(p.name)}**: {escaped(p.rule)}" for p in constitution.principles)
    return f"## Constitution {escaped(constitution.name)}\n\n{rules}\n"


def terms(model: Model) -> str:
    """The base's licence terms; empty where they are not known."""
    return f"## Terms of the base model\n\n{block(model.notice)}\n" if model.notice else ""


def counts(stages: Sequence[StageCounts], titles: dict[str, str]) -> str:
    """The ledger: what each stage was given, what it kept, and why it dropped the rest."""
    rows = []
    for stage in stages:
        gone = {**stage.dropped, **{f"failed: {k}": n for k, n in stage.failed.items()}}
        why = "; ".join(f"{escaped(reason)} {n}" for reason, n in sorted(gone.items(), key=lambda x: -x[1]))
        rows.append([titles.get(stage.stage, escaped(stage.stage)), str(stage.rows_in), str(stage.kept), why])
    return "## Data\n\n" + _table(["stage", "in", "kept", "dropped, failed"], rows)


def scores(rows: Sequence[tuple[str, str, str, str, str, str]]) -> str:
    """The evaluation: (measure, model, n, value, interval, difference) of each score."""
    if not rows:
        return "## Scores\n\nNot evaluated.\n"
    head = ["measure", "model", "n", "value", "95 % interval", "paired difference"]
    return "## Scores\n\n" + _table(head, [[escaped(cell) for cell in row] for row in rows])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


_NAMES = {
    "adapter": "LoRA adapter (PEFT)",
    "merged": "merged model",
    "gguf-adapter": "LoRA adapter (GGUF)",
    "gguf": "merged model (GGUF)",
}


def writers(user_prompts: bool, own_answers: bool) -> str:
    """Who wrote what the model was trained on."""
    if own_answers:
        return "Prompts and answers were brought along: people or other programs wrote them."
    if user_prompts:
        return "The prompts were brought along; the base model answered them itself, under the constitution below."
    return "The base model wrote prompts and answers itself, under the constitution below."


def export_card(
    model: Model,
    constitution: Constitution,
    form: str,
    name: str,
    kind: str,
    stage: str,
    wrote: str,
    ledger: str,
    measured: str,
    compared: str,
) -> str:
    """The card of an export.

    Args:
        form: adapter, merged, gguf-adapter or gguf.
        name: engraved or final.
        kind: type of the weights; empty for adapters.
        stage: whose adapter it has: engrave or clone, or given where the answers were brought along.
        wrote: who wrote prompts and answers, as a sentence.
        ledger: `counts`.
        measured: `scores`.
        compared: what loading it back showed.
    """
    tags = ["self-align", *(["lora"] if "adapter" in form else []), *(["gguf"] if "gguf" in form else [])]
    label, base = escaped(constitution.assistant.name), escaped(model.hub_id or model.name)
    what = f"{_NAMES[form]}{f', {kind}' if kind else ''}: the {name} model of {base}"
    return "\n".join(
        [
            front(model, constitution, form, tags),
            f"# {label}, {what}\n",
            f"{TITLES[stage]}\n",
            f"{wrote} It was trained on them without the constitution (SELF-ALIGN, arXiv 2305.03047). What it says can "
            "be wrong.\n",
            turns(model),
            loading(form, kind, constitution.assistant.name),
            f"## Compared\n\n{escaped(compared)}\n",
            principles(constitution),
            ledger,
            measured,
            terms(model),
        ]
    )


def loading(form: str, kind: str, label: str) -> str:
    """How the export is loaded."""
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "assistant"
    steps = {
        "adapter": _PEFT,
        "merged": _TRANSFORMERS,
        "gguf-adapter": "llama-server -m BASE.gguf --lora adapter.gguf --jinja --chat-template-file "
        "chat_template.jinja",
        "gguf": f"llama-server -m model-{kind}.gguf --jinja\n\nollama create {slug} -f Modelfile\nollama run {slug}",
    }
    note = (
        "The chat template holds the standard system prompt; a system message in front replaces it. Training was "
        "single-turn: later turns may be weaker. Servers read the text of a control token in a message as that token."
    )
    kept = "python" if form in ("adapter", "merged") else "sh"
    return f"## Loading\n\n```{kept}\n{steps[form]}\n```\n\n{note}\n"


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
