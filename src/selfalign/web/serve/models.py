"""Define the models that clients can request, and turn requests into jobs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from selfalign.data.prompt_text import BOS
from selfalign.errors import UserError
from selfalign.evaluation.models import run_models
from selfalign.evaluation.prompting import check_system_prompt, opening
from selfalign.generation import engines
from selfalign.generation.engines.base import Engine, Request, Sampling, Step
from selfalign.generation.guided import Form
from selfalign.model.dialogue import Template
from selfalign.run.context import Context
from selfalign.web.guard import RequestError
from selfalign.web.serve.job_queue import Job
from selfalign.web.serve.openai_api import STYLES, ChatRequest, CompletionRequest, GenerationRequest, bad_request

PROMPTED = "prompted-base"
DEFAULT_TOKENS = 512
_MAX_SERVER_STOPS = 4
"""Maximum stop strings of a request to an external server with OpenAI's API."""

DESCRIPTIONS = {
    "base": "before any training",
    PROMPTED: "the base model with the whole constitution in its prompt",
    "engraved": "after principle engraving (stage 3)",
    "final": "after verbose cloning (stage 4)",
}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model id that clients may request."""

    name: str
    adapter: str | None
    created: int
    """Seconds since 1970."""


class ServedModels:
    """The models of a run, and the jobs that answer requests to them.

    Args:
        style: the system prompt of requests that set none.

    Raises:
        UserError: the style does not exist.
    """

    def __init__(self, context: Context, style: str = "standard", max_tokens: int = DEFAULT_TOKENS) -> None:
        self.context = context
        self.style = check_system_prompt(style)
        self.tokens = min(DEFAULT_TOKENS, max_tokens)
        """Maximum tokens of a response if the request sets no limit."""
        self.constitution = context.run.constitution
        self.template: Template = context.model.template
        self.models = {m.name: m for m in _models(context)}
        self._settings = context.recipe.evaluate

    @property
    def default(self) -> str:
        """The name of the model that was trained last."""
        return next(reversed(self.models))

    def adapters(self) -> tuple[str, ...]:
        """Return the stages whose adapters the models need."""
        return tuple(m.adapter for m in self.models.values() if m.adapter)

    def start(self, slots: int) -> Engine:
        """Start the engine for all models, and warm its prefix cache with the default system prompt."""
        context = self.context
        served = engines.kind(context.recipe.engine) == "openai"
        folders = {a: context.run.adapter(a) if served else context.adapter(a) for a in self.adapters()}
        engine = engines.start(context.recipe.engine, context.model, folders, slots, context.screen.say)
        if not self.template.control:
            lead = opening(self.template, self.constitution, self.style, [])[:2]
            engine.warm_prefix(lead, self.models[self.default].adapter)
        return engine

    def about(self) -> dict[str, Any]:
        """Return what the chat page shows about the run."""
        system_prompt = self.constitution.system_prompt
        return {
            "run": self.context.run.path.resolve().name,
            "assistant": self.constitution.assistant.name,
            "base": self.context.recipe.model,
            "fake": self.context.model.is_fake,
            "models": [{"id": name, "about": DESCRIPTIONS[name]} for name in self.models],
            "default": self.default,
            "style": self.style,
            "styles": {s: system_prompt("standard" if s == "two-shot" else s) for s in STYLES},
            "two_shot": [[shot.user, shot.answer] for shot in self.constitution.prompts.two_shot],
            "defaults": {
                "temperature": self._settings.temperature,
                "top_p": self._settings.top_p,
                "max_tokens": self.tokens,
            },
        }

    # -- requests ----------------------------------------------------------------------------------------------------

    def chat_jobs(self, request: ChatRequest) -> list[Job]:
        """Return a job for each choice of a chat request.

        Raises:
            RequestError: the model does not exist, or cannot answer such a dialogue.
        """
        model, name = self.model(request.model), self.constitution.assistant.name
        forged = any(self.template.forged(turn.text, name) for turn in request.turns)
        if model.name == PROMPTED:
            requests = self._prompted_requests(request)
        else:
            if request.system is not None:
                pieces = self.template.prompt(request.system, request.turns, name)
            else:
                pieces = opening(self.template, self.constitution, request.style or self.style, request.turns)
            sampling = self._sampling(request, self._settings.repetition)
            step = Step(sampling, stop=self._stops(request, self.template.stops()))
            requests = [Request(pieces, (step,), seed, model.adapter) for seed in _seeds(request)]
        return [Job(engine_request, forged=forged) for engine_request in requests]

    def completion_jobs(self, request: CompletionRequest) -> list[Job]:
        """Return a job for each choice of a completion request, prompt by prompt. Raises the errors of `chat_jobs`."""
        model = self.model(request.model)
        if model.name == PROMPTED:
            raise bad_request("prompted-base answers chat requests only; use base", "model")
        step = Step(self._sampling(request, 0.0), stop=tuple(request.stop))
        return [
            Job(Request(tuple(p for p in (BOS, prompt) if p), (step,), seed, model.adapter), strip=False)
            for prompt in request.prompt
            for seed in _seeds(request)
        ]

    def model(self, name: str) -> ServedModel:
        """Return the model with that id.

        Raises:
            RequestError: it does not exist.
        """
        if name not in self.models:
            known = ", ".join(self.models)
            message = f"the model {name[:100]!r} does not exist; this run has {known}"
            raise RequestError(404, message, param="model", code="model_not_found")
        return self.models[name]

    def _prompted_requests(self, request: ChatRequest) -> list[Request]:
        if request.system is not None or request.style is not None:
            raise bad_request(
                "prompted-base always gets the constitution: omit the system message and style", "messages"
            )
        if len(request.turns) > 1:
            raise bad_request("prompted-base answers a single message, as in stage 2", "messages")
        settings = self.context.recipe.align.model_copy(update={"form": "guided", "exemplars": "fixed"})
        form = Form(self.constitution, settings, self._sampling(request, 0.0))
        requests = []
        for seed in _seeds(request):
            guided = form.request(request.turns[0].text, seed)
            *thoughts, last = guided.steps
            last = replace(last, stop=self._stops(request, last.stop))
            requests.append(Request(guided.prompt, (*thoughts, last), seed))
        return requests

    def _sampling(self, request: GenerationRequest, repetition: float) -> Sampling:
        settings = self._settings
        return Sampling(
            settings.temperature if request.temperature is None else request.temperature,
            settings.top_p if request.top_p is None else request.top_p,
            request.max_tokens or self.tokens,
            self.context.recipe.engine.top_k if request.top_k is None else max(0, request.top_k),
            repetition=repetition,
        )

    def _stops(self, request: GenerationRequest, own: tuple[str, ...]) -> tuple[str, ...]:
        """Return the template's stop strings followed by those of the request."""
        stops = tuple(dict.fromkeys((*own, *request.stop)))
        if len(stops) > _MAX_SERVER_STOPS and engines.kind(self.context.recipe.engine) == "openai":
            remaining = _MAX_SERVER_STOPS - len(own)
            raise bad_request(f"the engine is an external server: stop may have at most {remaining} strings", "stop")
        return stops


def _models(context: Context) -> list[ServedModel]:
    """Return the base model, the prompted base and the trained models, in this order."""
    served = context.recipe.engine.served if engines.kind(context.recipe.engine) == "openai" else None
    offered = []
    for name, adapter in run_models(context).items():
        if served is not None and (adapter or "base") not in served:
            continue
        file = context.run.adapter_gguf(adapter) if adapter else context.run.path / "recipe.yaml"
        created = int((file if file.exists() else context.run.path / "recipe.yaml").stat().st_mtime)
        offered.append(ServedModel(name, adapter, created))
        if name == "base":
            offered.append(ServedModel(PROMPTED, None, created))
    if not offered:
        raise UserError("the recipe names no model of the server: create the run with --set engine.served.base=ID")
    return offered


def _seeds(request: GenerationRequest) -> list[int]:
    first = secrets.randbits(31) if request.seed is None else request.seed
    # llama.cpp draws a random seed for 2**32 - 1.
    return [(first + number) % (2**32 - 1) for number in range(request.n)]
