"""Stage 2, principle-driven self-alignment: prompts + constitution -> internal thoughts + responses.

1_prompts/prompts.jsonl -> 2_self_align/responses.jsonl

The base model reads the principles and the exemplars of the prompt's type, writes one line of internal thoughts about
the principles that apply, and responds. The thoughts are stored in a separate field; only the response is training
text. (SELF-ALIGN, arXiv 2305.03047, section 3.3, where the exemplars are the same for every prompt: `align.exemplars:
fixed`.)

With `align.form: given`, nothing is generated: the responses come from the user data, and pass the same filters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path

from selfalign.constitution.citations import check_citations
from selfalign.constitution.leaks import leaks_of
from selfalign.data.records import Prompt
from selfalign.data.user_data import UserData, UserResponses
from selfalign.generation import guided
from selfalign.generation.engines.base import Request
from selfalign.generation.loop import GenerationResult, RowRequest, row_seed
from selfalign.pipeline.responses import ResponseWriter, response_to
from selfalign.quality.response_filters import ResponseJudge
from selfalign.run.context import Context
from selfalign.run.inputs import Rows
from selfalign.system import atomic
from selfalign.system.clock import Clock
from selfalign.system.signals import STOP

STAGE = "align"


def form(context: Context) -> guided.Form:
    """Return the form of the run's requests."""
    config = context.recipe.align
    return guided.Form(context.run.constitution, config, context.sampling(config))


def request(context: Context, prompt: Prompt, form: guided.Form) -> Request:
    """Return the request for one prompt."""
    seed = row_seed(context.recipe.seed, STAGE, prompt.id)
    return form.request(prompt.message, seed, prompt.question_type, prompt.exemplar_type)


def run(context: Context) -> list[Path]:
    """Respond to every prompt of the file, filter the responses and write them; return the files."""
    clock, prompts = Clock(), context.prompts()
    if not prompts:
        context.screen.say(f"  {context.run.jsonl('prompts')} has no prompts: there is nothing to respond to", "yellow")
    path, rows_in = context.run.jsonl("responses"), len(prompts) + prompts.number_removed
    has_responses, filters = context.recipe.align.form == "given", context.recipe.filters.responses
    judge = ResponseJudge(filters, leaks_of(context.run.constitution, filters.leak_words), context.benchmarks)
    with (
        context.screen.bar("self-align", len(prompts)) as bar,
        atomic.new_file(path) as file,
        context.journal.ledger(STAGE, rows_in) as ledger,
    ):
        for outcome in prompts.removed():
            ledger.record(outcome)
        writer = ResponseWriter(file, ledger, judge)
        if has_responses:
            _copy(context, prompts, writer, bar.add)
        elif prompts:
            _generate(context, prompts, writer, bar.add)
    notes: dict[str, object] = {"principles": dict(writer.principles)}
    if has_responses:
        notes["answers from"] = UserData(context.recipe.prompts).name
    context.check_failures(context.finish(STAGE, rows_in, clock, notes))
    return [path]


def _generate(
    context: Context, prompts: Rows[Prompt], writer: ResponseWriter, on_done: Callable[[int, int], None]
) -> None:
    """Let the base model respond to the prompts. Responses in the journal are not generated again."""
    request_form = form(context)
    if len(request_form.types) == 1:
        prefix = request_form.prefix()
        with closing(_stream(context, prompts, request_form, on_done, lambda: context.warm_prefix(prefix))) as results:
            for row, result in results:
                _add(context, writer, row, result)
        return
    failures = _generate_by_type(context, prompts, request_form, on_done)
    answered = (p for p in prompts if p.id not in failures)
    with closing(_stream(context, answered, request_form)) as results:
        for prompt in prompts:
            if prompt.id in failures:
                writer.add_failure(prompt, failures[prompt.id])
            else:
                _add(context, writer, *next(results))


def _generate_by_type(
    context: Context, prompts: Rows[Prompt], form: guided.Form, on_done: Callable[[int, int], None]
) -> dict[str, GenerationResult]:
    """Generate the responses into the journal, type by type, and return the failures by the prompts' ids.

    The responses of one type are finished before the next prefix is computed, so that every slot keeps the principles
    and each type's exemplars are computed once. The file keeps its order, which mixes the types.
    """
    failures = {}
    for name in form.types:
        group = (p for p in prompts if form.prefix_type(p.exemplar_type) == name)
        prefix = form.prefix(name)
        with closing(_stream(context, group, form, on_done, lambda p=prefix: context.warm_prefix(p))) as results:  # type: ignore[misc]
            for row, result in results:
                if result.completion is None:
                    failures[row.row_id] = result
    return failures


def _stream(
    context: Context,
    prompts: Iterable[Prompt],
    form: guided.Form,
    on_done: Callable[[int, int], None] = lambda rows, tokens: None,
    before_first: Callable[[], None] = lambda: None,
) -> Generator[tuple[RowRequest, GenerationResult], None, None]:
    requests = (RowRequest(p.id, request(context, p, form), p) for p in prompts)
    return context.journaled_engine(STAGE, on_done).stream(requests, before_first)


def _add(context: Context, writer: ResponseWriter, row: RowRequest, result: GenerationResult) -> None:
    """Read a raw output, check its citations, and write the response or the reason why there is none."""
    constitution = context.run.constitution
    if result.completion is None:
        writer.add_failure(row.item, result)
        return
    thoughts, text, truncated = guided.split(result.completion, row.request, constitution.assistant.name)
    principles, reason = check_citations(thoughts, constitution.principle_names())
    if not reason and not text.strip():
        finished = len(result.completion.parts) == len(row.request.steps)
        reason = "empty" if finished else "thoughts never ended"
    response = response_to(row.item, text, thoughts, principles)
    if reason:
        writer.drop(response, reason)
    else:
        writer.add(response, truncated)


def _copy(context: Context, prompts: Rows[Prompt], writer: ResponseWriter, on_done: Callable[[int, int], None]) -> None:
    """Read the responses from the user data."""
    with closing(UserResponses(context.recipe.prompts)) as responses:
        for prompt in prompts:
            STOP.check()
            text = responses.get(prompt.id)
            if text is None:
                writer.drop_prompt(prompt, "no answer is given")
            else:
                writer.add(response_to(prompt, text))
            on_done(1, 0)
