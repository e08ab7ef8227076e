"""Stage 4, verbose cloning: the engraved model's verbose mode -> responses -> a new adapter of the base.

1_prompts/prompts.jsonl, 3_engrave/{adapter.gguf,examples.jsonl}
  -> 4_verbose_clone/{responses,examples}.jsonl, adapter/, adapter.gguf

The engraved model responds under the verbose system prompt to the training prompts, including those whose response
stage 2 dropped. A new adapter of the *base* is trained on the pairs under the standard and the concise system prompt,
without the verbose one. (SELF-ALIGN, arXiv 2305.03047, section 3.5.)

A small engraved model answers identity questions wrongly, and its long responses lose refusals and admissions of
ignorance. With `verbose_cloning.replay` above 0 it is therefore not asked for these: the constitution's identity pairs
and stage 2's responses to prompts of a type with a check are trained on again. With 0, as in the paper, all examples
are the engraved model's own responses, those to the identity questions included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from selfalign.constitution.leaks import leaks_of
from selfalign.data.prompt_text import Control, Turn
from selfalign.data.records import Example, Prompt, Response, content_hash, read_jsonl
from selfalign.generation.engines.base import Request, Step
from selfalign.generation.loop import RowRequest, row_seed
from selfalign.pipeline import adapter_training
from selfalign.pipeline.responses import ResponseWriter, response_to
from selfalign.quality.response_filters import ResponseJudge
from selfalign.run.context import Context
from selfalign.run.ledger import not_judged_note
from selfalign.system import atomic
from selfalign.system.clock import Clock

RESPONSES: Final = "verbose_responses"
STAGE: Final = "verbose_cloning"
_REPETITION = 1.0
"""Penalty on a token that would repeat a 3-gram; 2.0 for a 4-gram, as in the original."""


def _prompts(context: Context) -> Iterator[Prompt]:
    """Yield the prompts that the engraved model responds to."""
    config, constitution = context.recipe.verbose_cloning, context.run.constitution
    train = (p for p in context.prompts() if p.split == "train")
    if config.replay:
        yield from islice((p for p in train if constitution.required_check(p.exemplar_type) is None), config.prompts)
        return
    # A question may have several responses in stage 3; here it is a prompt only once.
    questions = dict.fromkeys(pair.question for pair in constitution.identity)
    for prompt in islice(train, config.prompts):
        questions.pop(prompt.message, None)
        yield prompt
    for question in questions:
        yield Prompt(content_hash("identity", question), question, source="identity")


def request(context: Context, prompt: Prompt) -> Request:
    """Return the request for one prompt: the verbose system prompt, the user's message, the cue of the response."""
    config, constitution = context.recipe.verbose_cloning, context.run.constitution
    template = context.model.template
    pieces = template.prompt(
        constitution.system_prompt("verbose"), [Turn("user", prompt.message)], constitution.assistant.name
    )
    bias = ((Control(template.end), -config.end_penalty),) if config.end_penalty else ()
    sampling = replace(context.sampling(config), repetition=_REPETITION, bias=bias)
    seed = row_seed(context.recipe.seed, STAGE, prompt.id)
    return Request(pieces, (Step(sampling, stop=template.stops()),), seed, adapter="engrave")


def run(context: Context, adapter: Path | None = None) -> list[Path]:
    """Let the engraved model respond, filter the responses, and train the final adapter; return the files.

    Args:
        adapter: an adapter that was trained elsewhere, to publish instead of training.
    """
    return [_respond(context), *_train(context, adapter)]


def _respond(context: Context) -> Path:
    clock, rows_in = Clock(), sum(1 for _ in _prompts(context))
    path, filters = context.run.jsonl("verbose_responses"), context.recipe.filters.verbose
    leaks = leaks_of(context.run.constitution, filters.leak_words, verbose_only=True)
    with (
        context.screen.bar("verbose responses", rows_in, RESPONSES) as bar,
        atomic.new_file(path) as file,
        context.journal.ledger(RESPONSES, rows_in) as ledger,
    ):
        writer = ResponseWriter(file, ledger, ResponseJudge(filters, leaks, context.benchmarks), bar.sample)
        requests = (RowRequest(p.id, request(context, p), p) for p in _prompts(context))
        with closing(context.journaled_engine(RESPONSES, bar.add, ("engrave",)).stream(requests)) as results:
            for row, result in results:
                if result.completion is None:
                    writer.add_failures(row.item, {0: result})
                    continue
                part = result.completion.parts[-1]
                required = context.run.constitution.required_check(row.item.exemplar_type)
                response = response_to(row.item, part.text.strip())
                writer.add(response, part.finish == "length", refusal_is_wanted=required is not None and required[1])
    context.check_failures(context.finish(RESPONSES, rows_in, clock, not_judged_note(writer.not_judged)))
    return path


def _train(context: Context, adapter: Path | None) -> list[Path]:
    responses = read_jsonl(context.run.jsonl("verbose_responses"), Response)
    # The standard and the concise system prompt alternate (the paper's meta prompts), by content and not by position.
    examples = [
        Example(r.id, "standard" if int(r.id, 16) % 2 == 0 else "concise", r.message, r.response, r.source)
        for r in responses
    ]
    examples += _replayed(context, {r.id for r in responses})
    return adapter_training.run(context, STAGE, examples, adapter=adapter)


def _replayed(context: Context, responded: set[str]) -> list[Example]:
    """Return the engraving examples to train on again.

    Args:
        responded: ids of the prompts with a verbose response, which is trained on instead.
    """
    share, constitution = context.recipe.verbose_cloning.replay, context.run.constitution
    if not share:
        return []
    kept = {p.id for p in context.prompts() if constitution.required_check(p.exemplar_type) is not None}
    examples = []
    for example in read_jsonl(context.run.jsonl("engrave_examples"), Example):
        is_other = example.source != "identity" and example.id not in kept
        # A hash of the id chooses, so that the choice does not depend on the other rows.
        if is_other and (example.id in responded or int(content_hash("replay", example.id), 16) % 1000 >= 1000 * share):
            continue
        examples.append(replace(example, id=content_hash("replay", example.id)))
    return examples
