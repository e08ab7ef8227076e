"""Write model cards: how a model was made and measured, how to load it, and its licence terms.

Every text that a person or a model wrote is escaped, so it never becomes Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfalign.constitution import Constitution
from selfalign.model.base_model import Model
from selfalign.report.scores import read_scores, score_text
from selfalign.run.context import Context
from selfalign.run.ledger import TITLES, StageCounts
from selfalign.system.console import plain

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


def licence(model: Model) -> list[str]:
    """Return the YAML lines of the base model's licence; none if it is unknown."""
    if model.licence:
        return [f"license: {model.licence}"]
    return ["license: other", "license_name: terms-of-the-base-model"] if model.notice else []


def principles(constitution: Constitution) -> str:
    """Return the section with the numbered principles."""
    rules = "\n".join(f"{p.id}. **{escaped(p.name)}**: {escaped(p.rule)}" for p in constitution.principles)
    return f"## Constitution {escaped(constitution.name)}\n\n{rules}\n"


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


def adapter_card(
    model: Model, constitution: Constitution, kind: str, count: int, pairs: int = 0, responses: int = 0
) -> str:
    """Return the card that is written next to an adapter after its training.

    Args:
        kind: engrave or verbose_cloning, or given if the responses are the user's.
        count: number of examples that it was trained on.
        pairs: number of preference pairs among them (DPO).
        responses: number of its own responses that it was then trained on (`on_policy`).
    """
    return _render(
        model, constitution, form="adapter", stage=kind, count=count, pairs=pairs, responses=responses, facts=None
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
    pairs: int = 0,
    responses: int = 0,
) -> str:
    """Return the card of an exported model.

    Args:
        form: adapter, merged, gguf-adapter or gguf.
        name: engraved or final.
        weight_type: type of the weights; "" for adapters.
        stage: as `kind` of `adapter_card`.
        comparison: how the export, loaded back, compares with the trained model.
        pairs, responses: as in `adapter_card`.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", constitution.assistant.name.lower()).strip("-") or "assistant"
    return _render(
        model, constitution, facts=facts, form=form, form_name=_FORM_NAMES[form], name=name, weight_type=weight_type,
        stage=stage, comparison=comparison, slug=slug, pairs=pairs, responses=responses,
    )  # fmt: skip


def _render(model: Model, constitution: Constitution, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(  # noqa: S701  (Markdown: the template escapes texts with its own filters)
        loader=jinja2.PackageLoader("selfalign", "report/parts"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escaped": escaped, "block": block}
    return environment.get_template("card.md.jinja").render(
        model=model, constitution=constitution, licence=licence(model), principles=principles(constitution), **values
    )
