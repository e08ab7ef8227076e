"""Stage 2, principle-driven self-alignment: prompts + constitution -> internal thoughts + responses.

1_prompts/prompts.jsonl -> 2_self_align/responses.jsonl

The base model sees the principles and the exemplars, thinks in one line about which principles apply, and answers. The
thoughts stay in a column of their own; the answer alone is training text. (SELF-ALIGN, arXiv 2305.03047, section 3.3.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from selfalign import atomic, guided
from selfalign.context import Context
from selfalign.engines.base import Request
from selfalign.generate import Outcome, Work, row_seed, stream
from selfalign.inputs import Rows
from selfalign.journal import Clock, Fate
from selfalign.quality.response_filters import TOO_MANY_REFUSALS, Leaks, RefusalCap, judge, judge_thoughts
from selfalign.records import Prompt, Response, line

STAGE = "align"


def form(context: Context) -> guided.Form:
    """How the recipe asks."""
    config = context.recipe.align
    return guided.Form(context.run.constitution, config, context.sampling(config))


def request(context: Context, prompt: Prompt, asked: guided.Form) -> Request:
    """The request for one prompt."""
    return asked.request(prompt.message, row_seed(context.recipe.seed, STAGE, prompt.id), prompt.question_type)


def run(context: Context) -> list[Path]:
    """Answer every prompt of the file; returns the files."""
    clock, prompts = Clock(), context.prompts()
    if not prompts:
        context.screen.say(f"  {context.run.jsonl('prompts')} holds no prompt: nothing is answered", "yellow")
    path = context.run.jsonl("responses")
    used: Counter[str] = Counter()
    with context.screen.bar("self-align", len(prompts)) as bar, atomic.new_file(path) as file:

        def keep(response: Response) -> None:
            file.write(line(response).encode("utf-8"))
            used.update(map(str, response.principles))

        context.decide(STAGE, _fates(context, prompts, keep, bar.add))
    counts = context.finish(STAGE, len(prompts) + prompts.number_removed, clock, {"principles": dict(used)})
    context.check_failures(counts)
    return [path]


def _fates(
    context: Context, prompts: Rows[Prompt], keep: Callable[[Response], None], on_done: Callable[[int, int], None]
) -> Generator[Fate, None, None]:
    """Ask, judge and keep one row after the other; in memory are those of a window only."""
    filters = context.recipe.filters.responses
    asked, leaks = form(context), Leaks.of(context.run.constitution, filters.leak_words)
    cap = RefusalCap(filters.refusals)
    context.journal.expect(STAGE, len(prompts) + prompts.number_removed)
    yield from prompts.removed()
    if not prompts:
        return
    context.prime(asked.prefix)
    works = (Work(p.id, request(context, p, asked), p) for p in prompts)
    answered = stream(
        works, context.engine(), context.journal, stage=STAGE, identities=context.identities(), on_done=on_done
    )
    with closing(answered):
        for position, (work, outcome) in enumerate(answered):
            fate, response = decide(context, work.item, outcome, work.request, leaks, cap, position)
            if response:
                keep(response)
            yield fate


def decide(
    context: Context, prompt: Prompt, outcome: Outcome, request: Request, leaks: Leaks, cap: RefusalCap, position: int
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
    verdict = judge(answer, truncated, prompt.message, leaks, recipe.filters.responses)
    if verdict.reason:
        return (prompt.id, position, "dropped", verdict.reason, shown), None
    if hit := context.benchmarks.find(prompt.message, verdict.text):
        return (prompt.id, position, "dropped", hit.reason, hit.beside(shown)), None
    if not cap.admits(verdict.text):
        return (prompt.id, position, "dropped", TOO_MANY_REFUSALS, shown), None
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
