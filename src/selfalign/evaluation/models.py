"""Resolve the models under comparison: a run's own, and any adapter, model or server that the user names.

Tasks use a model through a *scorer*, which gives log-probabilities of texts, or an *engine*, which generates text. The
models that share one running scorer or engine (a base and its adapters) form a `ModelGroup`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from selfalign.data.records import content_hash
from selfalign.errors import UserError
from selfalign.evaluation.judges import Judge
from selfalign.evaluation.prompting import PromptKind
from selfalign.generation import engines, executors
from selfalign.generation.engines.base import Engine
from selfalign.generation.scoring.base import Scorer
from selfalign.generation.scoring.server_scorer import KEY
from selfalign.generation.settings import EngineSettings
from selfalign.model import gguf_adapter, sources
from selfalign.model.base_model import Model
from selfalign.model.dialogue import PLAIN, Template
from selfalign.run.context import Context
from selfalign.system.atomic import file_hash

PROMPTED = "prompted base"
NAMES = ("base", PROMPTED, "engraved", "final")
"""The models of a run, in the order of tables."""
ADAPTERS = {"base": None, "engraved": "engrave", "final": "verbose_cloning"}
"""Each model of a run -> the stage that trains its adapter; None for the base."""
TORCH = "torch float32"


def run_models(context: Context) -> dict[str, str | None]:
    """Return the models that a run has so far: the base, and those with an adapter; values as in `ADAPTERS`."""
    return {name: stage for name, stage in ADAPTERS.items() if stage is None or context.has_adapter(stage)}


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """A model under comparison and its system prompt."""

    name: str
    prompt: PromptKind
    adapter: str | None
    """The name of its adapter in the scorer or engine; None for the base."""
    identity: str
    """A hash of the weights and of how they are computed."""

    @property
    def column(self) -> str:
        """The key of this model with this prompt in benchmarks.json."""
        return f"{self.name}|{self.prompt}"


Backend = TypeVar("Backend", Scorer, Engine)


@dataclass
class ModelGroup(Generic[Backend]):
    """Models that share one scorer or engine, which starts when it is first needed."""

    models: list[ComparedModel]
    template: Callable[[], Template]
    start: Callable[[], Backend]
    owned: bool = True
    """False for a run's own engine: only the run closes it, which it may do between two tasks."""
    _backend: Backend | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        return self._backend is not None

    def backend(self) -> Backend:
        """Return the running scorer or engine, after starting it if necessary. Raises what `start` raises."""
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
    """Return scorers for models of a run and for `others`.

    Args:
        names: some of base, prompted base (or prompted), engraved and final; empty for all that the run has.
        others: NAME=ADAPTER, NAME=MODEL or NAME=URL#ID.
        prompt: the system prompt of all models but the prompted base, which gets the constitution.

    Raises:
        UserError: a name is unknown or used twice, the run has no such model, or its engine is fake.
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
    """Return the engine of a run with its models, and an engine for each of `others`.

    Arguments and errors are those of `scorers_of_run`, except that the fake engine is allowed.
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
            _local_engine(n, context.model, Path(spec), config, prompt)
            if is_adapter(spec)
            else _outside_engine(n, spec, config, prompt)
            for n, spec in specs.items()
        ),
    ]


def _run_model(name: str, prompt: PromptKind, identity: Mapping[str | None, str]) -> ComparedModel:
    adapter = ADAPTERS.get(name)
    return ComparedModel(name, "constitution" if name == PROMPTED else prompt, adapter, identity[adapter])


def requested_models(context: Context, names: Sequence[str]) -> list[str]:
    """Return the run's models of these names (all if there are none), in the order of tables."""
    existing = run_models(context)
    requested = [PROMPTED if n in ("prompted", "prompted-base") else n for n in names] or list(NAMES)
    for name in requested:
        if name not in NAMES:
            raise UserError(f"--models: {name!r} is not a model; use some of {', '.join(NAMES)}")
        if names and name != PROMPTED and name not in existing:
            raise UserError(f"--models: {name!r} was not trained in this run; it has {', '.join(existing)}")
    return [n for n in NAMES if n in requested and (n == PROMPTED or n in existing)]


def _other_specs(others: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Return {NAME: SPEC} of the other models. Raises UserError if a name is used twice or by the run."""
    specs = [parse_spec(o) for o in others]
    for name, _ in specs:
        if name in taken:
            raise UserError(f"--with {name}=...: the run has a model with this name; choose another one")
    _check_unique([name for name, _ in specs])
    return dict(specs)


def _check_unique(names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"two models are named {name!r}: write NAME=... for one of them")


# -- models without a run, and judges ------------------------------------------------------------------------------


def scorers_of(specs: Sequence[str], prompt: PromptKind, prompted: bool) -> list[ScorerGroup]:
    """Return scorers for models without a run.

    Args:
        specs: [NAME=]MODEL[+ADAPTER], where MODEL is a GGUF file, a folder or a hub id, or [NAME=]URL#ID.
        prompted: add each model with the constitution in its prompt.

    Raises:
        UserError: a model does not exist, or two models have the same name.
    """
    return _groups(specs, prompted, lambda name, spec: _outside_scorer(name, spec, prompt))


def engines_of(specs: Sequence[str], prompt: PromptKind, prompted: bool) -> list[EngineGroup]:
    """Return engines for models without a run. Arguments and errors are those of `scorers_of`."""
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


def judge_group(spec: str, config: EngineSettings, say: Callable[[str], None] = lambda _: None) -> EngineGroup:
    """Return the engine of a judge, [NAME=]MODEL or [NAME=]URL#ID, without starting it.

    Args:
        say: receives messages about what a server does not support.

    Raises:
        UserError: the model does not exist.
    """
    name, source = parse_spec(spec) if "=" in spec and not Path(spec).exists() else ("", spec)
    name = name or source.partition("#")[2] or short_name(source)
    group = _outside_engine(name, source, config, "standard")
    if server := _server_of(name, source):
        remote = _server_settings(*server)

        def connect() -> Engine:
            from selfalign.generation.engines.chat_api import ChatApi

            return ChatApi(remote, engines.default_slots(remote), name="the judge's server", say=say)

        return replace(group, start=connect)
    return group


@contextmanager
def open_judge(spec: str, config: EngineSettings, say: Callable[[str], None] = lambda _: None) -> Iterator[Judge]:
    """Run a judge for the duration of the block. Raises as `judge_group`, or if the engine cannot start."""
    group = judge_group(spec, config, say)
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
    """Return a model's name in tables: the end of its path, without the extension."""
    base, adapter = split_adapter(spec)
    name = Path(base).name.removesuffix(".gguf") or base
    return f"{name}+{'/'.join(adapter.parts[-2:])}" if adapter else name


def split_adapter(spec: str) -> tuple[str, Path | None]:
    """Return (MODEL, ADAPTER) of MODEL+ADAPTER. An existing path with a plus in its name is a model."""
    if "+" not in spec or Path(spec).exists():
        return spec, None
    base, _, adapter = spec.partition("+")
    if not is_adapter(adapter):
        raise UserError(f"{adapter!r} is not a PEFT adapter: the folder has no adapter_config.json and safetensors")
    return base, Path(adapter)


def is_adapter(spec: str) -> bool:
    """Return whether a folder has the files of a PEFT adapter."""
    return all((Path(spec) / f).is_file() for f in ("adapter_config.json", "adapter_model.safetensors"))


def _server_of(name: str, spec: str) -> tuple[str, str] | None:
    """Return (URL, model id) of URL#ID; None for a model on this machine."""
    if not spec.startswith(("http://", "https://")):
        return None
    url, _, served = spec.partition("#")
    if not served:
        raise UserError(f"{name}={spec}: write the model's id after the address, as in http://127.0.0.1:8000/v1#ID")
    return url, served


def identities(base: str, adapters: Mapping[str, Path], arithmetic: str = TORCH) -> dict[str | None, str]:
    """Return a hash of the weights and of the scorer's arithmetic for the base (None) and each adapter."""
    hashes: dict[str | None, str] = {None: content_hash(arithmetic, base)}
    for name, folder in adapters.items():
        settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        # The base's name may be a path, which does not identify the weights.
        settings.pop("base_model_name_or_path", None)
        files = [file_hash(folder / "adapter_model.safetensors"), content_hash(settings)]
        hashes[name] = content_hash(arithmetic, base, files)
    return hashes


# -- starting scorers ----------------------------------------------------------------------------------------------


def _outside_scorer(name: str, spec: str, prompt: PromptKind) -> ScorerGroup:
    """Return a scorer for a model that is not the run's. A server gets plain-text turns: its template is not known."""
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
    """Return the name of the scorer's arithmetic: vLLM's if that is the run's engine, otherwise torch's."""
    config = context.recipe.engine
    return f"vllm {config.vllm_dtype()}" if engines.kind(config) == "vllm" else TORCH


def _start_run_scorer(context: Context, folders: Mapping[str, Path]) -> Scorer:
    """Start a run's scorer: vLLM if that is the run's engine, otherwise torch. Report which one it is, and why."""
    model, config, say = context.model, context.recipe.engine, context.screen.say
    executor = context.recipe.executor
    for folder in folders.values():
        model.check_adapter(folder)
    context.release_engine()
    kind = engines.kind(config)
    where = " on Ray workers" if executor.kind == "ray" else ""
    if kind == "vllm":
        say(f"  scored by vLLM ({config.vllm_dtype()}){where}", "dim")
        return executors.scorer(executor, config, model, folders, "vllm", config.vllm_dtype(), say)
    why = {
        "llama_cpp": ": llama.cpp gives no log-probabilities of prompts",
        "vllm_server": ": vLLM is a process of its own, and the weights are on this machine",
        "openai": ": few servers give log-probabilities of prompts, and the weights are on this machine",
    }.get(kind, "")
    say(f"  scored by torch in float32{where}{why}", "dim")
    return executors.scorer(executor, config, model, folders, "torch", say=say)


# -- starting engines ----------------------------------------------------------------------------------------------


def _outside_engine(name: str, spec: str, config: EngineSettings, prompt: PromptKind) -> EngineGroup:
    """Return an engine for a model that is not the run's. A server gets plain-text turns: its template is not known."""
    if server := _server_of(name, spec):
        remote = _server_settings(*server)
        model = ComparedModel(name, prompt, None, content_hash("server", *server))
        return EngineGroup(
            [model], lambda: PLAIN, lambda: engines.start(remote, None, {}, engines.default_slots(remote))
        )
    source, adapter = split_adapter(spec)
    return _local_engine(name, sources.resolve(source), adapter, config, prompt)


def _server_settings(url: str, served: str) -> EngineSettings:
    """Return the settings of a server that the command line names. Its key comes from the environment."""
    key = KEY if os.environ.get(KEY) else None
    return EngineSettings.model_validate({"kind": "openai", "url": url, "served": {"base": served}, "key_env": key})


def _local_engine(
    name: str, base: Model, adapter: Path | None, config: EngineSettings, prompt: PromptKind
) -> EngineGroup:
    if adapter is None:
        model, folders = ComparedModel(name, prompt, None, base.identity), {}
    else:
        folders = {"adapter": adapter}
        identity = content_hash("engine", identities(base.identity, folders)["adapter"])
        model = ComparedModel(name, prompt, "adapter", identity)
    return EngineGroup([model], lambda: base.template, lambda: _start_engine(base, folders, config))


def _start_engine(model: Model, adapters: dict[str, Path], config: EngineSettings) -> Engine:
    """Start an engine for weights on this machine: of the configured kind if that kind can load them."""
    kind = engines.kind(config)
    if kind not in ("llama_cpp", "torch", *engines.VLLM):
        kind = "llama_cpp"
    if kind == "llama_cpp" and model.gguf_path is None:
        kind = "vllm" if find_spec("vllm") else "torch"
    for name, folder in adapters.items():
        model.check_adapter(folder)
        file = gguf_adapter.path_of(folder)
        if kind == "llama_cpp" and not gguf_adapter.is_current(folder):
            try:
                gguf_adapter.write(folder, model.folder(), file, model.notice)
            except OSError as error:
                raise UserError(
                    f"llama.cpp needs the adapter {name!r} as GGUF, and {file} cannot be written: {error.strerror}"
                ) from None
    used = config.model_copy(update={"kind": kind, "url": None, "urls": None})
    slots = config.slots if config.slots != "auto" else engines.default_slots(used)
    return engines.start(used, model, adapters, slots)
