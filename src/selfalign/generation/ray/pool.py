"""The recipe's engine on the workers of a Ray cluster: actors, each with an engine, that live as long as one would.

Not Ray Data: a pass of it makes its workers anew, hands rows on in blocks, and ends where one worker does. Requests go
out and results come back one by one; the journal stays with the driver, so that a worker that dies takes nothing with
it but the time of what it was answering.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from selfalign.data.prompt_text import Pieces
from selfalign.errors import Resumable, SelfAlignError, UserError
from selfalign.generation import engines
from selfalign.generation.engines.base import Completion, Part, Request, RowError, Step
from selfalign.generation.local import Done
from selfalign.generation.ray import cluster
from selfalign.generation.ray.sharing import Board, Item
from selfalign.generation.ray.supervision import Hand
from selfalign.generation.ray.worker import Failure, Order, Ready, Result, Worker
from selfalign.generation.settings import EngineSettings, ExecutorSettings
from selfalign.model.base_model import Model
from selfalign.system.signals import STOP
from selfalign.system.version import __version__

_CALL_SECONDS = 30.0
"""A call that a living worker answers at once."""


class Pool:
    """See `Engine`: used as one, with the workers' requests at once taken together.

    Args:
        executor: the recipe's part; its kind is ray.
        model: None with the fake engine.
        adapters: name -> PEFT folder, the GGUF form beside it.
        say: told of workers that died and came back.
        worker: what runs in each actor.
        kind: what computes there, for the share that it takes; None is the recipe's engine.
        start: what makes it; None is `engines.start`.

    Raises:
        UserError: there is no such cluster, no room on it, or a worker cannot load the engine.
        Interrupted: a signal came while they loaded.
    """

    def __init__(
        self,
        executor: ExecutorSettings,
        config: EngineSettings,
        model: Model | None,
        adapters: Mapping[str, Path],
        say: Callable[[str], None] = lambda _: None,
        worker: type[Worker] = Worker,
        kind: str | None = None,
        start: Callable[..., Any] | None = None,
    ) -> None:
        self.executor, self.worker = executor, worker
        kind = kind or engines.kind(config)
        self._say = say
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self.board = Board(worker.ahead)
        self._closing = False
        self._stopping = False
        self._broken: SelfAlignError | None = None
        self._bare_since = time.monotonic()
        """Since when no worker is there."""
        self.warmed: dict[str | None, Pieces] = {}
        self.note = ""
        self._cluster = cluster.Cluster(executor.address)
        self._hands: list[Hand] = []
        try:
            self.shape = cluster.shape(executor, kind, cluster.machines(), config.tensor_parallel_size)
            self.order, self.files = self._made(config, model, adapters, kind, start or engines.start)
            self._hands = [Hand(self, number) for number in range(self.shape.workers)]
            self._wait_for_all()
        except BaseException:
            self.close()
            raise
        self.parallel = sum(hand.seat.slots for hand in self._hands)

    @property
    def where(self) -> str:
        """For the user: how many workers, on what."""
        machines, workers = self.shape.machines, self.shape.workers
        return (
            f"{workers} Ray {'worker' if workers == 1 else 'workers'} on {machines} "
            f"{'machine' if machines == 1 else 'machines'}"
        )

    def _made(
        self,
        config: EngineSettings,
        model: Model | None,
        adapters: Mapping[str, Path],
        kind: str,
        start: Callable[..., Any],
    ) -> tuple[Order, Any]:
        import ray

        here = kind in ("llama_cpp", "vllm", "torch")
        files = _contents(adapters, kind == "llama_cpp") if here else {}
        order = Order(
            version=__version__,
            engine=config.model_dump(mode="json"),
            model=model.source if model else None,
            identity=model.identity if model else "",
            adapters=tuple(adapters) if here else (),
            sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            threads=int(self.shape.cpus) if not self.shape.gpus else 0,
            scratch=str(self._cluster.scratch) if self._cluster.scratch else None,
            start=start,
        )
        return order, ray.put(files)

    def _wait_for_all(self) -> None:
        """Until every worker is there; after `start_seconds`, until there is any."""
        until = time.monotonic() + self.executor.start_seconds
        with self._changed:
            while True:
                if refused := next((h for h in self._hands if h.refused), None):
                    raise UserError(refused.refused)
                STOP.check()
                missing = [h for h in self._hands if not h.seat.slots]
                if not missing or (time.monotonic() > until and len(missing) < len(self._hands)):
                    return
                if self._broken:
                    raise self._broken
                self._changed.wait(0.2)

    # -- as an engine --------------------------------------------------------------------------------------------

    def crew(self) -> RayCrew:
        """See `Crewed`."""
        with self.lock:
            self._stopping = False
        return RayCrew(self)

    def generate(
        self,
        prompt: Pieces,
        step: Step,
        seed: int,
        adapter: str | None,
        on_text: Callable[[str], bool] | None = None,
    ) -> Part:
        """See `Engine.generate`; the text comes as a whole."""
        crew = self.crew()
        crew.give("", Request(prompt, (step,), seed, adapter))
        _, result, _ = crew.done.get()
        if isinstance(result, BaseException):
            raise result
        if on_text:
            on_text(result.parts[0].text)
        return result.parts[0]

    def warm_prefix(self, prefix: Pieces, adapter: str | None) -> str:
        """See `Engine.warm_prefix`: every worker computes it, and each that comes later."""
        import ray

        with self.lock:
            self.warmed = {adapter: prefix}
            actors = [h.actor for h in self._hands if h.seat.slots]
        said = []
        for reference in [actor.warm_prefix.remote(prefix, adapter) for actor in actors]:
            try:
                said.append(ray.get(reference))
            except ray.exceptions.RayError:
                continue  # who listens to that worker will hear of it
        return said[0] if said else "never computed"

    def close(self) -> None:
        """End the workers and, where it is our own, the cluster."""
        import ray

        with self._changed:
            self._closing = True
            actors = [h.actor for h in self._hands if h.actor is not None]
            loaded = [h.actor for h in self._hands if h.seat.slots and h.actor is not None]
            self._changed.notify_all()
        for hand in self._hands:
            hand.wake()
        if ending := [actor.close.remote() for actor in loaded]:
            ray.wait(ending, num_returns=len(ending), timeout=_CALL_SECONDS)
        for actor in actors:
            ray.kill(actor)
        for hand in self._hands:
            hand.join()
        self._cluster.close()

    # -- requests ------------------------------------------------------------------------------------------------

    def add(self, item: Item) -> None:
        """A request more, for whichever worker has room."""
        with self.lock:
            if self._broken:
                item.sink(item.key, self._broken, 0.0)
                return
            self.board.add(item)
            self._share()

    def _share(self) -> None:
        """With the lock held."""
        if self._stopping or self._closing:
            return
        for seat in self.board.share():
            self._hands[self.board.seats.index(seat)].sends.notify()

    def take_back(self, mine: Callable[[Item], bool]) -> list[Item]:
        """Requests of this kind that no engine has begun; none is given out from here on, until the next crew."""
        import ray

        with self.lock:
            first, self._stopping = not self._stopping, True
            found = self.board.waiting(mine)
            busy = [h for h in self._hands if h.seat.flying] if first else []
        for hand in busy:
            actor = hand.actor
            try:
                tickets = ray.get(actor.take_back.remote(), timeout=_CALL_SECONDS)
            except ray.exceptions.GetTimeoutError:
                ray.kill(actor)  # what it gave up is not known: where it is dead, all that it had waits again
                continue
            except (ray.exceptions.RayError, AttributeError):
                continue  # the worker is gone: its requests wait again, and are found by the next call
            with self.lock:
                items = [self.board.finished(hand.seat, ticket) for ticket in tickets]
                found += [item for item in items if item]
        with self.lock:
            for item in found:
                if not mine(item):
                    self.board.add(item)
        return [item for item in found if mine(item)]

    # -- workers, each from a thread of its own ------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._closing

    def up(self, hand: Hand, ready: Ready) -> None:
        """A worker is there."""
        with self._changed:
            hand.seat.slots = ready.slots
            self.note = self.note or ready.note
            self._share()
            self._changed.notify_all()

    def received(self, hand: Hand, results: list[Result]) -> None:
        """What a worker has finished."""
        with self.lock:
            for ticket, result, seconds in results:
                if item := self.board.finished(hand.seat, ticket):
                    item.sink(item.key, _result(result), seconds)
            self._share()

    def down(self, hand: Hand, why: str) -> int:
        """A worker has died; returns how many requests were given up as its killers."""
        with self._changed:
            if self._closing:
                return 0
            if hand.seat.slots:
                self._say(f"  a Ray worker died ({why[:160]}): its requests go to others, and another takes its place")
            given_up = self.board.died(hand.seat, why)
            if not any(h.seat.slots for h in self._hands):
                self._bare_since = time.monotonic()
            self._share()
            self._changed.notify_all()
            return given_up

    def out(self, hand: Hand, why: str) -> None:
        """A worker does not come back. Where none is left, every request ends with that."""
        with self._changed:
            hand.gone = True
            if all(h.gone for h in self._hands) and not self._broken and not self._closing:
                self._broken = Resumable(
                    f"no Ray worker is left ({why[:300]}): see to the cluster, then run the same command again"
                )
                for item in self.board.all():
                    item.sink(item.key, self._broken, 0.0)
            self._changed.notify_all()

    def bare_too_long(self) -> bool:
        """Whether no worker has been there for longer than one may take to start."""
        with self.lock:
            bare = not any(h.seat.slots for h in self._hands)
            return bare and time.monotonic() - self._bare_since > self.executor.start_seconds


class RayCrew:
    """See `Crew`: one pass's requests on the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.done: Done = SimpleQueue()
        self._left = 0
        self.lock = threading.Condition()

    def give(self, key: str, request: Request) -> None:
        """See `Crew`."""
        with self.lock:
            self._left += 1
        self._pool.add(Item(key, request, self._finish))

    def _finish(self, key: str, result: Completion | BaseException, seconds: float) -> None:
        self.done.put((key, result, seconds))
        with self.lock:
            self._left -= 1
            self.lock.notify_all()

    def take_back(self) -> list[str]:
        """See `Crew`."""
        found = self._pool.take_back(lambda item: item.sink == self._finish)
        with self.lock:
            self._left -= len(found)
        return [item.key for item in found]

    def close(self) -> list[str]:
        """See `Crew`."""
        never = self.take_back()
        with self.lock:
            while self._left:
                self.lock.wait(0.2)
                self.lock.release()
                try:
                    never += self.take_back()  # what was with a worker that died waits again
                finally:
                    self.lock.acquire()
        return never


def _result(result: Any) -> Any:
    """What a worker sent, a Failure as the exception that it stands for."""
    if not isinstance(result, Failure):
        return result
    kinds: dict[str, type[Exception]] = {"row": RowError, "user": UserError}
    return kinds[result.kind](result.text) if result.kind in kinds else RuntimeError(f"in a Ray worker:\n{result.text}")


def _contents(adapters: Mapping[str, Path], gguf: bool) -> dict[str, bytes]:
    """The adapters' files in the form that is loaded: small beside the model, so they travel.

    Of a folder its own JSON and safetensors: one that was made elsewhere may hold a training's checkpoints as well.
    """
    found: dict[str, bytes] = {}
    for place, folder in enumerate(adapters.values()):
        if gguf:
            found[f"{place}/adapter.gguf"] = folder.with_suffix(".gguf").read_bytes()
            continue
        for file in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in (".json", ".safetensors")):
            found[f"{place}/adapter/{file.name}"] = file.read_bytes()
    return found
