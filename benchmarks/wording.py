"""Measure the yield of stage 2 with a wording of the constitution: the fraction of responses that the filters keep.

    python benchmarks/wording.py --prompts PROMPTS.jsonl --out DIR [--constitution FILE] [--set key=value ...] [--score]

Responds to every prompt of the file (stage 2 alone, without training) and prints one JSON object. Compare wordings on
one file of prompts, and measure the chosen one once on another file. The same command resumes. --score adds the
fraction of kept responses that are more likely after their own prompt than after the next row's (needs the torch
weights).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path

from selfalign import constitution as constitutions
from selfalign.constitution import Constitution
from selfalign.data.records import Response, read_jsonl
from selfalign.data.text import CITATION
from selfalign.evaluation.statistics import wilson
from selfalign.generation import guided
from selfalign.generation.loop import RowRequest
from selfalign.model import sources
from selfalign.model.dialogue import encode_example
from selfalign.pipeline import order, step2_self_align
from selfalign.quality.refusals import refuses, stock_refusal
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen


def measure(context: Context, score: bool) -> dict[str, object]:
    """Return the numbers to compare wordings by."""
    prompts = list(context.prompts())
    kept = read_jsonl(context.run.jsonl("responses"), Response)
    kept_rate = wilson(len(kept), len(prompts))
    openings = Counter(" ".join(r.response.lower().split()[:6]) for r in kept)
    opening, count = openings.most_common(1)[0] if openings else ("", 0)
    refusals = [r for r in kept if stock_refusal(r.response)]
    report: dict[str, object] = {
        "prompts": len(prompts),
        "kept": len(kept),
        "yield": [round(100 * x, 1) for x in (kept_rate.value, kept_rate.low, kept_rate.high)],
        "dropped": dict(context.journal.counts("align").dropped),
        **_citations(context),
        "commonest opening": [opening, round(100 * count / max(1, len(kept)), 1)],
        "stock refusals %": round(100 * len(refusals) / max(1, len(kept)), 1),
        "refusals of any kind %": round(100 * sum(refuses(r.response) for r in kept) / max(1, len(kept)), 1),
        "median words": sorted(len(r.response.split()) for r in kept)[len(kept) // 2] if kept else 0,
        "principles": dict(Counter(p for r in kept for p in r.principles).most_common()),
    }
    if score:
        report["likelier under their prompt %"] = round(100 * _own_prompt(context, kept), 1)
    return report


def _citations(context: Context) -> dict[str, object]:
    """Return the fraction of internal thoughts with a citation, and of cited principles that exist under that name."""
    names = {p.id: p.name.lower() for p in context.run.constitution.principles}
    rows = citing = cited = existing = 0
    form = step2_self_align.form(context)
    requests = [RowRequest(p.id, step2_self_align.request(context, p, form)) for p in context.prompts()]
    # Nothing is generated here, because all outputs are in the journal.
    for row, result in context.journaled_engine("align").stream(requests):
        if result.completion is None:
            continue
        thoughts, _, _ = guided.split(result.completion, row.request, context.run.constitution.assistant.name)
        citations = CITATION.findall(thoughts)
        rows, citing, cited = rows + 1, citing + bool(citations), cited + len(citations)
        existing += sum(names.get(int(n)) == name.lower() for n, name in citations)
    return {
        "thoughts that cite %": round(100 * citing / max(1, rows), 1),
        "cited that exist %": round(100 * existing / max(1, cited), 1),
    }


def _own_prompt(context: Context, rows: list[Response]) -> float:
    """Return the fraction of responses with a lower mean loss per token after their own prompt than after the next."""
    from selfalign.training import forward, lora

    context.release_engine()
    texts: Constitution = context.run.constitution
    tokenizer, template = context.model.tokenizer(), context.model.template
    system, label = texts.system_prompt("standard"), texts.assistant.name
    base = lora.load_base(context.model.folder())
    means = []
    for shift in (0, 1):
        pairs = [(rows[(i + shift) % len(rows)].message, r.response) for i, r in enumerate(rows)]
        encoded = [encode_example(tokenizer, template, system, user, answer, label) for user, answer in pairs]
        # Without the end token, whose loss does not depend on the subject of the response.
        losses = [row[:-1] for row in forward.token_losses(base, encoded)]
        means.append([math.fsum(row) / len(row) for row in losses])
    return sum(own_loss < other_loss for own_loss, other_loss in zip(*means, strict=True)) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--constitution", default="default")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--score", action="store_true")
    arguments = parser.parse_args()
    settings = ["stages=[prompts, align]", "evaluate.heldout_prompts=0", f"constitution={arguments.constitution}"]
    recipe = recipes.located(recipes.load("quick", [*settings, *arguments.settings]), arguments.prompts)
    texts = constitutions.load(recipe.constitution)
    context = Context(RunDir.create(arguments.out, recipe, texts), Screen(0), _model=sources.resolve(recipe.model))
    try:
        order.run_all(context)
        print(json.dumps(measure(context, arguments.score), indent=1, ensure_ascii=False))
    finally:
        context.release_engine()


if __name__ == "__main__":
    main()
