"""What runs inside a Ray worker: the recipe's engine, and the same threads around it as in one process.

All that crosses is plain: our records, texts, numbers. Nothing here imports Ray.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Literal

from selfalign import __version__
from selfalign.engines.base import Completion, Engine, Pieces, Request, RowError
from selfalign.errors import SelfAlignError
from selfalign.executors.local import LocalCrew

if TYPE_CHECKING:
    from selfalign.models import Model
    from selfalign.recipe import Engine as EngineConfig

Files = dict[str, bytes]
"""Name below the adapters' folder -> content."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is to be."""

    version: str
    """Of selfalign, on the driver."""
    engine: dict[str, object]
    """The recipe's part, as it is dumped."""
    model: str | None
    """As the recipe names it; None where the engine needs none."""
    identity: str
    """The hash of the driver's weights."""
    adapters: tuple[str, ...]
    """Names; their files come beside the order."""
    sha256: Mapping[str, str]
    """Of each of these files."""
    threads: int
    """For an engine whose own setting is 0, all cores; 0 leaves it."""
    scratch: str | None
    """A folder for temporary files, where driver and worker share one; None is the system's."""
    start: Callable[..., Engine]
    """`engines.start`."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker whose engine is loaded."""

    slots: int
    note: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A worker that cannot be what it should: the user's to mend."""

    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without a completion."""

    kind: Literal["row", "engine", "bug"]
    """row: this request cannot be answered; engine: none can; bug: an error of ours, text is its trace."""
    text: str


Result = tuple[int, Completion | Failure, float]


class Worker:
    """One engine. Methods are called from several threads: give and take while the engine's own threads work."""

    def __init__(self) -> None:
        self._loaded: list[Engine] = []
        self._folder: Path | None = None

    def start(self, order: Order, files: Files) -> Ready | Refusal:
        """Check versions, model and adapters, and load the engine."""
        if __version__ != order.version:
            return Refusal(f"it has selfalign {__version__}, this command {order.version}: install the same there")
        if order.scratch:
            tempfile.tempdir = order.scratch
        try:
            return self._started(order, files)
        except SelfAlignError as error:
            return Refusal(str(error))

    def _started(self, order: Order, files: Files) -> Ready | Refusal:
        from selfalign import engines, models
        from selfalign.recipe import Engine as EngineConfig

        config = EngineConfig.model_validate(order.engine)
        if order.threads and not config.threads:
            config = config.model_copy(update={"threads": order.threads})
        engines.check(config)
        model = models.resolve(order.model) if order.model is not None else None
        if model and model.identity != order.identity:
            return Refusal(
                f"its {order.model} holds other weights ({model.identity}) than this machine's ({order.identity}): "
                "put the same files there"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="selfalign-worker-"))
        if wrong := _written(files, order.sha256, self._folder):
            return Refusal(f"the adapter's file {wrong} did not arrive whole: run the same command again")
        adapters = {name: self._folder / name / "adapter" for name in order.adapters}
        slots = engines.slots(config, lambda: _calibrated(config, model))
        engine = order.start(config, model, adapters, slots)
        self._loaded = [engine]
        self._crew = LocalCrew(engine)
        return Ready(engine.parallel, engine.note, platform.node(), os.getpid())

    def prime(self, prefix: Pieces, adapter: str | None) -> str:
        """See `Engine.prime`."""
        return self._loaded[0].prime(prefix, adapter)

    def give(self, items: list[tuple[int, Request]]) -> None:
        """Requests to be answered, with their tickets."""
        for ticket, request in items:
            self._crew.give(str(ticket), request)

    def take(self, seconds: float) -> list[Result]:
        """What has finished: waits for the first so long, and for no more."""
        found: list[Result] = []
        try:
            while len(found) < 256:
                key, result, spent = self._crew.done.get(timeout=0 if found else seconds)
                found.append((int(key), _plain(result), spent))
        except Empty:
            pass
        return found

    def take_back(self) -> list[int]:
        """Tickets of requests that were not begun; none will be."""
        return [int(key) for key in self._crew.take_back()]

    def close(self) -> None:
        """Free the engine, and remove what was written."""
        for engine in self._loaded:
            engine.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _calibrated(config: EngineConfig, model: Model | None) -> int:
    """As many slots as this machine does best; workers that share a machine measure one after the other."""
    from selfalign import calibrate, engines
    from selfalign.conversion import alone
    from selfalign.models import cache_folder

    if model is None:
        return engines.default_slots(config)
    with alone(cache_folder() / "calibration" / "workers"):
        found = calibrate.calibration(model.gguf, model.identity, config.context, config.threads)
    return found.slots


def _written(files: Files, sha256: Mapping[str, str], folder: Path) -> str:
    """Write the files below the folder; returns the name of one that is not what was sent."""
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != sha256[name]:
            return name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return next((name for name in sha256 if name not in files), "")


def _plain(result: Completion | BaseException) -> Completion | Failure:
    if isinstance(result, Completion):
        return result
    if isinstance(result, RowError):
        return Failure("row", str(result))
    if isinstance(result, SelfAlignError):
        return Failure("engine", str(result))
    import traceback

    return Failure("bug", "".join(traceback.format_exception(result)))
