"""Run the recipe's engine inside a Ray worker, called from threads as in a single process.

Only records, texts and numbers travel between worker and driver. This module does not import Ray. `scorer` defines the
worker that scores.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from selfalign.data.prompt_text import Pieces
from selfalign.errors import SelfAlignError, UserError
from selfalign.generation.engines.base import Completion, Request, RowError, answer
from selfalign.generation.local import LocalExecutor
from selfalign.generation.ray.jobs import AHEAD
from selfalign.system.version import __version__

if TYPE_CHECKING:
    from selfalign.generation.settings import EngineSettings
    from selfalign.model.base_model import Model

Files = dict[str, bytes]
"""Name below the adapters' folder -> content; the first folder of a name is an adapter's index in the settings."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The engine, model and adapters of a worker."""

    version: str
    """The driver's version of selfalign."""
    engine: dict[str, object]
    """The recipe's engine settings, as JSON."""
    model: str
    """The model's source in the recipe."""
    identity: str
    """The hash of the driver's weights."""
    adapters: tuple[str, ...]
    """Names of the adapters, which may be invalid as file names; the files are sent separately."""
    sha256: Mapping[str, str]
    """Name in `Files` -> hash of the content."""
    threads: int
    """Threads of an engine whose own setting is 0 (all cores); 0 leaves the setting."""
    scratch: str | None
    """A folder for temporary files that driver and worker share; None is the system's."""
    start: Callable[..., Any]
    """Creates the engine, as `engines.start`."""


Ready = tuple[int, str]
"""The reply of a worker whose engine is loaded: (its concurrent requests, its note)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The reply to a request without a completion."""

    kind: Literal["row", "engine", "user", "bug"]
    """row: this request cannot be answered; engine: the engine failed, and with it the worker; user: the text is an
    error for the user; bug: the text is the traceback of an unexpected error."""
    text: str


Result = tuple[int, Any, float]
"""(ticket, completion or another result or `Failure`, the engine's seconds)"""


class Worker:
    """A worker with one engine. Its methods may be called concurrently."""

    ahead: ClassVar[int] = AHEAD
    """See `jobs.AHEAD`."""

    def __init__(self) -> None:
        self._loaded: list[Any] = []
        """The engine; empty until it is loaded."""
        self._executor: LocalExecutor[Any, Any]
        self._folder: Path | None = None

    def start(self, settings: WorkerSettings, files: Files) -> Ready | str:
        """Check version, model and adapters, then load the engine; return what to change if that fails."""
        if __version__ != settings.version:
            return f"it has selfalign {__version__}, this command {settings.version}: install the same there"
        if settings.scratch:
            tempfile.tempdir = settings.scratch
        try:
            return self._start(settings, files)
        except SelfAlignError as error:
            return str(error)

    def _start(self, settings: WorkerSettings, files: Files) -> Ready | str:
        from selfalign.generation import engines
        from selfalign.generation.settings import EngineSettings

        config = EngineSettings.model_validate(settings.engine)
        if settings.threads and not config.threads:
            config = config.model_copy(update={"threads": settings.threads})
        model = engines.base_model(settings.model, config)
        if model.identity != settings.identity:
            return (
                f"its {settings.model} holds other weights ({model.identity}) than this machine's "
                f"({settings.identity}): copy the same files there"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="selfalign-worker-"))
        if name := write_files(files, settings.sha256, self._folder):
            return f"the adapter's file {name} arrived incomplete or altered: run the same command again"
        adapters = {name: self._folder / str(number) / "adapter" for number, name in enumerate(settings.adapters)}
        return self._load(settings, config, model, adapters)

    def _load(
        self, settings: WorkerSettings, config: EngineSettings, model: Model, adapters: Mapping[str, Path]
    ) -> Ready:
        """Load the engine."""
        from selfalign.generation import engines

        engines.check(config)
        slots = engines.slots(config, lambda: _calibrated(config, model))
        engine = settings.start(config, model, adapters, slots)
        self._loaded = [engine]
        self._executor = LocalExecutor[Request, Completion](lambda request: answer(engine, request), engine.parallel)
        return engine.parallel, engine.note

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """See `Engine.warm_prefix`."""
        return str(self._loaded[0].warm_prefix(prefix, adapter))

    def give(self, items: list[tuple[int, Any]]) -> None:
        """Take (ticket, request) pairs to answer."""
        for ticket, request in items:
            self._executor.give(str(ticket), request)

    def take(self, seconds: float) -> list[Result]:
        """Return finished requests; wait up to `seconds` for the first."""
        results: list[Result] = []
        try:
            while len(results) < 256:
                key, result, spent = self._executor.done.get(timeout=0 if results else seconds)
                results.append((int(key), _sendable(result), spent))
        except Empty:
            pass
        return results

    def take_back(self) -> list[int]:
        """Return the tickets of the requests that the engine has not begun; it never answers them."""
        return [int(key) for key in self._executor.take_back()]

    def close(self) -> None:
        """Free the engine and remove the adapters' files."""
        for engine in self._loaded:
            engine.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _calibrated(config: EngineSettings, model: Model) -> int:
    """Return the best number of slots on this machine; workers that share a machine measure one after the other."""
    from selfalign.generation import calibration
    from selfalign.model.conversion import folder_lock
    from selfalign.system.environment import cache_subfolder

    with folder_lock(cache_subfolder("calibration") / "workers"):
        return calibration.calibrate(model.gguf, model.identity, config.context, config.threads).slots


def write_files(files: Files, sha256: Mapping[str, str], folder: Path) -> str:
    """Write the files below the folder; return the name of one that is missing or does not match its hash, or ""."""
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != sha256[name]:
            return name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return next((name for name in sha256 if name not in files), "")


def _sendable(result: Any) -> Any:
    """Return the result; an exception becomes a `Failure`."""
    match result:
        case RowError():
            return Failure("row", str(result))
        case UserError():
            return Failure("user", str(result))
        case SelfAlignError():
            return Failure("engine", str(result))
        case BaseException():
            return Failure("bug", "".join(traceback.format_exception(result)))
    return result
