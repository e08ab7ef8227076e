"""Evaluate the base, engraved and final models on the held-out prompts (the stage `evaluate`).

1_prompts/prompts.jsonl, 2_self_align/responses.jsonl, both adapters -> 5_evaluation/answers.jsonl, scores.json

No model was trained on these prompts. The loss is computed on stage 2's kept held-out responses *without* the
constitution: the mean over rows of the mean per token. A response is run-on if the model writes neither its end token
nor the marker of the next turn within the limit; whether it wrote its end token is a measure of its own. The loss on
neutral texts, which have nothing to do with the constitution, shows whether training made the model worse at English.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from statistics import median
from typing import cast

from selfalign.data.prompt_text import Turn
from selfalign.data.records import Prompt, content_hash, write_jsonl
from selfalign.evaluation.comparison import paired
from selfalign.evaluation.models import run_models
from selfalign.evaluation.records import Answer, Score
from selfalign.evaluation.statistics import Interval, bootstrap_mean, wilson
from selfalign.generation import executors
from selfalign.generation.engines.base import Request, Step
from selfalign.generation.loop import RowRequest, row_seed
from selfalign.generation.scoring.base import LossScorer
from selfalign.model.dialogue import encode_example, encode_text
from selfalign.quality.rouge import count_words
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome
from selfalign.system import atomic
from selfalign.system.clock import Clock

STAGE = "evaluate"
LOSS = "loss without constitution"
NEUTRAL_LOSS = "loss on neutral texts"
"""A difference of 0.049 is one of 5 % in perplexity."""


def run(context: Context) -> list[Path]:
    """Answer and score the held-out prompts with every model; return the files."""
    clock = Clock()
    prompts = [p for p in context.prompts() if p.split == "heldout"][: context.recipe.evaluate.heldout_prompts]
    answers, outcomes = _answers(context, prompts)
    write_jsonl(context.run.jsonl("answers"), answers)
    scores = answer_scores(answers, context.recipe.evaluate.max_new_tokens, list(run_models(context)))
    if not context.model.is_fake:
        losses = _losses(context)
        scores = [s for measure, by_model in losses.items() for s in loss_scores(measure, by_model)] + scores
    atomic.write_text(context.run.scores, json.dumps([asdict(s) for s in scores], indent=1) + "\n")
    context.check_failures(context.write_ledger(STAGE, outcomes, len(prompts) * len(run_models(context)), clock))
    return [context.run.jsonl("answers"), context.run.scores]


def request(context: Context, prompt: Prompt, adapter: str | None) -> Request:
    """Return the request for a prompt under the standard system prompt, to the base (None) or a stage's adapter."""
    config, constitution = context.recipe.evaluate, context.run.constitution
    template = context.model.template
    # The response ends where the model begins the user's next turn.
    step = Step(replace(context.sampling(config), repetition=config.repetition), stop=template.stops())
    pieces = template.prompt(
        constitution.system_prompt("standard"), [Turn("user", prompt.message)], constitution.assistant.name
    )
    return Request(pieces, (step,), row_seed(context.recipe.seed, STAGE, prompt.id), adapter)


def _answers(context: Context, prompts: list[Prompt]) -> tuple[list[Answer], list[RowOutcome]]:
    models = run_models(context)
    adapters = tuple(s for s in models.values() if s)
    # Model by model: a slot whose adapter changes must compute its prompt anew.
    pairs = [(name, adapter, prompt) for name, adapter in models.items() for prompt in prompts]
    requests = [
        RowRequest(content_hash(prompt.id, name), request(context, prompt, adapter)) for name, adapter, prompt in pairs
    ]
    with context.screen.bar("answers", len(requests), STAGE) as bar:
        results = context.journaled_engine(STAGE, bar.add, adapters).generate(requests)
    answers: list[Answer] = []
    outcomes: list[RowOutcome] = []
    for position, ((name, _, prompt), result) in enumerate(zip(pairs, results, strict=True)):
        outcomes.append(RowOutcome(result.row_id, position, result.state, result.reason, prompt.message))
        if result.completion is not None:
            part = result.completion.parts[0]
            text = part.text.strip()
            ended, own_end = part.finish != "length", part.finish == "end"
            answers.append(Answer(prompt.id, prompt.message, name, text, ended, count_words(text), own_end))
    return answers, outcomes


def answer_scores(answers: Sequence[Answer], limit: int, names: Sequence[str]) -> list[Score]:
    """Return run-on rate, empty answers and length of each model; the final model is compared with the engraved one."""
    by_model = {name: rows for name in names if (rows := [a for a in answers if a.model == name])}
    engraved = {a.id: a for a in by_model.get("engraved", [])}
    pairs = [(a, engraved[a.id]) for a in by_model.get("final", []) if a.id in engraved]
    rates: dict[str, Callable[[Answer], bool]] = {
        f"run-on within {limit} tokens": lambda a: not a.ended,
        "empty answers": lambda a: not a.answer,
    }
    if any(a.own_end is not None for a in answers):
        rates["ended by itself"] = lambda a: bool(a.own_end)
    scores = []
    for measure, shows in rates.items():
        for name, rows in by_model.items():
            score = _score(measure, name, len(rows), wilson(sum(map(shows, rows)), len(rows)))
            if name == "final" and pairs:
                score = paired(score, "engraved", [(shows(a), shows(e)) for a, e in pairs], exact=True)
            scores.append(score)
    scores += [
        Score("heldout", "median words", name, "standard", len(rows), median([a.words for a in rows]))
        for name, rows in by_model.items()
    ]
    if pairs:
        mean = sum(a.words for a in by_model["final"]) / len(by_model["final"])
        score = Score("heldout", "mean words", "final", "standard", len(pairs), mean)
        scores.append(paired(score, "engraved", [(a.words, e.words) for a, e in pairs]))
    return scores


def _score(measure: str, name: str, n: int, interval: Interval) -> Score:
    return Score("heldout", measure, name, "standard", n, interval.value, interval.low, interval.high)


def neutral_texts() -> list[str]:
    """Return the neutral texts: short English passages of our own that no model is trained on."""
    text = (resources.files("selfalign") / "assets/neutral_texts.txt").read_text("utf-8")
    return text.strip().split("\n\n")


def _losses(context: Context) -> dict[str, dict[str, list[float]]]:
    """Return measure -> model -> the mean loss per token of each held-out response or neutral text, in nats."""
    rows = [r for r in context.responses() if r.split == "heldout"]
    if not rows:
        return {}
    context.release_engine()
    tokenizer, template = context.model.tokenizer(), context.model.template
    constitution = context.run.constitution
    system, label = constitution.system_prompt("standard"), constitution.assistant.name
    encoded = [encode_example(tokenizer, template, system, r.message, r.response, label) for r in rows]
    texts = neutral_texts() if constitution.language == "en" else []
    encoded += [encode_text(tokenizer, text) for text in texts]
    models = run_models(context)
    adapters, recipe = {s: context.adapter(s) for s in models.values() if s}, context.recipe
    say = context.screen.say
    scorer = cast(
        LossScorer, executors.scorer(recipe.executor, recipe.engine, context.model, adapters, "torch", say=say)
    )
    try:
        means = {name: [sum(r) / len(r) for r in scorer.score(encoded, stage)] for name, stage in models.items()}
    finally:
        scorer.close()
    losses = {LOSS: {name: values[: len(rows)] for name, values in means.items()}}
    return losses | ({NEUTRAL_LOSS: {name: values[len(rows) :] for name, values in means.items()}} if texts else {})


def loss_scores(measure: str, losses: dict[str, list[float]]) -> list[Score]:
    """Return the mean loss of each model, compared with the base; the final model also with the engraved one."""
    scores = []
    for name, values in losses.items():
        score = _score(measure, name, len(values), bootstrap_mean(values))
        rivals = [r for r in ("base", "engraved") if name != "base" and (r == "base" or name == "final")]
        for rival in rivals:
            if rival in losses:
                scores.append(paired(score, rival, list(zip(values, losses[rival], strict=True))))
        if not rivals:
            scores.append(score)
    return scores
