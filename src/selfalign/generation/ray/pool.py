"""Run the recipe's engine on the workers of a Ray cluster, as one engine.

Each worker is an actor with its own engine, and lives as long as an engine in this process would. Ray Data is no
alternative: each pass would restart the workers, deliver rows in blocks, and end when one worker dies. Requests and
results travel one by one, and the journal stays with the driver, so that a worker that dies loses only the requests
that it was answering.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from selfalign.data.prompt_text import Pieces
from selfalign.generation import engines
from selfalign.generation.engines.base import Completion, OnText, Part, Request, Step
from selfalign.generation.local import Done
from selfalign.generation.ray import cluster
from selfalign.generation.ray.jobs import WorkerJob
from selfalign.generation.ray.supervision import Launch, Supervisor
from selfalign.generation.ray.worker import Worker, WorkerSettings
from selfalign.generation.settings import EngineSettings, ExecutorSettings
from selfalign.model import gguf_adapter
from selfalign.model.base_model import Model
from selfalign.system.version import __version__

_CHECK_SECONDS = 0.1


class Pool:
    """An engine on the workers of a Ray cluster. See `Engine`; `parallel` is the sum over the workers.

    Args:
        executor: the recipe's settings; their kind is ray.
        adapters: name -> PEFT folder, with its GGUF beside it.
        say: receives a message when a worker dies.
        worker: the class of each actor.
        kind: the kind of engine or scorer, which determines the resources of a worker; None is the recipe's engine.
        start: creates the engine in a worker; None is `engines.start`.

    Raises:
        UserError: the cluster is missing or too small, or a worker cannot load the engine.
        Interrupted: a signal came while the workers loaded.
    """

    def __init__(
        self,
        executor: ExecutorSettings,
        config: EngineSettings,
        model: Model,
        adapters: Mapping[str, Path],
        say: Callable[[str], None] = lambda _: None,
        worker: type[Worker] = Worker,
        kind: str | None = None,
        start: Callable[..., Any] | None = None,
    ) -> None:
        import ray

        kind = kind or engines.kind(config)
        self._cluster = cluster.Cluster(executor.address)
        try:
            self.allocation = cluster.allocate(executor, kind, cluster.machines(), config.tensor_parallel_size)
            loads_model = kind in ("llama_cpp", "vllm", "torch")
            files = adapter_files(adapters, kind == "llama_cpp") if loads_model else {}
            settings = WorkerSettings(
                version=__version__,
                engine=config.model_dump(mode="json"),
                model=model.source,
                identity=model.identity,
                adapters=tuple(adapters) if loads_model else (),
                sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
                threads=int(self.allocation.cpus) if not self.allocation.gpus else 0,
                scratch=str(self._cluster.scratch) if self._cluster.scratch else None,
                start=start or engines.start,
            )
            launch = Launch(
                worker, settings, ray.put(files), self.allocation.cpus, self.allocation.gpus, executor.start_seconds
            )
            self.supervisor = Supervisor(launch, self.allocation.workers, say)
        except BaseException:
            self._cluster.close()
            raise
        self.parallel = sum(handle.parallel for handle in self.supervisor.handles)
        self.note = self.supervisor.note

    @property
    def where(self) -> str:
        """A message with the number of workers and machines."""
        workers, machines = self.allocation.workers, self.allocation.machines
        return f"{workers} Ray worker{'s' * (workers > 1)} on {machines} machine{'s' * (machines > 1)}"

    def executor(self) -> RayExecutor:
        """Return an executor for one pass. See `HasExecutor`."""
        self.supervisor.resume()
        return RayExecutor(self.supervisor)

    def generate(self, prompt: Pieces, step: Step, seed: int, adapter: str | None, on_text: OnText = None) -> Part:
        """See `Engine.generate`. The text arrives in one piece."""
        executor = self.executor()
        executor.give("", Request(prompt, (step,), seed, adapter))
        _, result, _ = executor.done.get()
        if isinstance(result, BaseException):
            raise result
        if on_text:
            on_text(result.parts[0].text)
        return result.parts[0]

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """See `Engine.warm_prefix`. Every worker computes the prefix, including workers that start later."""
        return self.supervisor.warm_prefix(prefix, adapter)

    def close(self) -> None:
        """End the workers, and the cluster if it is our own."""
        self.supervisor.close()
        self._cluster.close()


class RayExecutor:
    """The requests of one pass on the pool. See `Executor`."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.done: Done = SimpleQueue()
        self._open: set[str] = set()
        """Keys of the requests without a result."""

    def give(self, key: str, request: Any) -> None:
        """See `Executor`."""
        self._open.add(key)
        self._supervisor.add(WorkerJob(key, request, self._finish))

    def _finish(self, key: str, result: Completion | BaseException, seconds: float) -> None:
        self.done.put((key, result, seconds))
        self._open.discard(key)

    def take_back(self) -> list[str]:
        """See `Executor`."""
        keys = [job.key for job in self._supervisor.take_back()]
        self._open.difference_update(keys)
        return keys

    def close(self) -> list[str]:
        """See `Executor`."""
        not_begun = self.take_back()
        while self._open:
            time.sleep(_CHECK_SECONDS)
            not_begun += self.take_back()  # requests of a worker that died are queued again
        return not_begun


def adapter_files(adapters: Mapping[str, Path], gguf: bool) -> dict[str, bytes]:
    """Read the adapters' files to send to the workers: name below the adapters' folder -> content.

    A PEFT folder's own JSON and safetensors files suffice; an imported one may also contain training checkpoints.
    """
    files: dict[str, bytes] = {}
    for number, folder in enumerate(adapters.values()):
        if gguf:
            files[f"{number}/adapter.gguf"] = gguf_adapter.path_of(folder).read_bytes()
            continue
        for file in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in (".json", ".safetensors")):
            files[f"{number}/adapter/{file.name}"] = file.read_bytes()
    return files
