"""Resolve the models under comparison: a run's own, and any adapter, model or server that the user names.

A model is needed in two ways. A *scorer* gives log-probabilities of texts; an *engine* generates text. Models that
share one running scorer or engine (a base and its adapters) form a `ModelGroup`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

from selfalign.data.records import content_hash
from selfalign.errors import UserError
from selfalign.evaluation.judges import Judge
from selfalign.evaluation.prompting import PromptKind
from selfalign.generation import engines, executors
from selfalign.generation.engines.base import Engine
from selfalign.generation.scoring.base import Scorer
from selfalign.generation.scoring.server_scorer import KEY
from selfalign.generation.settings import EngineSettings
from selfalign.model import sources
from selfalign.model.base_model import Model
from selfalign.model.dialogue import PLAIN, Template
from selfalign.run.context import Context
from selfalign.system.atomic import file_hash

PROMPTED = "prompted base"
NAMES = ("base", PROMPTED, "engraved", "final")
"""The models of a run, in the order of tables."""
ADAPTERS = {"base": None, "engraved": "engrave", "final": "verbose_cloning"}
"""The models of a run, each with the stage that trains its adapter."""
TORCH = "torch float32"


def run_models(context: Context) -> dict[str, str | None]:
    """Return the models that a run has, each with the stage of its adapter: the base, and all whose adapter exists."""
    return {name: stage for name, stage in ADAPTERS.items() if stage is None or context.has_adapter(stage)}


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """A model under comparison, with the system prompt that it gets."""

    name: str
    prompt: PromptKind
    adapter: str | None
    """The name of its adapter in the scorer or engine; None is the base."""
    identity: str
    """A hash of the weights and of how they are computed."""

    @property
    def column(self) -> str:
        """The key of the model under its prompt in benchmarks.json."""
        return f"{self.name}|{self.prompt}"


class Closeable(Protocol):
    """Anything that frees its memory."""

    def close(self) -> None: ...


Backend = TypeVar("Backend", bound=Closeable)


@dataclass
class ModelGroup(Generic[Backend]):
    """Models that share one scorer or engine. It starts when it is first needed."""

    models: list[ComparedModel]
    template: Callable[[], Template]
    start: Callable[[], Backend]
    owned: bool = True
    """False for a run's own engine: the run may close it between two tasks, and it is not closed here."""
    _backend: Backend | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        return self._backend is not None

    def backend(self) -> Backend:
        """Return the running scorer or engine. Raises as `start`."""
        if self._backend is None or not self.owned:
            self._backend = self.start()
        return self._backend

    def close(self) -> None:
        """Free the memory of the scorer or engine."""
        if self._backend is not None and self.owned:
            self._backend.close()
        self._backend = None


ScorerGroup: TypeAlias = ModelGroup[Scorer]
EngineGroup: TypeAlias = ModelGroup[Engine]


# -- a run's models ------------------------------------------------------------------------------------------------


def scorers_of_run(
    context: Context, names: Sequence[str], others: Sequence[str], prompt: PromptKind
) -> list[ScorerGroup]:
    """Return the models of a run, and `others`, for scoring.

    Args:
        names: some of base, prompted base (or prompted), engraved and final; empty for all that the run has.
        others: NAME=ADAPTER, NAME=MODEL or NAME=URL#ID.
        prompt: the system prompt; the prompted base has the constitution instead.

    Raises:
        UserError: a name is not known or used twice, the run has no such model, or its engine runs no model.
    """
    context.model.check_weights("nothing can be scored")
    requested = requested_models(context, names)
    stages = {a: context.run.adapter(a) for n in requested if (a := ADAPTERS.get(n))}
    specs = _other_specs(others, [*requested, *stages])
    own = {name: Path(spec) for name, spec in specs.items() if is_adapter(spec)}
    folders = {**stages, **own}
    identity = identities(context.model.identity, folders, _arithmetic(context))
    models = [_run_model(n, prompt, identity) for n in requested]
    models += [ComparedModel(n, prompt, n, identity[n]) for n in own]
    group = ScorerGroup(models, lambda: context.model.template, lambda: _start_run_scorer(context, folders))
    return [group, *(_outside_scorer(n, spec, prompt) for n, spec in specs.items() if n not in own)]


def engines_of_run(
    context: Context, names: Sequence[str], others: Sequence[str], prompt: PromptKind
) -> list[EngineGroup]:
    """Return the models of a run on its own engine, and `others`, each on an engine of its own.

    Args and errors as `scorers_of_run`; the fake engine answers, too.
    """
    requested = requested_models(context, names)
    adapters = tuple(a for n in requested if (a := ADAPTERS.get(n)))
    specs = _other_specs(others, requested)
    identity = context.identities(adapters)
    group = EngineGroup(
        [_run_model(n, prompt, identity) for n in requested],
        lambda: context.model.template,
        lambda: context.engine(adapters),
        owned=False,
    )
    config = context.recipe.engine
    return [
        group,
        *(
            _adapted_engine(n, context.model, Path(spec), config, prompt)
            if is_adapter(spec)
            else _outside_engine(n, spec, config, prompt)
            for n, spec in specs.items()
        ),
    ]


def _run_model(name: str, prompt: PromptKind, identity: Mapping[str | None, str]) -> ComparedModel:
    adapter = ADAPTERS.get(name)
    return ComparedModel(name, "constitution" if name == PROMPTED else prompt, adapter, identity[adapter])


def requested_models(context: Context, names: Sequence[str]) -> list[str]:
    """Return the run's models of these names, in the order of tables; all for no names. Raises as `scorers_of_run`."""
    existing = run_models(context)
    requested = [PROMPTED if n in ("prompted", "prompted-base") else n for n in names] or list(NAMES)
    for name in requested:
        if name not in NAMES:
            raise UserError(f"--models: {name!r} is not a model; models are {', '.join(NAMES)}")
        if names and name != PROMPTED and name not in existing:
            raise UserError(f"--models: {name!r} was not trained in this run; it has {', '.join(existing)}")
    return [n for n in NAMES if n in requested and (n == PROMPTED or n in existing)]


def _other_specs(others: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Return {NAME: SPEC} of the other models; raises UserError if a name is used twice or by the run."""
    specs = [parse_spec(o) for o in others]
    for name, _ in specs:
        if name in taken:
            raise UserError(f"--with {name}=...: the run has a model of that name; choose another name")
    _check_unique([name for name, _ in specs])
    return dict(specs)


def _check_unique(names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"two models are named {name!r}: write NAME=... for one of them")


# -- models without a run, and judges ------------------------------------------------------------------------------


def scorers_of(specs: Sequence[str], prompt: PromptKind, prompted: bool) -> list[ScorerGroup]:
    """Return models without a run, for scoring.

    Args:
        specs: GGUF files, folders or hub ids, each with +ADAPTER or without, or URL#ID; each as NAME=... or without.
        prompted: each model also with the constitution in its prompt.

    Raises:
        UserError: a model cannot be found, or two have one name.
    """
    return _groups(specs, prompted, lambda name, spec: _outside_scorer(name, spec, prompt))


def engines_of(specs: Sequence[str], prompt: PromptKind, prompted: bool) -> list[EngineGroup]:
    """Return models without a run, each with an engine. Args and errors as `scorers_of`."""
    config = EngineSettings.model_validate({})
    return _groups(specs, prompted, lambda name, spec: _outside_engine(name, spec, config, prompt))


def _groups(
    specs: Sequence[str], prompted: bool, make: Callable[[str, str], ModelGroup[Backend]]
) -> list[ModelGroup[Backend]]:
    named = [parse_spec(s) if "=" in s else (short_name(s), s) for s in specs]
    _check_unique([name for name, _ in named])
    groups = [make(name, spec) for name, spec in named]
    for group in groups if prompted else ():
        model = group.models[0]
        group.models.append(replace(model, name=f"{model.name}, prompted", prompt="constitution"))
    return groups


def judge_group(spec: str, config: EngineSettings) -> EngineGroup:
    """Return the judge of NAME=MODEL, NAME=URL#ID, or one without a name, not started yet.

    Raises:
        UserError: there is no such model.
    """
    name, source = parse_spec(spec) if "=" in spec and not Path(spec).exists() else ("", spec)
    name = name or source.partition("#")[2] or short_name(source)
    return _outside_engine(name, source, config, "standard")


@contextmanager
def open_judge(spec: str, config: EngineSettings) -> Iterator[Judge]:
    """Start the judge, and end it with the block. Raises as `judge_group`, or if its engine cannot start."""
    group = judge_group(spec, config)
    try:
        model = group.models[0]
        yield Judge(model.name, group.backend(), model.identity, model.adapter)
    finally:
        group.close()


# -- specifications of models --------------------------------------------------------------------------------------


def parse_spec(text: str) -> tuple[str, str]:
    """Return (NAME, SPEC) of NAME=SPEC."""
    name, equals, spec = text.partition("=")
    if not equals or not name.strip() or not spec.strip():
        raise UserError(f"{text!r}: write NAME=ADAPTER, NAME=MODEL or NAME=URL#ID")
    return name.strip(), spec.strip()


def short_name(spec: str) -> str:
    """Return a model's name in tables: the last parts of its path, without its ending."""
    base, adapter = split_adapter(spec)
    name = Path(base).name.removesuffix(".gguf") or base
    return f"{name}+{'/'.join(adapter.parts[-2:])}" if adapter else name


def split_adapter(spec: str) -> tuple[str, Path | None]:
    """Return (model, adapter) of MODEL+ADAPTER. An existing path with a plus in its name is a model."""
    if "+" not in spec or Path(spec).exists():
        return spec, None
    base, _, adapter = spec.partition("+")
    if not is_adapter(adapter):
        raise UserError(f"{adapter!r} is no PEFT adapter: the folder has no adapter_config.json and safetensors")
    return base, Path(adapter)


def is_adapter(spec: str) -> bool:
    """Return whether a folder is an adapter as PEFT writes it."""
    return all((Path(spec) / f).is_file() for f in ("adapter_config.json", "adapter_model.safetensors"))


def _server_of(name: str, spec: str) -> tuple[str, str] | None:
    """Return (URL, model id) of URL#ID; None for a model on this machine."""
    if not spec.startswith(("http://", "https://")):
        return None
    url, _, served = spec.partition("#")
    if not served:
        raise UserError(f"{name}={spec}: write the model's id after the address, as http://127.0.0.1:8000/v1#ID")
    return url, served


def identities(base: str, adapters: Mapping[str, Path], arithmetic: str = TORCH) -> dict[str | None, str]:
    """Return, for the base (None) and each adapter, a hash of the weights and of the scorer's arithmetic."""
    hashes: dict[str | None, str] = {None: content_hash(arithmetic, base)}
    for name, folder in adapters.items():
        settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        # The base's name may be a path, which says nothing about the weights.
        settings.pop("base_model_name_or_path", None)
        files = [file_hash(folder / "adapter_model.safetensors"), content_hash(settings)]
        hashes[name] = content_hash(arithmetic, base, files)
    return hashes


# -- starting scorers ----------------------------------------------------------------------------------------------


def _outside_scorer(name: str, spec: str, prompt: PromptKind) -> ScorerGroup:
    """Return a model from outside the run. A server's template is not known: it gets plain-text turns."""
    if server := _server_of(name, spec):
        url, served = server

        def connect() -> Scorer:
            from selfalign.generation.scoring.server_scorer import ServerScorer

            return ServerScorer(url, served)

        model = ComparedModel(name, prompt, None, content_hash("server", url, served))
        return ScorerGroup([model], lambda: PLAIN, connect)
    source, adapter = split_adapter(spec)
    base = sources.resolve(source)
    folders = {"adapter": adapter} if adapter else {}

    def start() -> Scorer:
        from selfalign.generation.scoring.torch_scorer import TorchScorer

        for folder in folders.values():
            base.check_adapter(folder)
        return TorchScorer(base.folder(), folders, base.tokenizer())

    used = "adapter" if adapter else None
    model = ComparedModel(name, prompt, used, identities(base.identity, folders)[used])
    return ScorerGroup([model], lambda: base.template, start)


def _arithmetic(context: Context) -> str:
    """Return the arithmetic of a run's scorer: vLLM's if that is the run's engine, otherwise torch's."""
    config = context.recipe.engine
    return f"vllm {_dtype(config)}" if engines.kind(config) == "vllm" else TORCH


def _dtype(config: EngineSettings) -> str:
    from selfalign.system import environment

    return environment.dtype() if config.dtype == "auto" else config.dtype


def _start_run_scorer(context: Context, folders: Mapping[str, Path]) -> Scorer:
    """Start a run's scorer, vLLM if that is the run's engine, otherwise torch, and report which one and why."""
    model, config, say = context.model, context.recipe.engine, context.screen.say
    executor = context.recipe.executor
    for folder in folders.values():
        model.check_adapter(folder)
    context.release_engine()
    kind = engines.kind(config)
    where = " on Ray workers" if executor.kind == "ray" else ""
    if kind == "vllm":
        say(f"  scored by vLLM ({_dtype(config)}){where}", "dim")
        return executors.scorer(executor, config, model, folders, "vllm", _dtype(config), say)
    why = {
        "llama_cpp": ": llama.cpp gives no log-probabilities of prompts",
        "openai": ": the weights are here, and few servers give log-probabilities of prompts",
    }.get(kind, "")
    say(f"  scored by torch in float32{where}{why}", "dim")
    return executors.scorer(executor, config, model, folders, "torch", say=say)


# -- starting engines ----------------------------------------------------------------------------------------------


def _outside_engine(name: str, spec: str, config: EngineSettings, prompt: PromptKind) -> EngineGroup:
    """Return a model from outside the run. A server's template is not known: it gets plain-text turns."""
    if server := _server_of(name, spec):
        url, served = server
        key = KEY if os.environ.get(KEY) else None
        remote = EngineSettings.model_validate(
            {"kind": "openai", "url": url, "served": {"base": served}, "key_env": key}
        )
        model = ComparedModel(name, prompt, None, content_hash("server", url, served))
        return EngineGroup(
            [model], lambda: PLAIN, lambda: engines.start(remote, None, {}, engines.default_slots(remote))
        )
    source, adapter = split_adapter(spec)
    base = sources.resolve(source)
    if adapter:
        return _adapted_engine(name, base, adapter, config, prompt)
    model = ComparedModel(name, prompt, None, base.identity)
    return EngineGroup([model], lambda: base.template, lambda: _start_engine(base, {}, config))


def _adapted_engine(name: str, base: Model, adapter: Path, config: EngineSettings, prompt: PromptKind) -> EngineGroup:
    identity = content_hash("engine", identities(base.identity, {"adapter": adapter})["adapter"])
    model = ComparedModel(name, prompt, "adapter", identity)
    return EngineGroup([model], lambda: base.template, lambda: _start_engine(base, {"adapter": adapter}, config))


def _start_engine(model: Model, adapters: dict[str, Path], config: EngineSettings) -> Engine:
    """Start an engine for weights on this machine, of the recipe's kind if that kind can load them."""
    kind = engines.kind(config)
    if kind not in ("llama_cpp", "vllm"):
        kind = "llama_cpp"
    if kind == "llama_cpp" and model.gguf_path is None and find_spec("vllm"):
        kind = "vllm"
    for name, folder in adapters.items():
        file = folder.with_suffix(".gguf")
        if kind == "llama_cpp" and not file.exists():
            raise UserError(f"llama.cpp needs the adapter {name!r} as GGUF, which is not at {file}; vLLM needs none")
    used = config.model_copy(update={"kind": kind, "url": None, "urls": None})
    slots = config.slots if config.slots != "auto" else engines.default_slots(used)
    return engines.start(used, model, adapters, slots)
