"""Stage 4, verbose cloning: the engraved model's verbose mode -> responses -> a fresh adapter of the base.

1_prompts/prompts.jsonl, 3_engrave/adapter.gguf -> 4_verbose_clone/{responses,examples}.jsonl, adapter/, adapter.gguf

The engraved model answers under the verbose inference prompt, also where stage 2's answer was dropped, and the identity
questions. The persona is pruned: the pairs are learnt under the standard and the concise prompt by turns, on the
*base*. (SELF-ALIGN, arXiv 2305.03047, section 3.5.)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from selfalign.context import Context, Fate
from selfalign.dialogue import PLAIN, Turn
from selfalign.engines.base import Control, Request, Step
from selfalign.generate import Work, generate, row_seed
from selfalign.journal import Clock
from selfalign.quality.response_filters import Leaks, judge_verbose
from selfalign.records import Example, Prompt, Response, content_hash, read_jsonl, write_jsonl
from selfalign.training import adapter

ANSWERS, STAGE = "verbose", "clone"
_REPETITION = 1.0
"""Penalty on a token that would repeat a 3-gram; 2.0 for a 4-gram, as in the original."""


def _questions(context: Context) -> list[Prompt]:
    prompts, _ = context.prompts()
    chosen = [p for p in prompts if p.split == "train"]
    if context.recipe.clone.prompts is not None:
        chosen = chosen[: context.recipe.clone.prompts]
    known = {p.message for p in chosen}
    # One question may have several answers to learn in stage 3; here it is asked once.
    questions = dict.fromkeys(pair.question for pair in context.run.constitution.identity)
    identity = [Prompt(content_hash("identity", q), q, source="identity") for q in questions]
    return chosen + [p for p in identity if p.message not in known]


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
    clock = Clock()
    prompts = _questions(context)
    works = [Work(p.id, request(context, p)) for p in prompts]
    engine = context.engine(("engrave",) if context.has_weights else ())
    with context.screen.bar("verbose", len(works)) as bar:
        outcomes = generate(
            works, engine, context.journal, stage=ANSWERS, identities=context.identities(("engrave",)), on_done=bar.add
        )
    leaks = Leaks.of(context.run.constitution, verbose_only=True)
    fates: list[Fate] = []
    kept: list[Response] = []
    for position, (prompt, outcome) in enumerate(zip(prompts, outcomes, strict=True)):
        if outcome.completion is None:
            fates.append((prompt.id, position, outcome.fate, outcome.reason, prompt.message))
            continue
        part = outcome.completion.parts[-1]
        verdict = judge_verbose(part.text, part.finish == "length", prompt.message, leaks, context.recipe.filters)
        shown = f"{prompt.message}\n{part.text.strip()}"
        fates.append((prompt.id, position, "dropped" if verdict.reason else "kept", verdict.reason or "", shown))
        if not verdict.reason:
            kept.append(
                Response(
                    prompt.id,
                    prompt.instruction,
                    prompt.input,
                    verdict.text,
                    source=prompt.source,
                    question_type=prompt.question_type,
                    split=prompt.split,
                )
            )
    path = context.run.jsonl("clone_responses")
    write_jsonl(path, kept)
    context.check_failures(context.settle(ANSWERS, fates, len(prompts), clock))
    return path


def _train(context: Context) -> list[Path]:
    config = context.recipe.clone
    rows = read_jsonl(context.run.jsonl("clone_responses"), Response)
    # Standard and concise by turns (the paper's meta prompts), by content and not by position.
    examples = [
        Example(r.id, "standard" if int(r.id, 16) % 2 == 0 else "concise", r.message, r.response, r.source)
        for r in rows
    ]
    training = context.recipe.engrave.model_copy(
        update={
            "max_length": config.max_length,
            "learning_rate": config.learning_rate or context.recipe.engrave.learning_rate,
            "epochs": config.epochs or context.recipe.engrave.epochs,
        }
    )
    return adapter.train(context, "clone", examples, training, STAGE, [])
