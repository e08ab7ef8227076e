"""Stage 2, principle-driven self-alignment: prompts + constitution -> internal thoughts + responses.

1_prompts/prompts.jsonl -> 2_self_align/responses.jsonl

The base model sees the principles and the exemplars, thinks in one line about which principles apply, and answers. The
thoughts stay in a column of their own; the answer alone is training text. (SELF-ALIGN, arXiv 2305.03047, section 3.3.)

With `align.form: given` nothing is generated: the answers are those of the user's own rows; the same filters decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from selfalign.constitution.citations import check_citations
from selfalign.constitution.leaks import leaks_of
from selfalign.data.records import Prompt, Response, line
from selfalign.data.user_data import UserData, UserResponses
from selfalign.generation import guided
from selfalign.generation.engines.base import Request
from selfalign.generation.loop import GenerationResult, RowRequest, row_seed
from selfalign.quality.response_filters import TOO_MANY_REFUSALS, Leaks, RefusalCap, filter_response
from selfalign.run.context import Context
from selfalign.run.inputs import Rows
from selfalign.run.ledger import RowOutcome
from selfalign.system import atomic
from selfalign.system.clock import Clock
from selfalign.system.signals import STOP

STAGE = "align"
NO_ANSWER = "no answer is given"


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
    notes: dict[str, object] = {"principles": dict(used)}
    if context.recipe.align.form == "given":
        notes["answers from"] = UserData(context.recipe.prompts).name
    counts = context.finish(STAGE, len(prompts) + prompts.number_removed, clock, notes)
    context.check_failures(counts)
    return [path]


def _fates(
    context: Context, prompts: Rows[Prompt], keep: Callable[[Response], None], on_done: Callable[[int, int], None]
) -> Generator[RowOutcome, None, None]:
    """Ask (or look up), judge and keep one row after the other; in memory are those of a window only."""
    filters = context.recipe.filters.responses
    leaks = leaks_of(context.run.constitution, filters.leak_words)
    cap = RefusalCap(filters.refusals)
    context.journal.expect(STAGE, len(prompts) + prompts.number_removed)
    yield from prompts.removed()
    if not prompts:
        return
    decided = _given if context.recipe.align.form == "given" else _asked
    with closing(decided(context, prompts, leaks, cap, on_done)) as decisions:
        for fate, response in decisions:
            if response:
                keep(response)
            yield fate


Decisions = Generator[tuple[RowOutcome, Response | None], None, None]


def _asked(
    context: Context, prompts: Rows[Prompt], leaks: Leaks, cap: RefusalCap, on_done: Callable[[int, int], None]
) -> Decisions:
    """The base model answers."""
    asked = form(context)
    context.warm_prefix(asked.prefix)
    requests = (RowRequest(p.id, request(context, p, asked), p) for p in prompts)
    with closing(context.journaled_engine(STAGE, on_done).stream(requests)) as results:
        for position, (row, outcome) in enumerate(results):
            yield decide(context, row.item, outcome, row.request, leaks, cap, position)


def _given(
    context: Context, prompts: Rows[Prompt], leaks: Leaks, cap: RefusalCap, on_done: Callable[[int, int], None]
) -> Decisions:
    """The user's own answers are taken."""
    with closing(UserResponses(context.recipe.prompts)) as answers:
        for position, prompt in enumerate(prompts):
            STOP.check()
            answer = answers.get(prompt.id)
            on_done(1, 0)
            if answer is None:
                yield RowOutcome(prompt.id, position, "dropped", NO_ANSWER, prompt.message), None
            else:
                yield _judged(context, _response(prompt, answer, "", []), False, leaks, cap, position)


def decide(
    context: Context,
    prompt: Prompt,
    outcome: GenerationResult,
    request: Request,
    leaks: Leaks,
    cap: RefusalCap,
    position: int,
) -> tuple[RowOutcome, Response | None]:
    """The row's fate and, where it is kept, the response."""
    if outcome.completion is None:
        return RowOutcome(prompt.id, position, outcome.state, outcome.reason, prompt.message), None
    constitution = context.run.constitution
    thoughts, answer, truncated = guided.split(outcome.completion, request, constitution.assistant.name)
    principles, reason = check_citations(thoughts, constitution.principle_names())
    if reason is None and not answer.strip():
        reason = "thoughts never ended" if len(outcome.completion.parts) < len(request.steps) else "empty"
    response = _response(prompt, answer, thoughts, principles)
    if reason:
        return RowOutcome(prompt.id, position, "dropped", reason, _shown(response)), None
    return _judged(context, response, truncated, leaks, cap, position)


def _response(prompt: Prompt, answer: str, thoughts: str, principles: list[int]) -> Response:
    return Response(
        prompt.id,
        prompt.instruction,
        prompt.input,
        answer,
        thoughts,
        principles,
        prompt.source,
        prompt.question_type,
        prompt.split,
    )


def _shown(response: Response) -> str:
    thoughts = f"[{response.thoughts}]\n" if response.thoughts else ""
    return f"{response.message}\n{thoughts}{response.response}"


def _judged(
    context: Context, response: Response, truncated: bool, leaks: Leaks, cap: RefusalCap, position: int
) -> tuple[RowOutcome, Response | None]:
    """What the filters say to a response."""
    message, shown = response.message, _shown(response)
    verdict = filter_response(response.response, truncated, message, leaks, context.recipe.filters.responses)
    if verdict.reason:
        return RowOutcome(response.id, position, "dropped", verdict.reason, shown), None
    if hit := context.benchmarks.find(message, verdict.text):
        return RowOutcome(response.id, position, "dropped", hit.reason, hit.beside(shown)), None
    if not cap.admits(verdict.text):
        return RowOutcome(response.id, position, "dropped", TOO_MANY_REFUSALS, shown), None
    return RowOutcome(response.id, position, "kept", "", shown), replace(response, response=verdict.text)
