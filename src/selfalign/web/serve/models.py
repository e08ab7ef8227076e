"""A run's models as a server offers them: their ids, prompts and sampling."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from selfalign.data.prompt_text import BOS, Pieces, Turn
from selfalign.errors import UserError
from selfalign.evaluation.heldout import models
from selfalign.generation import engines
from selfalign.generation.engines.base import Engine, Request, Sampling, Step
from selfalign.generation.guided import Form
from selfalign.model.dialogue import PLAIN, Template
from selfalign.run.context import Context
from selfalign.web.guard import Refused
from selfalign.web.serve.job_queue import Job
from selfalign.web.serve.openai_request import STYLES, Chat, Options, Text

PROMPTED = "prompted-base"
DEFAULT_TOKENS = 512
_FOREIGN_STOPS = 4

ABOUT = {
    "base": "before any training",
    PROMPTED: "the base with the whole constitution in its prompt",
    "engraved": "the constitution engraved into the weights",
    "final": "engraved, then verbose cloning",
}


@dataclass(frozen=True, slots=True)
class Model:
    """One model id."""

    name: str
    adapter: str | None
    created: int
    """Seconds since 1970."""


class Served:
    """What the server knows of its run.

    Args:
        style: which system prompt stands before a dialogue that brings none of its own.
        max_tokens: the most that an answer may have.

    Raises:
        UserError: the style is not known.
    """

    def __init__(self, context: Context, style: str = "standard", max_tokens: int = DEFAULT_TOKENS) -> None:
        if style not in STYLES:
            raise UserError(f"--style {style!r} is not known; known are {', '.join(STYLES)}")
        self.context = context
        self.style = style
        self.tokens = min(DEFAULT_TOKENS, max_tokens)
        """Of an answer where the request does not say."""
        self.constitution = context.run.constitution
        self.template: Template = context.model.template if context.has_weights else PLAIN
        self.models = {m.name: m for m in _models(context)}
        self._settings = context.recipe.evaluate

    @property
    def default(self) -> str:
        """The model that was trained last."""
        return next(reversed(self.models))

    def adapters(self) -> tuple[str, ...]:
        """The stages whose adapters are needed."""
        return tuple(m.adapter for m in self.models.values() if m.adapter)

    def start(self, slots: int) -> Engine:
        """The engine on which all models run, with the usual prompt computed."""
        context = self.context
        here = context.has_weights and engines.kind(context.recipe.engine) != "openai"
        folders = {a: context.adapter(a) if here else context.run.adapter(a) for a in self.adapters()}
        base = context.model if context.has_weights else None
        engine = engines.start(context.recipe.engine, base, folders, slots, context.screen.say)
        if not self.template.control:
            lead = self.template.prompt(*self._opening(None, None), self.constitution.assistant.name)[:2]
            engine.warm_prefix(lead, self.models[self.default].adapter)
        return engine

    def about(self) -> dict[str, Any]:
        """What the chat page shows of the run."""
        prompts = {s: self._opening(None, s)[0] for s in STYLES}
        return {
            "run": self.context.run.path.resolve().name,
            "assistant": self.constitution.assistant.name,
            "base": self.context.recipe.model,
            "fake": not self.context.has_weights,
            "models": [{"id": name, "about": ABOUT[name]} for name in self.models],
            "default": self.default,
            "style": self.style,
            "styles": prompts,
            "two_shot": [[shot.user, shot.answer] for shot in self.constitution.prompts.two_shot],
            "defaults": {
                "temperature": self._settings.temperature,
                "top_p": self._settings.top_p,
                "max_tokens": self.tokens,
            },
        }

    # -- requests ----------------------------------------------------------------------------------------------------

    def chat_jobs(self, wanted: Chat) -> list[Job]:
        """The choices of a request for an answer in a dialogue.

        Raises:
            Refused: there is no such model, or it cannot take part in such a dialogue.
        """
        model, label = self.model(wanted.options.model), self.constitution.assistant.name
        forged = any(self.template.forged(t.text, label) for t in wanted.turns)
        if model.name == PROMPTED:
            requests = self._prompted(wanted)
        else:
            system, lead = self._opening(wanted.system, wanted.style)
            pieces = self.template.prompt(system, [*lead, *wanted.turns], label)
            step = Step(
                self._sampling(wanted.options, self._settings.repetition),
                stop=self._stops(wanted.options, self.template.stops()),
            )
            requests = [Request(pieces, (step,), seed, model.adapter) for seed in _seeds(wanted.options)]
        return [Job(request, tidy=True, forged=forged) for request in requests]

    def text_jobs(self, wanted: Text) -> list[Job]:
        """The choices of a request that continues plain texts, prompt by prompt. Raises as `chat_jobs`."""
        model = self.model(wanted.options.model)
        if model.name == PROMPTED:
            raise Refused(400, "prompted-base answers chats only: for plain texts it is base", param="model")
        step = Step(self._sampling(wanted.options, 0.0), stop=wanted.options.stop)
        return [
            Job(Request(_text(prompt), (step,), seed, model.adapter), tidy=False)
            for prompt in wanted.prompts
            for seed in _seeds(wanted.options)
        ]

    def model(self, name: str) -> Model:
        """Raises Refused where there is no such model."""
        if name not in self.models:
            known = ", ".join(self.models)
            raise Refused(404, f"the model {name[:100]!r} does not exist; this run has {known}", param="model",
                          code="model_not_found")  # fmt: skip
        return self.models[name]

    def _opening(self, system: str | None, style: str | None) -> tuple[str, list[Turn]]:
        """(what stands before the dialogue, turns before its first one)."""
        if system is not None:
            return system, []
        style = style or self.style
        shots = self.constitution.prompts.two_shot if style == "two-shot" else []
        lead = [turn for shot in shots for turn in (Turn("user", shot.user), Turn("assistant", shot.answer))]
        opening = "standard" if style == "two-shot" else style
        return self.constitution.system_prompt(opening), lead  # type: ignore[arg-type]

    def _prompted(self, wanted: Chat) -> list[Request]:
        if wanted.system is not None or wanted.style is not None:
            raise Refused(400, "prompted-base has the constitution for its prompt: it takes no other", param="messages")
        if len(wanted.turns) > 1:
            raise Refused(400, "prompted-base answers single messages, as in stage 2", param="messages")
        config = self.context.recipe.align.model_copy(update={"form": "guided"})
        form = Form(self.constitution, config, self._sampling(wanted.options, 0.0))
        found = []
        for seed in _seeds(wanted.options):
            request = form.request(wanted.turns[0].text, seed)
            *thoughts, last = request.steps
            last = replace(last, stop=self._stops(wanted.options, last.stop))
            found.append(Request(request.prompt, (*thoughts, last), seed))
        return found

    def _sampling(self, options: Options, repetition: float) -> Sampling:
        settings = self._settings
        return Sampling(
            settings.temperature if options.temperature is None else options.temperature,
            settings.top_p if options.top_p is None else options.top_p,
            options.max_tokens or self.tokens,
            self.context.recipe.engine.top_k,
            repetition=repetition,
        )

    def _stops(self, options: Options, own: tuple[str, ...]) -> tuple[str, ...]:
        """Ours and the request's. Another server takes four; ours are two there, for plain-text turns."""
        stops = tuple(dict.fromkeys((*own, *options.stop)))
        if len(stops) > _FOREIGN_STOPS and engines.kind(self.context.recipe.engine) == "openai":
            left = _FOREIGN_STOPS - len(own)
            raise Refused(400, f"behind another server stop takes {left} strings at most", param="stop")
        return stops


def _models(context: Context) -> list[Model]:
    """Base, prompted base and what the run has trained, in the order of tables."""
    served = context.recipe.engine.served if engines.kind(context.recipe.engine) == "openai" else None
    found = []
    for name, adapter in models(context).items():
        if served is not None and (adapter or "base") not in served:
            continue
        file = (
            context.run.adapter_gguf(adapter) if adapter and context.has_weights else context.run.path / "recipe.yaml"
        )
        created = int(file.stat().st_mtime)
        found.append(Model(name, adapter, created))
        if name == "base":
            found.append(Model(PROMPTED, None, created))
    if not found:
        raise UserError("the server's model ids are not named: --set engine.served.base=ID where the run was made")
    return found


def _text(prompt: str) -> Pieces:
    return tuple(p for p in (BOS, prompt) if p)


def _seeds(options: Options) -> list[int]:
    first = secrets.randbits(31) if options.seed is None else options.seed
    # llama.cpp takes 2**32 - 1 for "any seed".
    return [(first + number) % (2**32 - 1) for number in range(options.n)]
