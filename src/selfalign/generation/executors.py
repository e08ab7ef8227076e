"""Start the recipe's engine or scorer in this process (local) or on the workers of a Ray cluster (docs/cluster.md).

The generation loop, keys, order, commits, counts and files are the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfalign.generation.engines.base import Engine
    from selfalign.generation.scoring import ScorerKind
    from selfalign.generation.scoring.base import Scorer
    from selfalign.generation.settings import EngineSettings, ExecutorSettings
    from selfalign.model.base_model import Model


def start(
    executor: ExecutorSettings,
    config: EngineSettings,
    model: Model,
    adapters: Mapping[str, Path],
    slots: Callable[[], int],
    say: Callable[[str], None],
    log: Path | None = None,
) -> Engine:
    """Start the recipe's engine. See `engines.start` and `Pool`.

    Args:
        slots: returns the number of slots of an engine in this process; Ray workers determine their own.
        log: the file for the output of an engine that is a process of its own.
    """
    if executor.kind == "ray":
        from selfalign.generation.ray.pool import Pool

        return Pool(executor, config, model, adapters, say)
    from selfalign.generation import engines

    return engines.start(config, model, adapters, slots(), say, log)


def scorer(
    executor: ExecutorSettings,
    config: EngineSettings,
    model: Model,
    adapters: Mapping[str, Path],
    kind: ScorerKind,
    dtype: str = "float32",
    say: Callable[[str], None] = lambda _: None,
) -> Scorer:
    """Start the scorer of a run's own models. On Ray it returns the same numbers, up to rounding.

    Args:
        dtype: see `scoring.start`; the same on every machine, since it is part of a score's identity.
    """
    from selfalign.generation import scoring

    start = partial(scoring.start, kind, config.context, dtype, tensor_parallel_size=config.tensor_parallel_size)
    if executor.kind == "ray":
        from selfalign.generation.ray.scorer import RayScorer

        return RayScorer(executor, config, model, adapters, kind, start, say)
    return start(model, adapters, say)


def check(executor: ExecutorSettings) -> None:
    """Check that Ray is installed if the recipe needs it. Raises UserError."""
    if executor.kind == "ray":
        from selfalign.generation.ray import cluster

        cluster.check_installed()
