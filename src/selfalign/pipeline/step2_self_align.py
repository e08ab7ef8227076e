"""Stage 2, principle-driven self-alignment: prompts + constitution -> internal thoughts + responses.

1_prompts/prompts.jsonl -> 2_self_align/responses.jsonl

The base model reads the principles and the exemplars of the prompt's type, writes one line of internal thoughts about
the principles that apply, and responds. The thoughts are stored in a separate field; only the response is training
text. (SELF-ALIGN, arXiv 2305.03047, section 3.3, where the exemplars are the same for every prompt: `align.exemplars:
fixed`.)

With several samples (`align.samples`), the first acceptable response is kept, or the one that `ranking` prefers
(`align.rank`).

With `align.form: given`, nothing is generated: the responses come from the user data, and pass the same filters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from selfalign.constitution import Probe
from selfalign.constitution.citations import check_citations
from selfalign.constitution.leaks import leaks_of
from selfalign.data.records import Prompt, content_hash
from selfalign.data.user_data import UserData, UserResponses
from selfalign.evaluation.tasks import checks
from selfalign.generation import guided
from selfalign.generation.engines.base import Completion, Request
from selfalign.generation.loop import GenerationResult, RowRequest, request_key, row_seed
from selfalign.pipeline import ranking
from selfalign.pipeline.responses import Candidate, ResponseWriter, response_to
from selfalign.quality.refusals import takes_back
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
        with closing(_stream(context, ((p, 0) for p in prompts), request_form, on_done)) as results:
            for row, result in results:
                _add(context, writer, row.item, {0: (row, result)})
        return
    contrast = ranking.Contrast(context, request_form) if ranking.is_on(context) else None
    samples = _generate_by_type(context, prompts, request_form, writer, on_done)
    if contrast is not None:
        context.screen.say("  ranking the responses", "dim")
        contrast.compute(
            (p, text)
            for name in request_form.types
            for p in prompts
            if request_form.prefix_type(p.exemplar_type) == name
            for text in _to_rank(context, writer, p, samples.of(p))
        )
    for prompt in prompts:
        _add(context, writer, prompt, samples.of(prompt), contrast)


@dataclass
class _Samples:
    """The samples of a run's prompts, which are in the journal."""

    context: Context
    form: guided.Form
    failures: dict[str, GenerationResult] = field(default_factory=dict)
    """Id of a request -> its failure."""
    several: dict[str, int] = field(default_factory=dict)
    """Id of a prompt -> the number of its samples, if there are several."""

    def __post_init__(self) -> None:
        self._identities = self.context.identities()

    def of(self, prompt: Prompt) -> dict[int, tuple[RowRequest, GenerationResult]]:
        """Return the results of a prompt's samples by number. They are read without an engine."""
        numbers = range(self.several.get(prompt.id, 1))
        rows = [_row(self.context, prompt, self.form, n) for n in numbers]
        keys = [request_key(STAGE, row, self._identities) for row in rows]
        raw = self.context.journal.saved(
            k for k, row in zip(keys, rows, strict=True) if row.row_id not in self.failures
        )
        results = {}
        for number, row, key in zip(numbers, rows, keys, strict=True):
            failure = self.failures.get(row.row_id)
            completion = None if failure else Completion.from_json(json.loads(raw[key]))
            results[number] = (row, failure or GenerationResult(row.row_id, completion))
        return results


def _generate_by_type(
    context: Context,
    prompts: Rows[Prompt],
    form: guided.Form,
    writer: ResponseWriter,
    on_done: Callable[[int, int], None],
) -> _Samples:
    """Generate the responses into the journal, in the order of their types.

    Prompts of the same type follow each other, so that a slot seldom has to change its prefix. The file keeps its
    order, which mixes the types. A prompt gets another sample while none of its responses would be kept, or all
    samples if they are ranked.
    """
    samples, is_ranked = _Samples(context, form), ranking.is_on(context)
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
                    samples.several[prompt.id] = sample + 1
                if result.completion is None:
                    samples.failures[row.row_id] = result
                elif is_ranked or not writer.kept_text(
                    _candidate(context, row, result.completion), _accepts(context, prompt)[0]
                ):
                    rejected.add(prompt.id)
        open_prompts = rejected
        if not rejected:
            break
    return samples


def _stream(
    context: Context,
    requests: Iterable[tuple[Prompt, int]],
    form: guided.Form,
    on_done: Callable[[int, int], None] = lambda rows, tokens: None,
) -> Generator[tuple[RowRequest, GenerationResult], None, None]:
    """Yield the results of requests, each given as (prompt, number of the sample)."""
    rows = (_row(context, prompt, form, n) for prompt, n in requests)
    warmed: set[str] = set()

    def warm(row: RowRequest) -> None:
        name = form.prefix_type(row.item.exemplar_type)
        if name not in warmed:
            warmed.add(name)
            context.warm_prefix(form.prefix(name))

    return context.journaled_engine(STAGE, on_done).stream(rows, warm)


def _row(context: Context, prompt: Prompt, form: guided.Form, sample: int) -> RowRequest:
    return RowRequest(sample_id(prompt, sample), request(context, prompt, form, sample), prompt)


def _add(
    context: Context,
    writer: ResponseWriter,
    prompt: Prompt,
    samples: Mapping[int, tuple[RowRequest, GenerationResult]],
    contrast: ranking.Contrast | None = None,
) -> None:
    """Read the raw outputs for a prompt, and write its best acceptable response or the reason why there is none."""
    candidates = _candidates(context, samples)
    failures = {number: result for number, (_, result) in samples.items() if result.completion is None}
    if not candidates:
        writer.add_failures(prompt, failures)
        return
    accepts, refusal_is_wanted = _accepts(context, prompt)
    if contrast is not None:
        texts = [writer.kept_text(c, accepts) for c in candidates]
        scores = iter(contrast.scores(prompt, [text for text in texts if text]))
        candidates = [replace(c, score=next(scores)) if t else c for c, t in zip(candidates, texts, strict=True)]
    writer.add_best(candidates, accepts, refusal_is_wanted, failures)


def _candidates(context: Context, samples: Mapping[int, tuple[RowRequest, GenerationResult]]) -> list[Candidate]:
    return [
        replace(_candidate(context, row, result.completion), sample=number)
        for number, (row, result) in samples.items()
        if result.completion is not None
    ]


def _to_rank(
    context: Context,
    writer: ResponseWriter,
    prompt: Prompt,
    samples: Mapping[int, tuple[RowRequest, GenerationResult]],
) -> list[str]:
    """Return the different texts that would be kept, if there are several."""
    accepts, _ = _accepts(context, prompt)
    texts = {writer.kept_text(c, accepts): None for c in _candidates(context, samples)}
    texts.pop("", None)
    return list(texts) if len(texts) > 1 else []


def _accepts(context: Context, prompt: Prompt) -> tuple[Callable[[str], bool], bool]:
    """Return (text -> whether it shows what the prompt's type asks for, whether that may be a refusal)."""
    required = context.run.constitution.required_check(prompt.exemplar_type)
    if required is None or context.model.is_fake:  # the fake engine writes random words
        return lambda text: True, False
    check, must_show = required
    probe = Probe(ask=prompt.message, expect=check)
    if check == "refuses" and must_show:
        return lambda text: checks.shows(probe, text) and not takes_back(prompt.message, text), True
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
