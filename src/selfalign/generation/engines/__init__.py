"""Choose and start the engine that generates text. To add an engine, write a starter and add it to `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from selfalign.errors import UserError
from selfalign.generation.engines import vllm_environment
from selfalign.generation.engines.base import Engine
from selfalign.generation.settings import EngineSettings
from selfalign.model import gguf_adapter, sources
from selfalign.model.fake import FakeModel
from selfalign.system.environment import accelerators

if TYPE_CHECKING:
    from selfalign.model.base_model import Model
    from selfalign.model.dialogue import Tokenizer

Adapters = Mapping[str, Path]
"""Name -> PEFT folder, with the GGUF form beside it."""

Say = Callable[[str], None]


def _tokenizer(model: Model | None, say: Say) -> tuple[Tokenizer | None, str]:
    """Return the model's tokenizer and "", or None and the reason why there is none; an engine can run without it."""
    if model is None:
        return None, "the model is unknown"
    try:
        return model.tokenizer(say), ""
    except UserError as error:
        return None, str(error)


def _llama_cpp(model: Model, adapters: Adapters, config: EngineSettings, slots: int, say: Say) -> Engine:
    from selfalign.generation.engines.llama_cpp import LlamaCpp

    ggufs = {name: gguf_adapter.path_of(folder) for name, folder in adapters.items()}
    gguf = model.gguf  # first, since a missing GGUF is an error and a missing tokenizer only a note
    tokenizer, reason = _tokenizer(model, say)
    engine = LlamaCpp(gguf, ggufs, slots, config.context, config.threads, tokenizer)
    if reason:
        engine.note = f"llama.cpp encodes the prompts itself ({reason})"
    return engine


def _vllm(model: Model, adapters: Adapters, config: EngineSettings, slots: int, say: Say) -> Engine:
    from selfalign.generation.engines.vllm_driver import VllmDriver
    from selfalign.generation.engines.vllm_offline import VllmOffline

    dtype, size = config.vllm_dtype(), config.tensor_parallel_size
    tokenizer, ends = model.tokenizer(), model.end_tokens()
    return VllmOffline(VllmDriver(model.folder(), adapters, slots, config.context, dtype, size), tokenizer, ends)


def _vllm_server(
    model: Model, adapters: Adapters, config: EngineSettings, slots: int, say: Say, log: Path | None = None
) -> Engine:
    from selfalign.generation.engines import vllm_server

    vllm_environment.version(config)  # an error if vLLM is gone
    python = vllm_environment.find(config) or Path()
    folder, tokenizer, ends = model.folder(say), model.tokenizer(say), model.end_tokens()
    return vllm_server.start(python, folder, adapters, config, slots, tokenizer, ends, log, say)


def _torch(model: Model, adapters: Adapters, config: EngineSettings, slots: int, say: Say) -> Engine:
    from selfalign.generation.engines.torch_engine import TorchEngine
    from selfalign.training.device import for_generation

    model.check_weights("the engine torch needs them")
    folder, tokenizer, ends = model.folder(say), model.tokenizer(say), model.end_tokens()
    return TorchEngine(folder, adapters, for_generation(config.dtype), slots, config.context, tokenizer, ends)


def _openai(model: Model | None, adapters: Adapters, config: EngineSettings, slots: int, say: Say) -> Engine:
    from selfalign.generation.engines.openai_api import OpenAiApi

    tokenizer, _ = _tokenizer(model, say)
    if config.urls:
        from selfalign.generation.engines.many_servers import ManyServers

        return ManyServers(config, slots, tokenizer=tokenizer, say=say)
    return OpenAiApi(config, slots, tokenizer=tokenizer, say=say)


def _fake(model: Model | None, adapters: Adapters, config: EngineSettings, slots: int, say: Say) -> Engine:
    from selfalign.generation.engines.fake import Fake

    return Fake(parallel=slots)


ENGINES: dict[str, Callable[..., Engine]] = {
    "llama_cpp": _llama_cpp,
    "torch": _torch,
    "vllm": _vllm,
    "vllm_server": _vllm_server,
    "openai": _openai,
    "fake": _fake,
}

VLLM = ("vllm", "vllm_server")
"""The kinds that run vLLM: in this process, and as a process of its own."""


def choose(config: EngineSettings) -> tuple[str, str]:
    """Return the engine's kind, with `auto` resolved for this machine, and the reason for the choice."""
    if config.kind != "auto":
        return config.kind, "the recipe names it"
    if config.url:
        return "openai", "engine.url is set"
    if config.urls:
        return "openai", "engine.urls is set"
    devices = accelerators()
    if devices and vllm_environment.find(config):
        return "vllm_server", f"vLLM is installed, and there is an accelerator ({devices[0]})"
    if devices and find_spec("torch"):
        return "torch", f"in process; vLLM, which is faster on the accelerator ({devices[0]}), is not installed"
    return "llama_cpp", "in process; no engine.url and no accelerator"


def kind(config: EngineSettings) -> str:
    """Return the engine's kind, with `auto` resolved for this machine."""
    return choose(config)[0]


def check(config: EngineSettings) -> None:
    """Check before a run is created that its engine could start.

    Raises:
        UserError: vLLM is not installed, or a server's address is missing or invalid.
    """
    if kind(config) == "openai":
        from selfalign.generation.engines.server_client import parse_addresses

        parse_addresses(config)
    if kind(config) == "vllm" and not find_spec("vllm"):
        raise UserError("engine vllm: vLLM is not installed in this environment: install it as in docs/engines.md")
    if kind(config) == "torch" and (missing := [m for m in ("torch", "transformers", "peft") if not find_spec(m)]):
        raise UserError(f"engine torch needs {', '.join(missing)}: pip install 'selfalign[train]'")
    if kind(config) == "vllm_server":
        vllm_environment.version(config)


def advice(config: EngineSettings) -> str:
    """Return a warning about the engine for the user, before anything is generated; empty if there is none.

    Raises:
        UserError: vLLM is not installed, and the recipe needs it.
    """
    devices = accelerators()
    if kind(config) == "vllm_server":
        return vllm_environment.untested(vllm_environment.version(config))
    if kind(config) == "torch" and devices:
        return (
            f"torch generates, on the accelerator ({devices[0]}) if it finds it. vLLM is faster: "
            f"{vllm_environment.ADVICE}, then start again with --new"
        )
    if kind(config) == "llama_cpp" and devices:
        return (
            f"llama.cpp generates, on the CPU unless its build uses the accelerator ({devices[0]}). vLLM is many times "
            f"faster: {vllm_environment.ADVICE}, then start again with --new"
        )
    return ""


def base_model(source: str, config: EngineSettings) -> Model:
    """Return the model that the recipe names, or the fake engine's. Raises as `sources.resolve`."""
    return FakeModel() if config.kind == "fake" else sources.resolve(source)


def default_slots(config: EngineSettings) -> int:
    """Return the number of slots for `engine.slots: auto`, except for llama.cpp, where `calibration` measures it."""
    chosen = kind(config)
    return 64 if chosen == "torch" or (chosen in VLLM and accelerators()) else 8


def slots(config: EngineSettings, calibrated: Callable[[], int]) -> int:
    """Return the number of slots: the recipe's, or the best for this machine; `calibrated` measures llama.cpp's."""
    if config.slots != "auto":
        return config.slots
    return calibrated() if kind(config) == "llama_cpp" else default_slots(config)


def start(
    config: EngineSettings,
    model: Model | None,
    adapters: Adapters,
    slots: int,
    say: Say = lambda _: None,
    log: Path | None = None,
) -> Engine:
    """Start the recipe's engine with the base model and the adapters that requests may name.

    Args:
        model: a server uses only its tokenizer; None if the model is unknown.
        slots: concurrent requests; with several servers, per server.
        log: the file for the output of an engine that is a process of its own.

    Raises:
        UserError: the engine cannot be started.
    """
    options = {"log": log} if kind(config) == "vllm_server" else {}
    return ENGINES[kind(config)](model, adapters, config, slots, say, **options)
