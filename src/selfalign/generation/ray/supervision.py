"""A worker's place in the pool: threads that start it, send to it and listen to it, and begin again where it dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from selfalign.generation.ray.sharing import Seat
from selfalign.generation.ray.worker import Failure, Ready, Refusal, Result
from selfalign.system.version import __version__

if TYPE_CHECKING:
    from selfalign.generation.ray.pool import Pool

_TAKE_SECONDS = 5.0
"""So long a worker is asked to wait for its next result."""
_JOIN_SECONDS = 30.0
_BARREN = 4
"""A worker that dies so often in a row without a result does not come back: it is its engine, or its machine."""


class Died(Exception):
    """A worker is gone, and why."""


class Hand:
    """One place. Its threads call the pool's `up`, `received`, `down` and `out`."""

    def __init__(self, pool: Pool, number: int) -> None:
        self.pool = pool
        self.seat = Seat()
        pool.board.seats.append(self.seat)
        self.sends = threading.Condition(pool.lock)
        """Something lies in the outbox."""
        self.heard = threading.Condition(pool.lock)
        """Something is with the worker."""
        self.actor: Any = None
        self.refused = ""
        """Why the first worker of this place cannot be what it should."""
        self.gone = False
        self._begun = False
        self._threads: list[threading.Thread] = []
        self._run(self._live, f"ray-{number}")

    def _run(self, what: Callable[..., None], name: str, *given: object) -> None:
        thread = threading.Thread(target=what, args=given, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def wake(self) -> None:
        """Let the threads look whether the pool is closing."""
        with self.pool.lock:
            self.sends.notify_all()
            self.heard.notify_all()

    def join(self) -> None:
        """Wait for the threads to end."""
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def _live(self) -> None:
        """One worker after the other, until the pool closes or nothing helps."""
        barren = 0
        while not self.pool.closing:
            try:
                ready = self._start()
                self._begun = True
                self.pool.up(self, ready)
                self._run(self._send, f"{threading.current_thread().name}-send", self.actor)
                barren = self._listen(barren)
            except Exception as error:  # of whatever: requests of a thread that ended would be waited for
                barren = 0 if self.pool.down(self, _why(error)) else barren + 1
                self._kill()
                if self.refused or barren >= _BARREN or self.pool.bare_too_long():
                    self.pool.out(self, _why(error))
                    return
                time.sleep(min(10.0, 0.5 * 2**barren) if barren > 1 else 0.0)

    def _start(self) -> Ready:
        """A new worker, its engine loaded.

        Raises:
            Died: it ended meanwhile, cannot be had, or refused.
        """
        import ray

        pool = self.pool
        try:
            actor_class = ray.remote(pool.worker).options(
                num_cpus=pool.shape.cpus,
                num_gpus=pool.shape.gpus,
                max_concurrency=6,
                max_restarts=0,
                scheduling_strategy="SPREAD",
            )
            self.actor = actor_class.remote()
            started = self.actor.start.remote(pool.order, pool.files)
            while not ray.wait([started], timeout=0.5)[0]:
                if pool.closing or pool.bare_too_long():
                    raise Died(f"none could be started within {pool.executor.start_seconds:.0f} s")
            answer = ray.get(started)
            if isinstance(answer, Refusal):
                raise Died(answer.text)
            for adapter, prefix in pool.warmed.items():
                ray.get(self.actor.warm_prefix.remote(prefix, adapter))
            return answer  # type: ignore[no-any-return]
        except Exception as error:  # Ray's, ours, and what Ray says of settings that it does not take
            text = _why(error)
            if not self._begun and not pool.closing:
                self.refused = f"a Ray worker cannot start: {text}"
            raise Died(text) from None

    def _send(self, actor: Any) -> None:
        """Send what gathers in the outbox: one request where the worker is slower, many where the network is."""
        import ray

        while True:
            with self.pool.lock:
                while not self.seat.outbox and self.actor is actor and not self.pool.closing:
                    self.sends.wait()
                if self.actor is not actor or self.pool.closing:
                    return
                batch = self.pool.board.send(self.seat)
                self.heard.notify_all()
            try:
                ray.get(actor.give.remote(batch))
            except Exception:
                ray.kill(actor)  # whether they arrived is not known: who listens hears of the death
                return

    def _listen(self, barren: int) -> int:
        """Take results as they come; returns at the end of the pool.

        Raises:
            Died: the worker did, or its engine.
        """
        import ray

        while True:
            with self.pool.lock:
                while not self.seat.flying and not self.pool.closing:
                    self.heard.wait()
                if self.pool.closing:
                    return barren
            try:
                results: list[Result] = ray.get(self.actor.take.remote(_TAKE_SECONDS))
            except ray.exceptions.RayError as error:
                raise Died(_why(error)) from None
            whole = [r for r in results if not (isinstance(r[1], Failure) and r[1].kind == "engine")]
            self.pool.received(self, whole)
            barren = 0 if whole else barren
            if len(whole) < len(results):
                raise Died(next(r[1].text for r in results if isinstance(r[1], Failure) and r[1].kind == "engine"))

    def _kill(self) -> None:
        import ray

        with self.pool.lock:
            actor, self.actor = self.actor, None
            self.sends.notify_all()
        if actor is not None:
            ray.kill(actor)


def _why(error: BaseException) -> str:
    """In one line: what a worker died of."""
    text = str(error)
    if "No module named" in text:
        found = next((line for line in text.splitlines() if "No module named" in line), "").strip()
        return f"{found}: install selfalign {__version__} with the same extras on every machine"
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause or text).splitlines() if line.strip()]
    return " ".join(lines)[-300:] if cause else " ".join(lines[:6])[:300]
