"""Where requests are answered: by threads of this process (local), or by workers of a Ray cluster (docs/cluster.md).

The loop of `generate` is the same on both, and so are keys, order, commits, counts and files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    from selfalign.generation.engines.base import Engine
    from selfalign.generation.scoring import ScorerKind
    from selfalign.generation.scoring.base import LossScorer, Scorer
    from selfalign.generation.settings import EngineSettings, ExecutorSettings
    from selfalign.model.base_model import Model


def start(
    executor: ExecutorSettings,
    config: EngineSettings,
    model: Model | None,
    adapters: Mapping[str, Path],
    slots: Callable[[], int],
    say: Callable[[str], None],
) -> Engine:
    """The recipe's engine, in this process or on the workers of a cluster; both are used as one engine is.

    Args:
        adapters: name -> PEFT folder, the GGUF form beside it.
        slots: requests at once in this process; asked only where the engine runs here. A worker finds its own.
        say: told of what takes long.

    Raises:
        UserError: the engine, or the cluster, cannot be started.
    """
    if executor.kind == "ray":
        from selfalign.generation.ray.pool import Pool

        return Pool(executor, config, model, adapters, say)
    from selfalign.generation import engines

    return engines.start(config, model, adapters, slots(), say)


@overload
def scorer(
    executor: ExecutorSettings,
    config: EngineSettings,
    model: Model,
    adapters: Mapping[str, Path],
    kind: Literal["torch"],
    dtype: str = ...,
    say: Callable[[str], None] = ...,
) -> LossScorer: ...


@overload
def scorer(
    executor: ExecutorSettings,
    config: EngineSettings,
    model: Model,
    adapters: Mapping[str, Path],
    kind: ScorerKind,
    dtype: str = ...,
    say: Callable[[str], None] = ...,
) -> Scorer: ...


def scorer(
    executor: ExecutorSettings,
    config: EngineSettings,
    model: Model,
    adapters: Mapping[str, Path],
    kind: ScorerKind,
    dtype: str = "float32",
    say: Callable[[str], None] = lambda _: None,
) -> Scorer:
    """The scorer of a run's own models, here or on the workers of a cluster: the same numbers, up to rounding.

    Args:
        adapters: name -> PEFT folder.
        dtype: what vllm computes in; the same on every machine, since scores are known by it.
        say: told of what takes long.

    Raises:
        UserError: it, or the cluster, cannot be started.
    """
    from selfalign.generation import scoring

    start = partial(scoring.start, kind, config.context, dtype, tensor_parallel_size=config.tensor_parallel_size)
    if executor.kind == "ray":
        from selfalign.generation.ray.scorer import RayScorer

        return RayScorer(executor, config, model, adapters, kind, start, say)
    return start(model, adapters, say)


def check(executor: ExecutorSettings) -> None:
    """Say before a run is made that Ray is missing. Raises UserError."""
    if executor.kind == "ray":
        from selfalign.generation.ray import cluster

        cluster.check_installed()
