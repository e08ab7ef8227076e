"""Engines that generate text. One dictionary literal; to add an engine is to add a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selfalign.engines.base import Engine
from selfalign.recipe import Engine as EngineConfig


def _llama_cpp(gguf: Path | None, adapters: dict[str, Path], config: EngineConfig) -> Engine:
    from selfalign.engines.llama_cpp import LlamaCpp

    assert gguf is not None  # noqa: S101  (only the fake engine goes without weights)
    return LlamaCpp(gguf, adapters, slots=config.slots, context=config.context, threads=config.threads)


def _fake(gguf: Path | None, adapters: dict[str, Path], config: EngineConfig) -> Engine:
    from selfalign.engines.fake import Fake

    return Fake(parallel=config.slots)


ENGINES: dict[str, Callable[[Path | None, dict[str, Path], EngineConfig], Engine]] = {
    "auto": _llama_cpp,
    "llama_cpp": _llama_cpp,
    "fake": _fake,
}


def needs_weights(config: EngineConfig) -> bool:
    """Whether the engine runs a model; the fake one does not."""
    return config.kind != "fake"


def start(config: EngineConfig, gguf: Path | None, adapters: dict[str, Path] | None = None) -> Engine:
    """Start the recipe's engine on the base model in `gguf`, with adapters that requests may name."""
    return ENGINES[config.kind](gguf, adapters or {}, config)
