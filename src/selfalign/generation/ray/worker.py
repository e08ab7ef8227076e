"""What runs inside a Ray worker: the recipe's engine, and the same threads around it as in one process.

All that crosses is plain: our records, texts, numbers. Nothing here imports Ray. A worker that scores is one of these,
too (ray_scorer.py).
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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from selfalign.data.prompt_text import Pieces
from selfalign.errors import SelfAlignError
from selfalign.generation.engines.base import Completion, Request, RowError, answer
from selfalign.generation.local import LocalCrew
from selfalign.generation.ray.sharing import AHEAD
from selfalign.system.version import __version__

if TYPE_CHECKING:
    from selfalign.generation.settings import EngineSettings
    from selfalign.model.base_model import Model

Files = dict[str, bytes]
"""Name below the adapters' folder -> content; a folder there is an adapter's place in the order."""


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
    """Names, which are no names of files; their files come beside the order."""
    sha256: Mapping[str, str]
    """Of each of these files."""
    threads: int
    """For an engine whose own setting is 0, all cores; 0 leaves it."""
    scratch: str | None
    """A folder for temporary files, where driver and worker share one; None is the system's."""
    start: Callable[..., Any]
    """What makes the engine: `engines.start`."""


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

    kind: Literal["row", "engine", "user", "bug"]
    """row: this request cannot be answered; engine: none can by this worker; user: a line for the user; bug: an error
    of ours, text is its trace."""
    text: str


Result = tuple[int, Any, float]
"""Ticket; a completion, or what else was asked for, or a Failure; the engine's seconds."""


class Worker:
    """One engine. Methods are called from several threads: give and take while the engine's own threads work."""

    ahead: ClassVar[int] = AHEAD
    """See `Board`."""

    def __init__(self) -> None:
        self._loaded: list[Any] = []
        """The engine, once it is there."""
        self._crew: LocalCrew[Any, Any]
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
        from selfalign.generation import engines
        from selfalign.generation.settings import EngineSettings

        config = EngineSettings.model_validate(order.engine)
        if order.threads and not config.threads:
            config = config.model_copy(update={"threads": order.threads})
        self._check(config)
        model = engines.base_model(order.model, config) if order.model is not None else None
        if model and model.identity != order.identity:
            return Refusal(
                f"its {order.model} holds other weights ({model.identity}) than this machine's ({order.identity}): "
                "put the same files there"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="selfalign-worker-"))
        if wrong := _written(files, order.sha256, self._folder):
            return Refusal(f"the adapter's file {wrong} did not arrive whole: run the same command again")
        adapters = {name: self._folder / str(place) / "adapter" for place, name in enumerate(order.adapters)}
        slots, note = self._load(order, config, model, adapters)
        return Ready(slots, note, platform.node(), os.getpid())

    def _check(self, config: EngineSettings) -> None:
        """What would stop the engine, before the model is looked at."""
        from selfalign.generation import engines

        engines.check(config)

    def _load(
        self, order: Order, config: EngineSettings, model: Model | None, adapters: Mapping[str, Path]
    ) -> tuple[int, str]:
        """Load the engine and set a crew around it; returns (requests at once, the engine's note)."""
        from selfalign.generation import engines

        slots = engines.slots(config, lambda: _calibrated(config, model))
        engine = order.start(config, model, adapters, slots)
        self._loaded = [engine]
        self._crew = LocalCrew[Request, Completion](lambda request: answer(engine, request), engine.parallel)
        return engine.parallel, engine.note

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """See `Engine.warm_prefix`."""
        return str(self._loaded[0].warm_prefix(prefix, adapter))

    def give(self, items: list[tuple[int, Any]]) -> None:
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


def _calibrated(config: EngineSettings, model: Model | None) -> int:
    """As many slots as this machine does best; workers that share a machine measure one after the other."""
    from selfalign.generation import calibration, engines
    from selfalign.model.conversion import folder_lock
    from selfalign.system.environment import cache_folder

    if model is None:
        return engines.default_slots(config)
    with folder_lock(cache_folder() / "calibration" / "workers"):
        found = calibration.calibrate(model.gguf, model.identity, config.context, config.threads)
    return found.slots


def _written(files: Files, sha256: Mapping[str, str], folder: Path) -> str:
    """Write the files below the folder; returns the name of one that is not what was sent."""
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != sha256[name]:
            return name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return next((name for name in sha256 if name not in files), "")


def _plain(result: Any) -> Any:
    """A result as it is, an exception as a Failure."""
    if not isinstance(result, BaseException):
        return result
    if isinstance(result, RowError):
        return Failure("row", str(result))
    if isinstance(result, SelfAlignError):
        return Failure("engine", str(result))
    import traceback

    return Failure("bug", "".join(traceback.format_exception(result)))
