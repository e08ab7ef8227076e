"""Stage 2, principle-driven self-alignment: prompts + constitution -> internal thoughts + responses.

1_prompts/prompts.jsonl -> 2_self_align/responses.jsonl

The base model sees the principles and the exemplars, thinks in one line about which principles apply, and answers. The
thoughts stay in a column of their own; the answer alone is training text. (SELF-ALIGN, arXiv 2305.03047, section 3.3.)
"""

from __future__ import annotations

from pathlib import Path

from selfalign import guided
from selfalign.context import Context, Fate
from selfalign.engines.base import Request
from selfalign.generate import Outcome, Work, generate, row_seed
from selfalign.journal import Clock
from selfalign.quality.response_filters import Leaks, judge_response, judge_thoughts
from selfalign.records import Prompt, Response, write_jsonl

STAGE = "align"


def request(context: Context, prompt: Prompt) -> Request:
    """The request for one prompt, in the recipe's form."""
    config = context.recipe.align
    return guided.request(
        context.run.constitution,
        config,
        context.sampling(config),
        prompt.message,
        row_seed(context.recipe.seed, STAGE, prompt.id),
        prompt.question_type,
    )


def run(context: Context) -> list[Path]:
    """Answer every prompt of the file; returns the files."""
    clock = Clock()
    prompts, fates = context.prompts()
    removed = len(fates)
    works = [Work(p.id, request(context, p)) for p in prompts]
    if works:
        context.engine().prime(works[0].request.prompt[:2], None)
    with context.screen.bar("self-align", len(works)) as bar:
        outcomes = generate(
            works, context.engine(), context.journal, stage=STAGE, identities=context.identities(), on_done=bar.add
        )
    leaks = Leaks.of(context.run.constitution)
    kept: list[Response] = []
    for position, (prompt, outcome) in enumerate(zip(prompts, outcomes, strict=True)):
        fate, response = decide(context, prompt, outcome, works[position].request, leaks, position)
        fates.append(fate)
        if response:
            kept.append(response)
    path = context.run.jsonl("responses")
    write_jsonl(path, kept)
    counts = context.settle(STAGE, fates, len(prompts) + removed, clock, {"principles": _usage(kept)})
    context.check_failures(counts)
    return [path]


def _usage(rows: list[Response]) -> dict[str, int]:
    used: dict[str, int] = {}
    for row in rows:
        for number in row.principles:
            used[str(number)] = used.get(str(number), 0) + 1
    return used


def decide(
    context: Context, prompt: Prompt, outcome: Outcome, request: Request, leaks: Leaks, position: int
) -> tuple[Fate, Response | None]:
    """The row's fate and, where it is kept, the response."""
    if outcome.completion is None:
        return (prompt.id, position, outcome.fate, outcome.reason, prompt.message), None
    recipe, constitution = context.recipe, context.run.constitution
    thoughts, answer, truncated = guided.split(outcome.completion, request, constitution.assistant.name)
    shown = f"{prompt.message}\n[{thoughts}]\n{answer}"
    principles, reason = judge_thoughts(thoughts, constitution)
    if reason is None and not answer.strip():
        reason = "thoughts never ended" if len(outcome.completion.parts) < len(request.steps) else "empty"
    if reason:
        return (prompt.id, position, "dropped", reason, shown), None
    verdict = judge_response(answer, truncated, prompt.message, leaks, recipe.filters)
    if verdict.reason:
        return (prompt.id, position, "dropped", verdict.reason, shown), None
    response = Response(
        prompt.id,
        prompt.instruction,
        prompt.input,
        verdict.text,
        thoughts,
        principles,
        prompt.source,
        prompt.question_type,
        prompt.split,
    )
    return (prompt.id, position, "kept", "", shown), response
