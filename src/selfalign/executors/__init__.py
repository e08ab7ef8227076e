"""Where requests are answered: by threads of this process (local), or by workers of a Ray cluster (docs/cluster.md).

The loop of `generate` is the same on both, and so are keys, order, commits, counts and files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfalign.engines.base import Engine
    from selfalign.executors.settings import Executor
    from selfalign.models import Model
    from selfalign.recipe import Engine as EngineConfig


def start(
    executor: Executor,
    config: EngineConfig,
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
        from selfalign.executors.ray import Pool

        return Pool(executor, config, model, adapters, say)
    from selfalign import engines

    return engines.start(config, model, adapters, slots(), say)


def check(executor: Executor) -> None:
    """Say before a run is made that Ray is missing. Raises UserError."""
    if executor.kind == "ray":
        from selfalign.executors import cluster

        cluster.check_installed()
