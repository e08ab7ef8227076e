"""Questions put to every compared model, with the same seeds: journal -> engine -> journal, a stage's ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import Turn
from selfalign.data.records import content_hash
from selfalign.evaluation.forms import opening
from selfalign.evaluation.speakers import Speaker
from selfalign.generation import guided
from selfalign.generation.engines.base import Completion, Request, Sampling, Step
from selfalign.generation.loop import JournaledEngine, RowRequest, row_seed
from selfalign.run.journal import Journal
from selfalign.run.ledger import RowOutcome
from selfalign.run.recipe import Recipe
from selfalign.system.clock import Clock
from selfalign.system.console import Screen


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked: a content hash that names it, and the user's words."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered."""

    speaker: Speaker
    position: int
    """Which of the questions."""
    text: str
    ended: bool
    """By its own end token, within the limit."""


def ask(
    stage: str,
    journal: Journal,
    screen: Screen,
    speakers: Sequence[Speaker],
    questions: Sequence[Asked],
    recipe: Recipe,
    constitution: Constitution,
    max_new_tokens: int,
) -> list[Reply]:
    """Let every model answer every question; what the journal holds is not asked again.

    Questions that a model has no answer to are said; in its scores it has a smaller n.

    The prompted base answers as in stage 2: thoughts first, which are no part of the reply.
    """
    clock = Clock()
    replies: list[Reply] = []
    outcomes: list[RowOutcome] = []
    with screen.bar(stage, len(speakers) * len(questions)) as bar:
        # Model by model: a slot whose adapter or prefix changes must compute its prompt anew.
        for number, speaker in enumerate(speakers):
            requests = [_row_request(stage, speaker, q, recipe, constitution, max_new_tokens) for q in questions]
            identities = {speaker.adapter: speaker.entrant.identity}
            engine = JournaledEngine(speaker.engine(), journal, stage, identities, bar.add)
            if requests and speaker.entrant.prompt == "constitution":
                engine.engine.warm_prefix(requests[0].request.prompt[:2], speaker.adapter)
            results = engine.generate(requests)
            for position, (question, request, result) in enumerate(zip(questions, requests, results, strict=True)):
                row_id = content_hash(request.row_id, position)
                outcomes.append(RowOutcome(row_id, len(outcomes), result.state, result.reason, question.text))
                if result.completion is not None:
                    text, ended = _said(speaker, request.request, result.completion, constitution)
                    replies.append(Reply(speaker, position, text, ended))
            if lost := [r for r in results if r.completion is None]:
                who = f"{speaker.entrant.name}: {len(lost)} of {len(requests)} without an answer"
                screen.say(f"  {stage}: {who} ({lost[0].reason}); the same command asks them again", "yellow")
            if not any(s.close == speaker.close for s in speakers[number + 1 :]):
                speaker.close()  # one model in memory at a time
    journal.restart(stage)
    journal.decide(stage, outcomes)
    journal.finish(stage, len(outcomes), clock.seconds())
    return replies


def _row_request(
    stage: str, speaker: Speaker, question: Asked, recipe: Recipe, constitution: Constitution, max_new_tokens: int
) -> RowRequest:
    seed = row_seed(recipe.seed, stage, question.text)
    config = recipe.evaluate
    limit = min(config.max_new_tokens, max_new_tokens)
    sampling = Sampling(config.temperature, config.top_p, limit, recipe.engine.top_k, repetition=config.repetition)
    if speaker.entrant.prompt == "constitution":
        form = recipe.align.model_copy(update={"repetition": config.repetition, "hints": False})
        thoughts = form.max_thought_tokens if form.form == "paper" else 0
        asked = guided.Form(constitution, form, replace(sampling, max_new_tokens=limit + thoughts))
        request = replace(asked.request(question.text, seed), adapter=speaker.adapter)
    else:
        template = speaker.template()
        pieces = opening(template, constitution, speaker.entrant.prompt, [Turn("user", question.text)])
        request = Request(pieces, (Step(sampling, stop=template.stops()),), seed, speaker.adapter)
    return RowRequest(content_hash(question.id, speaker.entrant.name), request)


def _said(speaker: Speaker, request: Request, completion: Completion, constitution: Constitution) -> tuple[str, bool]:
    if speaker.entrant.prompt == "constitution":
        _, text, cut = guided.split(completion, request, constitution.assistant.name)
    else:
        text, cut = completion.parts[0].text, completion.parts[0].finish != "end"
    return text.strip(), not cut
