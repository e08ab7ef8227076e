"""Keep the workers of a Ray cluster running, and give the requests of dead workers to others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from selfalign.data.prompt_text import Pieces
from selfalign.errors import Resumable, SelfAlignError, UserError
from selfalign.generation.engines.base import RowError
from selfalign.generation.ray.jobs import WorkerJob, WorkerQueue, WorkerSlot
from selfalign.generation.ray.worker import Failure, Ready, Result, Worker, WorkerSettings
from selfalign.system.signals import STOP
from selfalign.system.version import __version__

_TAKE_SECONDS = 5.0
"""Seconds that a worker waits for its next result in one call."""
_CALL_SECONDS = 30.0
"""Timeout of a call that a running worker answers at once."""
_JOIN_SECONDS = 30.0
_PREFIXES = 32
"""Number of prefixes that a worker computes when it starts: the last ones that were asked for."""
_MAX_DEATHS_IN_ROW = 4
"""Deaths in a row without a result after which a worker is not restarted, since its engine or machine is at fault."""


@dataclass(frozen=True, slots=True)
class Launch:
    """The parameters that every worker is started with."""

    worker: type[Worker]
    settings: WorkerSettings
    files: Any
    """Reference to the adapters' files in Ray's object store."""
    cpus: float
    gpus: float
    start_seconds: float
    """Maximum seconds for a worker to start, and without any running worker."""


class _WorkerDied(Exception):
    """A worker ended; the message says why."""


class Supervisor:
    """All workers of a pool. The constructor waits until they run. Threads may share it.

    Args:
        say: receives a message when a worker dies.

    Raises:
        UserError: a worker cannot start.
        Resumable: no worker is left.
        Interrupted: a signal came.
    """

    def __init__(self, launch: Launch, workers: int, say: Callable[[str], None]) -> None:
        self.launch = launch
        self.lock = threading.Lock()
        self.closing = False
        self.warm_prefixes: deque[tuple[Pieces, str | None]] = deque(maxlen=_PREFIXES)
        self.note = ""
        self._say = say
        self._changed = threading.Condition(self.lock)
        self._paused = False
        """Whether waiting requests are held back, as after `take_back`."""
        self._error: SelfAlignError | None = None
        """The error that every request gets once no worker is left."""
        self._idle_since = time.monotonic()
        """The time since which no worker has run."""
        self.handles: list[WorkerHandle] = []
        self.queue = WorkerQueue(self.handles)
        self.handles += [WorkerHandle(self, number) for number in range(workers)]
        for handle in self.handles:
            handle.thread.start()
        try:
            self._wait_for_workers()
        except BaseException:
            self.close()
            raise

    def _wait_for_workers(self) -> None:
        """Wait until every worker runs; after `start_seconds`, until one does."""
        deadline = time.monotonic() + self.launch.start_seconds
        with self._changed:
            while True:
                if error := next((h.start_error for h in self.handles if h.start_error), ""):
                    raise UserError(error)
                STOP.check()
                running = sum(handle.parallel > 0 for handle in self.handles)
                if running == len(self.handles) or (time.monotonic() > deadline and running):
                    return
                if self._error:
                    raise self._error
                self._changed.wait(0.2)

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """See `Engine.warm_prefix`. Every worker computes the prefix, including workers that start later."""
        import ray

        with self.lock:
            if (prefix, adapter) not in self.warm_prefixes:
                self.warm_prefixes.append((prefix, adapter))
        notes = []
        for reference in [actor.warm_prefix.remote(prefix, adapter) for actor in self._running()]:
            with suppress(ray.exceptions.RayError):  # the handle's thread notices the death
                notes.append(ray.get(reference))
        return notes[0] if notes else "never computed"

    def _running(self) -> list[Any]:
        """Return the actors whose engine is loaded."""
        with self.lock:
            return [h.actor for h in self.handles if h.parallel and h.actor is not None]

    def close(self) -> None:
        """End all workers."""
        import ray

        with self._changed:
            self.closing = True
            self._changed.notify_all()
        if ending := [actor.close.remote() for actor in self._running()]:
            ray.wait(ending, num_returns=len(ending), timeout=_CALL_SECONDS)
        for handle in self.handles:
            handle.kill()
        for handle in self.handles:
            handle.thread.join(_JOIN_SECONDS)

    # -- requests ------------------------------------------------------------------------------------------------

    def add(self, job: WorkerJob) -> None:
        """Give a request to a worker with room, or queue it."""
        with self.lock:
            if self._error:
                job.sink(job.key, self._error, 0.0)
                return
            self.queue.waiting.append(job)
            self._dispatch()

    def resume(self) -> None:
        """Hand out requests again after `take_back`."""
        with self.lock:
            self._paused = False

    def _dispatch(self) -> None:
        """Send waiting requests to workers with room. The caller holds the lock."""
        if not self._paused and not self.closing:
            for handle, batch in self.queue.assign().items():
                handle.send(batch)

    def take_back(self) -> list[WorkerJob]:
        """Take back the requests that no engine has begun, and hold back all others until `resume`."""
        import ray

        with self.lock:
            first, self._paused = not self._paused, True
            jobs = self.queue.withdraw()
            busy = [(h, h.actor) for h in self.handles if h.in_flight] if first else []
        for handle, actor in busy:
            try:
                tickets = ray.get(actor.take_back.remote(), timeout=_CALL_SECONDS)
            except ray.exceptions.GetTimeoutError:
                # It is unknown what the worker gave back. Once it is dead, all its requests are queued again.
                ray.kill(actor)
                continue
            except (ray.exceptions.RayError, AttributeError):
                continue  # the worker is dead: its requests are queued again, and the next call takes them back
            with self.lock:
                jobs += [job for ticket in tickets if (job := self.queue.finish(handle, ticket))]
        return jobs

    # -- called by the workers' threads --------------------------------------------------------------------------

    def on_ready(self, handle: WorkerHandle, ready: Ready) -> None:
        """Record that a worker has loaded its engine."""
        with self._changed:
            handle.parallel, note = ready
            self.note = self.note or note
            self._dispatch()
            self._changed.notify_all()

    def on_results(self, handle: WorkerHandle, results: list[Result]) -> None:
        """Pass a worker's results to their sinks."""
        with self.lock:
            for ticket, result, seconds in results:
                if job := self.queue.finish(handle, ticket):
                    job.sink(job.key, _raisable(result), seconds)
            self._dispatch()

    def on_death(self, handle: WorkerHandle, reason: str) -> int:
        """Give a dead worker's requests to others; return how many fail as poison requests."""
        with self._changed:
            if self.closing:
                return 0
            if handle.parallel:
                self._say(f"  a Ray worker died ({reason[:160]}): a new one replaces it, and others get its requests")
            poison = self.queue.reassign(handle, reason)
            if not any(h.parallel for h in self.handles):
                self._idle_since = time.monotonic()
            self._dispatch()
            self._changed.notify_all()
            return poison

    def on_gone(self, handle: WorkerHandle, reason: str) -> None:
        """Record that a worker is not restarted. If none is left, every request ends with an error."""
        with self._changed:
            handle.gone = True
            if all(h.gone for h in self.handles) and not self._error and not self.closing:
                self._error = Resumable(
                    f"no Ray worker is left ({reason[:300]}): check the cluster, then run the same command again"
                )
                for job in self.queue.clear():
                    job.sink(job.key, self._error, 0.0)
            self._changed.notify_all()

    def idle_too_long(self) -> bool:
        """Return whether no worker has run for longer than a worker may take to start."""
        with self.lock:
            idle = not any(h.parallel for h in self.handles)
            return idle and time.monotonic() - self._idle_since > self.launch.start_seconds


class WorkerHandle(WorkerSlot):
    """One worker of a pool. Its thread starts the worker, receives results, and starts a new one when it dies."""

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        super().__init__(supervisor.launch.worker.ahead)
        self._supervisor = supervisor
        self.actor: Any = None
        self.start_error = ""
        """Why the first worker of this handle could not start; empty if it did."""
        self.gone = False
        self._was_ready = False
        self._sent: list[Any] = []
        """Ray's references to the calls that send requests."""
        self.thread = threading.Thread(target=self._run, name=f"ray-{number}", daemon=True)

    def send(self, batch: list[tuple[int, Any]]) -> None:
        """Send requests without waiting. The caller holds the supervisor's lock."""
        import ray

        try:
            self._sent.append(self.actor.give.remote(batch))
        except Exception:
            ray.kill(self.actor)  # the thread notices the death and queues the requests again

    def kill(self) -> None:
        """End the worker."""
        import ray

        with self._supervisor.lock:
            actor, self.actor = self.actor, None
            self._sent = []
        if actor is not None:
            ray.kill(actor)

    def _run(self) -> None:
        """Run a worker, and a new one whenever it dies, until the pool closes or the workers keep dying."""
        supervisor, deaths = self._supervisor, 0
        while not supervisor.closing:
            try:
                ready = self._start_worker()
                self._was_ready = True
                supervisor.on_ready(self, ready)
                while not supervisor.closing:
                    deaths = 0 if self._receive() else deaths
            except Exception as error:  # of any kind: if this thread ended, its requests would never finish
                deaths = 0 if supervisor.on_death(self, _reason(error)) else deaths + 1
                self.kill()
                if self.start_error or deaths >= _MAX_DEATHS_IN_ROW or supervisor.idle_too_long():
                    supervisor.on_gone(self, _reason(error))
                    return
                time.sleep(min(10.0, 0.5 * 2**deaths) if deaths > 1 else 0.0)

    def _start_worker(self) -> Ready:
        """Start a worker and load its engine.

        Raises:
            _WorkerDied: it could not be started, refused its settings, or died meanwhile.
        """
        import ray

        supervisor, launch = self._supervisor, self._supervisor.launch
        try:
            actor_class = ray.remote(launch.worker).options(
                num_cpus=launch.cpus,
                num_gpus=launch.gpus,
                max_concurrency=6,
                max_restarts=0,
                scheduling_strategy="SPREAD",
            )
            self.actor = actor_class.remote()
            started = self.actor.start.remote(launch.settings, launch.files)
            while not ray.wait([started], timeout=0.5)[0]:
                if supervisor.closing or supervisor.idle_too_long():
                    raise _WorkerDied(f"none could be started within {launch.start_seconds:.0f} s")
            answer = ray.get(started)
            if isinstance(answer, str):
                raise _WorkerDied(answer)
            for prefix, adapter in list(supervisor.warm_prefixes):
                ray.get(self.actor.warm_prefix.remote(prefix, adapter))
            return answer  # type: ignore[no-any-return]
        except Exception as error:  # from Ray, from us, or from settings that Ray refuses
            text = _reason(error)
            if not self._was_ready and not supervisor.closing:
                self.start_error = f"a Ray worker cannot start: {text}"
            raise _WorkerDied(text) from None

    def _receive(self) -> bool:
        """Wait a few seconds for results and pass them on; return whether there were any.

        Raises:
            _WorkerDied: the worker died, or its engine failed.
        """
        import ray

        with self._supervisor.lock:
            sent, self._sent = self._sent, []
        try:
            ray.get(sent)  # raises if requests did not arrive
            results: list[Result] = ray.get(self.actor.take.remote(_TAKE_SECONDS))
        except ray.exceptions.RayError as error:
            raise _WorkerDied(_reason(error)) from None
        failed = [r[1].text for r in results if isinstance(r[1], Failure) and r[1].kind == "engine"]
        finished = [r for r in results if not (isinstance(r[1], Failure) and r[1].kind == "engine")]
        self._supervisor.on_results(self, finished)
        if failed:
            raise _WorkerDied(failed[0])
        return bool(finished)


def _raisable(result: Any) -> Any:
    """Return a worker's result, with a `Failure` turned back into the exception that it stands for."""
    if not isinstance(result, Failure):
        return result
    kinds: dict[str, type[Exception]] = {"row": RowError, "user": UserError}
    return kinds[result.kind](result.text) if result.kind in kinds else RuntimeError(f"in a Ray worker:\n{result.text}")


def _reason(error: BaseException) -> str:
    """Return in one line why a worker died."""
    text = str(error)
    if "No module named" in text:
        line = next((line for line in text.splitlines() if "No module named" in line), "").strip()
        return f"{line}: install selfalign {__version__} with the same extras on every machine"
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause or text).splitlines() if line.strip()]
    return " ".join(lines)[-300:] if cause else " ".join(lines[:6])[:300]
