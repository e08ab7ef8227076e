"""Let every model under comparison answer the messages of an open-ended task, with the same seeds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import Turn
from selfalign.data.records import content_hash
from selfalign.evaluation.benchmarks import Benchmark
from selfalign.evaluation.judges import Judge
from selfalign.evaluation.models import ComparedModel, EngineGroup
from selfalign.evaluation.prompting import opening
from selfalign.evaluation.results import ResultStore, Row, Task
from selfalign.generation import guided
from selfalign.generation.engines.base import Completion, Request, Sampling, Step
from selfalign.generation.loop import JournaledEngine, RowRequest, row_seed
from selfalign.model.dialogue import Template
from selfalign.run.journal import Journal
from selfalign.run.ledger import RowOutcome
from selfalign.run.recipe import Recipe
from selfalign.system.console import Screen


@dataclass(frozen=True, slots=True)
class Message:
    """A user's message, with the content hash that identifies it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """A model's response to a message."""

    model: ComparedModel
    position: int
    """The index of the message."""
    text: str
    ended: bool
    """Whether the response ended within the limit, by the end token or by the marker of the next turn."""
    own_end: bool
    """Whether the model wrote its end token."""


class OpenEndedTask(Task[Row]):
    """A task whose items are messages, which the models answer in their own words.

    Its rows are written before a judge reads them, so that a failing judge loses no answer.
    """

    several_sources = True
    max_new_tokens: int | None = None
    """The limit per response, at most the recipe's `evaluate.max_new_tokens`."""
    judged = True
    """Whether a judge can judge the rows."""

    @abstractmethod
    def messages(self, benchmark: Benchmark, screen: Screen) -> list[Message]:
        """Return the message of each item."""

    @abstractmethod
    def rows(self, benchmark: Benchmark, responses: Sequence[ModelResponse], constitution: Constitution) -> list[Row]:
        """Return the rows to publish."""

    def judge(self, store: ResultStore, benchmark: Benchmark, judge: Judge) -> None:
        """Let the judge judge the rows in the store."""


def ask(
    stage: str,
    journal: Journal,
    screen: Screen,
    groups: Sequence[EngineGroup],
    messages: Sequence[Message],
    recipe: Recipe,
    constitution: Constitution,
    max_new_tokens: int,
    seed_stage: str = "",
) -> tuple[list[ModelResponse], list[RowOutcome]]:
    """Let every model answer every message, and return (responses, an outcome for each request).

    Responses in the journal are not generated again. The prompted base answers as in stage 2: it writes its internal
    thoughts first, which are not part of the response. A model that fails on some messages is reported, and its scores
    have a smaller n.

    Args:
        seed_stage: the stage whose seeds are used; this stage by default.
    """
    responses: list[ModelResponse] = []
    outcomes: list[RowOutcome] = []
    with screen.bar(stage, sum(len(g.models) for g in groups) * len(messages), stage) as bar:
        # Model by model, because a slot must compute the prompt again when its adapter or prefix changes.
        for group, model in [(g, m) for g in groups for m in g.models]:
            template = group.template()
            requests = [
                _row_request(seed_stage or stage, model, template, m, recipe, constitution, max_new_tokens)
                for m in messages
            ]
            engine = group.backend()
            if requests and model.prompt == "constitution":
                engine.warm_prefix(requests[0].request.prompt[:2], model.adapter)
            identities = {model.adapter: model.identity}
            results = JournaledEngine(engine, journal, stage, identities, bar.add).generate(requests)
            failed = []
            for position, (message, request, result) in enumerate(zip(messages, requests, results, strict=True)):
                row_id = content_hash(request.row_id, position)
                outcomes.append(RowOutcome(row_id, len(outcomes), result.state, result.reason, message.text))
                if result.completion is None:
                    failed.append(result.reason)
                else:
                    text = _response(model, request.request, result.completion, constitution)
                    finish = result.completion.parts[-1].finish
                    responses.append(ModelResponse(model, position, text, finish != "length", finish == "end"))
                    bar.sample(message.text, text)
            if failed:
                count = f"{model.name} failed on {len(failed)} of {len(requests)} messages"
                screen.say(f"  {stage}: {count} ({failed[0]}); run the same command to retry them", "yellow")
            if model is group.models[-1]:
                group.close()  # only one model is in memory at a time
    return responses, outcomes


def _row_request(
    stage: str,
    model: ComparedModel,
    template: Template,
    message: Message,
    recipe: Recipe,
    constitution: Constitution,
    max_new_tokens: int,
) -> RowRequest:
    seed = row_seed(recipe.seed, stage, message.text)
    config, top_k = recipe.evaluate, recipe.engine.top_k
    sampling = Sampling(config.temperature, config.top_p, max_new_tokens, top_k, repetition=config.repetition)
    if model.prompt == "constitution":
        form = recipe.align.model_copy(update={"repetition": config.repetition, "hints": False, "exemplars": "fixed"})
        thoughts = form.max_thought_tokens if form.form == "paper" else 0
        stage2 = guided.Form(constitution, form, replace(sampling, max_new_tokens=max_new_tokens + thoughts))
        request = replace(stage2.request(message.text, seed), adapter=model.adapter)
    else:
        pieces = opening(template, constitution, model.prompt, [Turn("user", message.text)])
        request = Request(pieces, (Step(sampling, stop=template.stops()),), seed, model.adapter)
    return RowRequest(content_hash(message.id, model.name), request)


def _response(model: ComparedModel, request: Request, completion: Completion, constitution: Constitution) -> str:
    if model.prompt != "constitution":
        return completion.parts[0].text.strip()
    return guided.split(completion, request, constitution.assistant.name)[1].strip()
