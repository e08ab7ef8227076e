"""Who answers, and who judges: engines for the models that `entrants` names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from selfalign.data.records import content_hash
from selfalign.errors import UserError
from selfalign.evaluation import entrants, heldout
from selfalign.evaluation.entrants import Entrant, apart, is_adapter, named
from selfalign.evaluation.forms import PromptKind
from selfalign.evaluation.judge import Judge
from selfalign.evaluation.probes import PROMPTED
from selfalign.generation import engines
from selfalign.generation.engines.base import Engine
from selfalign.generation.scoring.server_scorer import KEY
from selfalign.generation.settings import EngineSettings
from selfalign.model import sources
from selfalign.model.base_model import Model
from selfalign.model.dialogue import PLAIN, Template
from selfalign.run.context import Context


@dataclass(frozen=True, slots=True)
class Speaker:
    """A compared model and how it is spoken to."""

    entrant: Entrant
    adapter: str | None
    """Its name in the engine."""
    engine: Callable[[], Engine]
    """Gives the engine, started; several speakers may share one."""
    template: Callable[[], Template]
    close: Callable[[], None] = lambda: None


@dataclass
class _Own:
    """An engine that is started when it is first needed."""

    start: Callable[[], Engine]
    _engine: Engine | None = field(default=None, repr=False)

    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = self.start()
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None


def of_run(context: Context, names: Sequence[str], others: Sequence[str], prompt: PromptKind) -> list[Speaker]:
    """The models of a run on its own engine, and others, each on one of its own. Raises as `entrants.of_run`."""
    chosen = entrants.chosen(context, names)
    stages = {n: heldout.ADAPTERS.get(n) for n in chosen}
    adapters = tuple(s for s in stages.values() if s)
    identities = context.identities(adapters)

    found = [
        Speaker(
            Entrant(n, "constitution" if n == PROMPTED else prompt, stage, identities[stage]),
            stage,
            lambda: context.engine(adapters),
            lambda: context.model.template,
        )
        for n, stage in stages.items()
    ]
    config = context.recipe.engine
    entrants.check_names([named(o)[0] for o in others], chosen)
    for name, spec in (named(o) for o in others):
        if is_adapter(spec):
            found.append(_adapted(name, context.model, Path(spec), config, prompt))
        else:
            found.append(_foreign(name, spec, config, prompt))
    return found


def of_models(specs: Sequence[str], prompt: PromptKind, prompted: bool) -> list[Speaker]:
    """Models by themselves, see `entrants.of_models`."""
    found = []
    entrants.check_names([(named(s)[0] if "=" in s else entrants.short(s)) for s in specs])
    for spec in specs:
        name, source = named(spec) if "=" in spec else (entrants.short(spec), spec)
        first = _foreign(name, source, EngineSettings.model_validate({}), prompt)
        found.append(first)
        if prompted:
            second = Entrant(f"{name}, prompted", "constitution", first.adapter, first.entrant.identity)
            found.append(Speaker(second, first.adapter, first.engine, first.template))
    return found


def _foreign(name: str, spec: str, config: EngineSettings, prompt: PromptKind) -> Speaker:
    if spec.startswith(("http://", "https://")):
        own, identity = _server(name, spec)
        return Speaker(Entrant(name, prompt, None, identity), None, own.engine, lambda: PLAIN, own.close)
    source, adapter = apart(spec)
    model = sources.resolve(source)
    if adapter:
        return _adapted(name, model, adapter, config, prompt)
    own = _Own(lambda: _start(model, {}, config))
    entrant = Entrant(name, prompt, None, model.identity)
    return Speaker(entrant, None, own.engine, lambda: model.template, own.close)


def _adapted(name: str, model: Model, adapter: Path, config: EngineSettings, prompt: PromptKind) -> Speaker:
    own = _Own(lambda: _start(model, {"adapter": adapter}, config))
    identity = content_hash("engine", entrants.identities(model.identity, {"adapter": adapter})["adapter"])
    return Speaker(Entrant(name, prompt, "adapter", identity), "adapter", own.engine, lambda: model.template, own.close)


def _start(model: Model, adapters: dict[str, Path], config: EngineSettings) -> Engine:
    """An engine for weights that are here: the recipe's kind where it can load them."""
    kind = engines.kind(config)
    if kind not in ("llama_cpp", "vllm"):
        kind = "llama_cpp"
    if kind == "llama_cpp" and model.gguf_path is None and find_spec("vllm"):
        kind = "vllm"
    for name, folder in adapters.items():
        if kind == "llama_cpp" and not folder.with_suffix(".gguf").exists():
            file = folder.with_suffix(".gguf")
            raise UserError(f"llama.cpp needs the adapter {name!r} as GGUF, which is not at {file}; vLLM needs none")
    used = config.model_copy(update={"kind": kind, "url": None, "urls": None})
    slots = config.slots if config.slots != "auto" else engines.default_slots(used)
    return engines.start(used, model, adapters, slots)


def _server(name: str, spec: str) -> tuple[_Own, str]:
    url, _, served = spec.partition("#")
    if not served:
        raise UserError(f"{name}={spec}: write the model's id after the address, as http://127.0.0.1:8000/v1#ID")
    key = KEY if os.environ.get(KEY) else None
    config = EngineSettings.model_validate({"kind": "openai", "url": url, "served": {"base": served}, "key_env": key})
    own = _Own(lambda: engines.start(config, None, {}, engines.default_slots(config)))
    return own, content_hash("server", url, served)


def check_judge(spec: str, config: EngineSettings) -> None:
    """Raises UserError where there is no such judge; starts nothing."""
    name, source = named(spec) if "=" in spec and not Path(spec).exists() else ("", spec)
    _foreign(name or _title(source), source, config, "standard")


def judge(spec: str, config: EngineSettings) -> tuple[Judge, Callable[[], None]]:
    """(the judge, how to end it) of NAME=MODEL, NAME=URL#ID, or one without a name.

    Raises:
        UserError: there is no such model, or it cannot be started.
    """
    name, source = named(spec) if "=" in spec and not Path(spec).exists() else ("", spec)
    speaker = _foreign(name or _title(source), source, config, "standard")
    started = Judge(speaker.entrant.name, speaker.engine(), speaker.entrant.identity, speaker.adapter)
    return started, speaker.close


def _title(source: str) -> str:
    return source.partition("#")[2] or entrants.short(source)
