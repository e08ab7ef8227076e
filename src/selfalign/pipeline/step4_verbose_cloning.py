"""Stage 4, verbose cloning: the engraved model's verbose mode -> responses -> a fresh adapter of the base.

1_prompts/prompts.jsonl, 3_engrave/adapter.gguf -> 4_verbose_clone/{responses,examples}.jsonl, adapter/, adapter.gguf

The engraved model answers under the verbose system prompt, also where stage 2's answer was dropped, and the identity
questions. The persona is pruned: the pairs are learnt under the standard and the concise prompt by turns, on the
*base*. (SELF-ALIGN, arXiv 2305.03047, section 3.5.)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from selfalign.constitution.leaks import leaks_of
from selfalign.data.prompt_text import Control, Turn
from selfalign.data.records import Example, Prompt, Response, content_hash, line, read_jsonl
from selfalign.generation.engines.base import Request, Step
from selfalign.generation.loop import RowRequest, row_seed
from selfalign.pipeline import adapter_training
from selfalign.quality.response_filters import TOO_MANY_REFUSALS, RefusalCap, filter_response
from selfalign.run import marks
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.system import atomic
from selfalign.system.clock import Clock

ANSWERS, STAGE = "verbose_responses", "verbose_cloning"
_REPETITION = 1.0
"""Penalty on a token that would repeat a 3-gram; 2.0 for a 4-gram, as in the original."""


def _questions(context: Context) -> Iterator[Prompt]:
    limit, identity = context.recipe.verbose_cloning.prompts, context.run.constitution.identity
    # One question may have several answers to learn in stage 3; here it is asked once.
    questions = dict.fromkeys(pair.question for pair in identity)
    train = (p for p in context.prompts() if p.split == "train")
    for prompt in islice(train, limit):
        questions.pop(prompt.message, None)
        yield prompt
    for question in questions:
        yield Prompt(content_hash("identity", question), question, source="identity")


def request(context: Context, prompt: Prompt) -> Request:
    """The verbose persona, the user's message, the answer's cue."""
    config, constitution = context.recipe.verbose_cloning, context.run.constitution
    template = context.model.template
    pieces = template.prompt(
        constitution.system_prompt("verbose"), [Turn("user", prompt.message)], constitution.assistant.name
    )
    bias = ((Control(template.end), -config.end_penalty),) if config.end_penalty else ()
    sampling = replace(context.sampling(config), repetition=_REPETITION, bias=bias)
    seed = row_seed(context.recipe.seed, STAGE, prompt.id)
    return Request(pieces, (Step(sampling, stop=template.stops()),), seed, adapter="engrave")


def run(context: Context) -> list[Path]:
    """Let the engraved model answer, filter, and train the final adapter; returns the files."""
    return [_answer(context), *_train(context)]


def _answer(context: Context) -> Path:
    clock, number = Clock(), sum(1 for _ in _questions(context))
    path = context.run.jsonl("verbose_responses")
    with context.screen.bar("verbose", number) as bar, atomic.new_file(path) as file:
        context.decide(ANSWERS, _fates(context, number, lambda r: file.write(line(r).encode("utf-8")), bar.add))
    context.check_failures(context.finish(ANSWERS, number, clock))
    return path


def _fates(
    context: Context, number: int, keep: Callable[[Response], object], on_done: Callable[[int, int], None]
) -> Generator[RowOutcome, None, None]:
    """Ask, judge and keep one row after the other."""
    filters = context.recipe.filters.verbose
    leaks, cap = leaks_of(context.run.constitution, filters.leak_words, verbose_only=True), RefusalCap(filters.refusals)
    context.journal.expect(ANSWERS, number)
    requests = (RowRequest(p.id, request(context, p), p) for p in _questions(context))
    engine = context.journaled_engine(ANSWERS, on_done, ("engrave",))
    with closing(engine.stream(requests)) as results:
        for position, (row, outcome) in enumerate(results):
            prompt: Prompt = row.item
            if outcome.completion is None:
                yield RowOutcome(prompt.id, position, outcome.state, outcome.reason, prompt.message)
                continue
            part = outcome.completion.parts[-1]
            verdict = filter_response(part.text, part.finish == "length", prompt.message, leaks, filters)
            shown, reason = f"{prompt.message}\n{part.text.strip()}", verdict.reason or ""
            if not reason and (hit := context.benchmarks.find(prompt.message, verdict.text)):
                reason, shown = hit.reason, hit.beside(shown)
            if not reason and not cap.admits(verdict.text):
                reason = TOO_MANY_REFUSALS
            if not reason:
                kept = Response(
                    prompt.id,
                    prompt.instruction,
                    prompt.input,
                    verdict.text,
                    source=prompt.source,
                    question_type=prompt.question_type,
                    split=prompt.split,
                )
                keep(kept)
            yield RowOutcome(prompt.id, position, "dropped" if reason else "kept", reason, shown)


def _train(context: Context) -> list[Path]:
    rows = read_jsonl(context.run.jsonl("verbose_responses"), Response)
    # Standard and concise by turns (the paper's meta prompts), by content and not by position.
    examples = [
        Example(r.id, "standard" if int(r.id, 16) % 2 == 0 else "concise", r.message, r.response, r.source)
        for r in rows
    ]
    examples, left_out, said = marks.of_run(context.run, STAGE, examples)
    if said:
        context.screen.say(f"  {said}", "dim")
    return adapter_training.train(
        context, "verbose_cloning", examples, context.recipe.training("verbose_cloning"), STAGE, left_out
    )
