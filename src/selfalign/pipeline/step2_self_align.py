"""Stage 2, principle-driven self-alignment: prompts + constitution -> internal thoughts + responses.

1_prompts/prompts.jsonl -> 2_self_align/responses.jsonl

The base model reads the principles and the exemplars of the prompt's type, writes one line of internal thoughts about
the principles that apply, and responds. The thoughts are stored in a separate field; only the response is training
text. (SELF-ALIGN, arXiv 2305.03047, section 3.3, where the exemplars are the same for every prompt: `align.exemplars:
fixed`.)

With `align.form: given`, nothing is generated: the responses come from the user data, and pass the same filters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from selfalign.constitution import Probe
from selfalign.constitution.citations import check_citations
from selfalign.constitution.leaks import leaks_of
from selfalign.data.records import Prompt, content_hash
from selfalign.data.user_data import UserData, UserResponses
from selfalign.evaluation.tasks import checks
from selfalign.generation import guided
from selfalign.generation.engines.base import Completion, Request
from selfalign.generation.loop import GenerationResult, RowRequest, row_seed
from selfalign.pipeline.responses import Candidate, ResponseWriter, response_to
from selfalign.quality.response_filters import ResponseJudge
from selfalign.run.context import Context
from selfalign.run.inputs import Rows
from selfalign.run.ledger import not_judged_note
from selfalign.system import atomic
from selfalign.system.clock import Clock
from selfalign.system.signals import STOP

STAGE = "align"


def form(context: Context) -> guided.Form:
    """Return the form of the run's requests."""
    config = context.recipe.align
    return guided.Form(context.run.constitution, config, context.sampling(config))


def request(context: Context, prompt: Prompt, form: guided.Form, sample: int = 0) -> Request:
    """Return the request for one of the responses to a prompt."""
    seed = row_seed(context.recipe.seed, STAGE, sample_id(prompt, sample))
    return form.request(prompt.message, seed, prompt.question_type, prompt.exemplar_type)


def sample_id(prompt: Prompt, sample: int) -> str:
    """Return the id in the journal of the request for one of the responses to a prompt."""
    return content_hash(prompt.id, sample) if sample else prompt.id


def run(context: Context) -> list[Path]:
    """Respond to every prompt of the file, filter the responses and write them; return the files."""
    clock, prompts = Clock(), context.prompts()
    if not prompts:
        context.screen.say(f"  {context.run.jsonl('prompts')} has no prompts: there is nothing to respond to", "yellow")
    path, rows_in = context.run.jsonl("responses"), len(prompts) + prompts.number_removed
    has_responses, filters = context.recipe.align.form == "given", context.recipe.filters.responses
    judge = ResponseJudge(filters, leaks_of(context.run.constitution, filters.leak_words), context.benchmarks)
    with (
        context.screen.bar("self-align", len(prompts), STAGE) as bar,
        atomic.new_file(path) as file,
        context.journal.ledger(STAGE, rows_in) as ledger,
    ):
        for outcome in prompts.removed():
            ledger.record(outcome)
        writer = ResponseWriter(file, ledger, judge, bar.sample)
        if has_responses:
            _copy(context, prompts, writer, bar.add)
        elif prompts:
            _generate(context, prompts, writer, bar.add)
    notes: dict[str, object] = {"principles": dict(writer.principles), **not_judged_note(writer.not_judged)}
    if has_responses:
        notes["answers from"] = UserData(context.recipe.prompts).name
    context.check_failures(context.finish(STAGE, rows_in, clock, notes))
    return [path]


def _generate(
    context: Context, prompts: Rows[Prompt], writer: ResponseWriter, on_done: Callable[[int, int], None]
) -> None:
    """Let the base model respond to the prompts. Responses in the journal are not generated again."""
    request_form = form(context)
    if len(request_form.types) == 1 and context.recipe.align.samples == 1:
        requested = _Requested()
        requests = ((p, 0) for p in prompts)
        results = _stream(context, requests, request_form, on_done)
    else:
        requested = _generate_by_type(context, prompts, request_form, writer, on_done)
        requests = ((p, n) for p in prompts for n in requested.samples(p) if sample_id(p, n) not in requested.failures)
        results = _stream(context, requests, request_form)
    with closing(results):
        for prompt in prompts:
            row_ids = [sample_id(prompt, n) for n in requested.samples(prompt)]
            failed = [requested.failures[row_id] for row_id in row_ids if row_id in requested.failures]
            _add(context, writer, prompt, [*((None, f) for f in failed), *islice(results, len(row_ids) - len(failed))])


@dataclass
class _Requested:
    """What was requested for the prompts of a run."""

    failures: dict[str, GenerationResult] = field(default_factory=dict)
    """Id of a request -> its failure."""
    several: dict[str, int] = field(default_factory=dict)
    """Id of a prompt -> the number of its samples, if there are several."""

    def samples(self, prompt: Prompt) -> range:
        """Return the numbers of the prompt's samples."""
        return range(self.several.get(prompt.id, 1))


def _generate_by_type(
    context: Context,
    prompts: Rows[Prompt],
    form: guided.Form,
    writer: ResponseWriter,
    on_done: Callable[[int, int], None],
) -> _Requested:
    """Generate the responses into the journal, in the order of their types.

    Prompts of the same type follow each other, so that a slot seldom has to change its prefix. The file keeps its
    order, which mixes the types. A prompt gets another sample while none of its responses would be kept.
    """
    requested = _Requested()
    open_prompts: set[str] | None = None
    for sample in range(context.recipe.align.samples):
        group = (
            (p, sample)
            for name in form.types
            for p in prompts
            if form.prefix_type(p.exemplar_type) == name and (open_prompts is None or p.id in open_prompts)
        )
        rejected: set[str] = set()
        # Further samples of a prompt are not further prompts.
        report = on_done if not sample else (lambda rows, tokens: on_done(0, tokens))
        with closing(_stream(context, group, form, report)) as results:
            for row, result in results:
                prompt: Prompt = row.item
                if sample:
                    requested.several[prompt.id] = sample + 1
                if result.completion is None:
                    requested.failures[row.row_id] = result
                elif not writer.keeps(_candidate(context, row, result.completion), _accepts(context, prompt)[0]):
                    rejected.add(prompt.id)
        open_prompts = rejected
        if not rejected:
            break
    return requested


def _stream(
    context: Context,
    requests: Iterable[tuple[Prompt, int]],
    form: guided.Form,
    on_done: Callable[[int, int], None] = lambda rows, tokens: None,
) -> Generator[tuple[RowRequest, GenerationResult], None, None]:
    """Yield the results of requests, each given as (prompt, number of the sample)."""
    rows = (RowRequest(sample_id(prompt, n), request(context, prompt, form, n), prompt) for prompt, n in requests)
    warmed: set[str] = set()

    def warm(row: RowRequest) -> None:
        name = form.prefix_type(row.item.exemplar_type)
        if name not in warmed:
            warmed.add(name)
            context.warm_prefix(form.prefix(name))

    return context.journaled_engine(STAGE, on_done).stream(rows, warm)


def _add(
    context: Context,
    writer: ResponseWriter,
    prompt: Prompt,
    results: Sequence[tuple[RowRequest | None, GenerationResult]],
) -> None:
    """Read the raw outputs for a prompt, and write its first acceptable response or the reason why there is none."""
    candidates = [_candidate(context, row, result.completion) for row, result in results if row and result.completion]
    if not candidates:
        writer.add_failure(prompt, results[0][1])
        return
    accepts, refusal_is_wanted = _accepts(context, prompt)
    writer.add_best(candidates, accepts, refusal_is_wanted)


def _accepts(context: Context, prompt: Prompt) -> tuple[Callable[[str], bool], bool]:
    """Return (text -> whether it shows what the prompt's type asks for, whether that may be a refusal)."""
    required = context.run.constitution.required_check(prompt.exemplar_type)
    if required is None or context.model.is_fake:  # the fake engine writes random words
        return lambda text: True, False
    check, must_show = required
    probe = Probe(ask=prompt.message, expect=check)
    return lambda text: checks.shows(probe, text) == must_show, must_show


def _candidate(context: Context, row: RowRequest, completion: Completion) -> Candidate:
    """Split a raw output, and check its citations."""
    constitution = context.run.constitution
    thoughts, text, truncated = guided.split(completion, row.request, constitution.assistant.name)
    principles, wrong_citation = check_citations(thoughts, constitution.principle_names())
    reason = wrong_citation or ""
    if not reason and not text.strip():
        finished = len(completion.parts) == len(row.request.steps)
        reason = "empty" if finished else "thoughts never ended"
    return Candidate(response_to(row.item, text, thoughts, principles), truncated, reason)


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
