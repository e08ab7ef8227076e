"""Jobs on the engine: so many at once, so many waiting, and each can be cancelled.

Engines block, so each slot has a thread; the event loop gets what they say through a queue for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias

from selfalign.data.prompt_text import whole_characters
from selfalign.errors import SelfAlignError
from selfalign.generation.engines.base import Engine, Part, Request, RowError, Step, TooLong
from selfalign.web.guard import Refused
from selfalign.web.serve.openai_answer import Choice, Usage


@dataclass(frozen=True, slots=True)
class Job:
    """One choice to be generated."""

    request: Request
    tidy: bool = True
    """Without blanks at the beginning and the end, as an answer in a dialogue is."""
    forged: bool = False


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some more text of a choice."""

    number: int
    text: str
    thought: bool = False
    """It stands before the answer."""


@dataclass(frozen=True, slots=True)
class Done:
    """A choice is finished."""

    number: int
    choice: Choice


Event: TypeAlias = Stretch | Done


class Left(Exception):
    """Nobody waits for the rest: the request was cancelled."""


class Trim:
    """Text without blanks at both ends, stretch by stretch: blanks are held back until something follows them."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def feed(self, stretch: str) -> str:
        """What may be shown of the text so far and was not yet."""
        text = self._held + stretch
        text = text if self._begun else text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        self._begun = self._begun or bool(shown)
        return shown

    def part(self) -> None:
        """A part ends here: what it ended in is not shown, whatever follows."""
        self._held = ""


class Generation:
    """The engine's slots and the queue before them. One event loop owns it.

    Args:
        slots: jobs at once.
        max_queue: jobs that may wait besides.
        deadline_s: seconds that a job may generate for; what is not finished then counts as cut by length.
    """

    def __init__(self, engine: Engine, slots: int, max_queue: int, deadline_s: float = 600.0) -> None:
        self.slots = slots
        self.capacity = slots + max_queue
        self.taken = 0
        """Jobs that run or wait."""
        self._engine = engine
        self._deadline_s = deadline_s
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._took: deque[float] = deque(maxlen=32)
        self._running: set[Running] = set()

    def start(self, jobs: Sequence[Job]) -> Running:
        """Begin the jobs of one request, or queue them.

        Raises:
            Refused: there is no room for all of them now (429), or never (400).
        """
        if len(jobs) > self.capacity:
            raise Refused(400, f"{len(jobs)} choices at once are more than this server holds", param="n")
        if self.taken + len(jobs) > self.capacity:
            wait = retry_after(self.taken, self.slots, self._took)
            raise Refused(429, "all slots are taken and the queue is full", "rate_limit_error", code="queue_full",
                          retry_after=wait)  # fmt: skip
        running = Running(asyncio.get_running_loop(), len(jobs))
        self._running.add(running)
        running.on_end = lambda: self._running.discard(running)
        for number, job in enumerate(jobs):
            self.taken += 1
            future = self._pool.submit(self._work, running, number, job)
            future.add_done_callback(lambda _: self._over(running.loop))
            running.futures.append(future)
        return running

    def _over(self, loop: asyncio.AbstractEventLoop) -> None:
        """In whichever thread a job ended or was cancelled; the loop may be gone, where the server ended first."""
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        self.taken -= 1

    def _work(self, running: Running, number: int, job: Job) -> None:
        """In a slot's thread."""
        began = time.monotonic()
        until = began + self._deadline_s
        try:
            choice = self._answer(job, lambda: running.cancelled or time.monotonic() > until, number, running.say)
            running.say(Done(number, choice))
        except TooLong as error:
            running.say(Refused(400, f"the messages are {error}", param="messages", code="context_length_exceeded"))
        except (RowError, SelfAlignError) as error:
            running.say(Refused(502, str(error), "server_error"))
        except Exception:
            traceback.print_exc()
            running.say(Refused(500, "a fault of the server; its terminal shows more", "server_error"))
        finally:
            if not running.cancelled:
                self._took.append(time.monotonic() - began)

    def _answer(self, job: Job, stopped: Callable[[], bool], number: int, say: Callable[[Event], None]) -> Choice:
        """Run a job's steps; all but the last one are thoughts (see `engines.base.answer`)."""
        prompt, steps = job.request.prompt, job.request.steps
        thinking = Trim()
        trims = {True: thinking, False: Trim() if job.tidy else None}
        texts = {True: "", False: ""}

        def show(stretch: str, thought: bool) -> bool:
            trim = trims[thought]
            stretch = whole_characters(stretch)
            stretch = trim.feed(stretch) if trim else stretch
            texts[thought] += stretch
            if stretch:
                say(Stretch(number, stretch, thought))
            return not stopped()

        parts: list[Part] = []
        for place, step in enumerate(steps, 1):
            thought = place < len(steps)
            prompt = (*prompt, step.cue) if step.cue else prompt
            if step.cue and thought:
                thinking.part()
                show(step.cue, thought)
            part = self._step(prompt, step, job, lambda stretch, thought=thought: show(stretch, thought))  # type: ignore[misc]
            parts.append(part)
            if part.finish in ("length", "cancelled"):
                break
            prompt = (*prompt, part.text.rstrip())
        finish: Literal["stop", "length"] = "length" if parts[-1].finish in ("length", "cancelled") else "stop"
        thoughts = parts[: len(steps) - 1]
        tokens = Usage(
            prompt=parts[0].prompt_tokens + parts[0].cached_tokens,
            cached=parts[0].cached_tokens,
            completion=sum(p.generated_tokens for p in parts),
            thoughts=sum(p.generated_tokens for p in thoughts),
        )
        broken = tuple(dict.fromkeys(token for p in parts for token in p.escaped))
        return Choice(texts[False], finish, tokens, texts[True], broken, job.forged)

    def _step(self, prompt: tuple[str, ...], step: Step, job: Job, show: Callable[[str], bool]) -> Part:
        return self._engine.generate(prompt, step, job.request.seed, job.request.adapter, show)

    def cancel_all(self) -> None:
        """Cut short everything that runs or waits."""
        for running in list(self._running):
            running.cancel()

    def close(self) -> None:
        """Wait for the threads; cancel first."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Running:
    """The jobs of one request, as they go on: iterate over it for its events."""

    def __init__(self, loop: asyncio.AbstractEventLoop, jobs: int) -> None:
        self.loop = loop
        self.futures: list[Future[None]] = []
        self.on_end: Callable[[], None] = lambda: None
        self._jobs = jobs
        self._cancelled = threading.Event()
        self._events: asyncio.Queue[Event | Refused | None] = asyncio.Queue()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def say(self, event: Event | Refused) -> None:
        """From a slot's thread."""
        if not self.cancelled:
            self.loop.call_soon_threadsafe(self._events.put_nowait, event)

    def cancel(self) -> None:
        """Nobody waits any longer: jobs that wait never begin, those that run end with their next token."""
        if not self.cancelled:
            self._cancelled.set()
            for future in self.futures:
                future.cancel()
            self._events.put_nowait(None)
        self.on_end()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events of all jobs, until all are done.

        Raises:
            Refused: a job cannot be answered.
            Left: it was cancelled.
        """
        left = self._jobs
        while left:
            event = await self._events.get()
            if event is None:
                raise Left
            if isinstance(event, Refused):
                raise event
            left -= isinstance(event, Done)
            yield event
            # A queue that is never empty would let nobody else speak, nor hear that the client left.
            await asyncio.sleep(0)
        self.on_end()


def retry_after(taken: int, slots: int, took: Sequence[float]) -> int:
    """Whole seconds after which a slot is likely to be free for one more: the queue at the usual pace.

    Args:
        took: how long the last jobs took.
    """
    usual = sorted(took)[len(took) // 2] if took else 1.0
    return max(1, min(60, math.ceil(usual * max(1, taken - slots + 1) / slots)))
