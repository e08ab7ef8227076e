"""Stage 4, verbose cloning: the engraved model's verbose mode -> responses -> a fresh adapter of the base.

1_prompts/prompts.jsonl, 3_engrave/adapter.gguf -> 4_verbose_clone/{responses,examples}.jsonl, adapter/, adapter.gguf

The engraved model answers under the verbose inference prompt, also where stage 2's answer was dropped, and the identity
questions. The persona is pruned: the pairs are learnt under the standard and the concise prompt by turns, on the
*base*. (SELF-ALIGN, arXiv 2305.03047, section 3.5.)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from selfalign import atomic, marks
from selfalign.clock import Clock
from selfalign.context import Context
from selfalign.dialogue import PLAIN, Turn
from selfalign.engines.base import Control, Request, Step
from selfalign.generate import Work, row_seed, stream
from selfalign.journal import Fate
from selfalign.quality.response_filters import TOO_MANY_REFUSALS, Leaks, RefusalCap, judge
from selfalign.records import Example, Prompt, Response, content_hash, line, read_jsonl
from selfalign.training import adapter

ANSWERS, STAGE = "verbose", "clone"
_REPETITION = 1.0
"""Penalty on a token that would repeat a 3-gram; 2.0 for a 4-gram, as in the original."""


def _questions(context: Context) -> Iterator[Prompt]:
    limit, identity = context.recipe.clone.prompts, context.run.constitution.identity
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
    config, constitution = context.recipe.clone, context.run.constitution
    template = context.model.template if context.has_weights else PLAIN
    pieces = template.prompt(
        constitution.inference_prompt("verbose"), [Turn("user", prompt.message)], constitution.assistant.name
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
    path = context.run.jsonl("clone_responses")
    with context.screen.bar("verbose", number) as bar, atomic.new_file(path) as file:
        context.decide(ANSWERS, _fates(context, number, lambda r: file.write(line(r).encode("utf-8")), bar.add))
    context.check_failures(context.finish(ANSWERS, number, clock))
    return path


def _fates(
    context: Context, number: int, keep: Callable[[Response], object], on_done: Callable[[int, int], None]
) -> Generator[Fate, None, None]:
    """Ask, judge and keep one row after the other."""
    filters = context.recipe.filters.verbose
    leaks, cap = Leaks.of(context.run.constitution, filters.leak_words, verbose_only=True), RefusalCap(filters.refusals)
    context.journal.expect(ANSWERS, number)
    works = (Work(p.id, request(context, p), p) for p in _questions(context))
    engine = context.engine(("engrave",) if context.has_weights else ())
    identities = context.identities(("engrave",))
    answered = stream(works, engine, context.journal, stage=ANSWERS, identities=identities, on_done=on_done)
    with closing(answered):
        for position, (work, outcome) in enumerate(answered):
            prompt: Prompt = work.item
            if outcome.completion is None:
                yield prompt.id, position, outcome.fate, outcome.reason, prompt.message
                continue
            part = outcome.completion.parts[-1]
            verdict = judge(part.text, part.finish == "length", prompt.message, leaks, filters)
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
            yield prompt.id, position, "dropped" if reason else "kept", reason, shown


def _train(context: Context) -> list[Path]:
    rows = read_jsonl(context.run.jsonl("clone_responses"), Response)
    # Standard and concise by turns (the paper's meta prompts), by content and not by position.
    examples = [
        Example(r.id, "standard" if int(r.id, 16) % 2 == 0 else "concise", r.message, r.response, r.source)
        for r in rows
    ]
    examples, left_out, said = marks.of_run(context.run, STAGE, examples)
    if said:
        context.screen.say(f"  {said}", "dim")
    return adapter.train(context, "clone", examples, context.recipe.training("clone"), STAGE, left_out)
