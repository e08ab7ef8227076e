"""Run generation jobs on the engine: a fixed number of slots, a bounded queue, and cancellation of each request.

Engines block, so each slot has a thread. Threads report events to the event loop through one queue per request.
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
from functools import partial
from typing import TypeAlias

from selfalign.data.prompt_text import replace_surrogates
from selfalign.errors import SelfAlignError
from selfalign.generation.engines.base import Engine, Part, Request, RowError, TooLong
from selfalign.web.guard import RequestError
from selfalign.web.serve.openai_api import Choice, Usage

INTERNAL_ERROR = "internal error: see the server's terminal"


@dataclass(frozen=True, slots=True)
class Job:
    """A choice to generate."""

    request: Request
    strip: bool = True
    """Whether to remove white space at both ends, as in the responses of a dialogue."""
    forged: bool = False
    """Whether a message contains text that reads like a turn of the dialogue."""


@dataclass(frozen=True, slots=True)
class NewText:
    """New text of a choice."""

    index: int
    text: str
    is_thought: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """A choice is finished."""

    index: int
    choice: Choice


Event: TypeAlias = NewText | Done


class Cancelled(Exception):
    """The request was cancelled before all its jobs were done."""


class StreamStripper:
    """Strips a text that arrives in pieces, by holding back white space until other text follows."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return the text that can be sent now."""
        text = self._held + piece
        text = text if self._begun else text.lstrip()
        ready = text.rstrip()
        self._held = text[len(ready) :]
        self._begun = self._begun or bool(ready)
        return ready

    def end_step(self) -> None:
        """Discard the white space at the end of a step."""
        self._held = ""


class JobQueue:
    """The engine's slots and the queue of jobs that wait for them. It belongs to one event loop.

    Args:
        deadline_s: the maximum seconds of a job; its text is then cut, and its finish reason is "length".
    """

    def __init__(self, engine: Engine, slots: int, max_queue: int, deadline_s: float = 600.0) -> None:
        self.slots = slots
        self.capacity = slots + max_queue
        self.active = 0
        """Running and waiting jobs."""
        self._engine = engine
        self._deadline_s = deadline_s
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._durations: deque[float] = deque(maxlen=32)
        self._groups: set[JobGroup] = set()

    def start(self, jobs: Sequence[Job]) -> JobGroup:
        """Run or queue the jobs of one request.

        Raises:
            RequestError: the queue is too full for them (429), or too small even when it is empty (400).
        """
        if len(jobs) > self.capacity:
            raise RequestError(400, f"{len(jobs)} choices: at most {self.capacity} are possible at once", param="n")
        if self.active + len(jobs) > self.capacity:
            wait = retry_after(self.active, self.slots, self._durations)
            message = "all slots are busy and the queue is full"
            raise RequestError(429, message, "rate_limit_error", code="queue_full", retry_after=wait)
        group = JobGroup(asyncio.get_running_loop(), len(jobs), self._groups)
        self._groups.add(group)
        for index, job in enumerate(jobs):
            self.active += 1
            future = self._pool.submit(self._run, group, index, job)
            future.add_done_callback(lambda _: self._release(group.loop))
            group.futures.append(future)
        return group

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        """Free a job's place. Any thread may call this, even after the loop has closed."""

        def release() -> None:
            self.active -= 1

        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(release)

    def _run(self, group: JobGroup, index: int, job: Job) -> None:
        """Run a job in a slot's thread."""
        began = time.monotonic()
        deadline = began + self._deadline_s
        try:
            choice = self._generate(job, index, group.report, lambda: group.is_cancelled or time.monotonic() > deadline)
            group.report(Done(index, choice))
        except TooLong as error:
            message = f"the messages are {error}"
            group.report(RequestError(400, message, param="messages", code="context_length_exceeded"))
        except (RowError, SelfAlignError) as error:
            group.report(RequestError(502, str(error), "server_error"))
        except Exception:
            traceback.print_exc()
            group.report(RequestError(500, INTERNAL_ERROR, "server_error"))
        finally:
            if not group.is_cancelled:
                self._durations.append(time.monotonic() - began)

    def _generate(self, job: Job, index: int, report: Callable[[Event], None], must_stop: Callable[[], bool]) -> Choice:
        """Run a job's steps; all but the last one generate internal thoughts (see `engines.base.answer`)."""
        request = job.request
        prompt, steps = request.prompt, request.steps
        thoughts = StreamStripper()
        strippers = {True: thoughts, False: StreamStripper() if job.strip else None}
        texts = {True: "", False: ""}

        def on_text(text: str, is_thought: bool) -> bool:
            text = replace_surrogates(text)
            stripper = strippers[is_thought]
            text = stripper.feed(text) if stripper else text
            texts[is_thought] += text
            if text:
                report(NewText(index, text, is_thought))
            return not must_stop()

        parts: list[Part] = []
        for number, step in enumerate(steps, 1):
            is_thought = number < len(steps)
            prompt = (*prompt, step.cue) if step.cue else prompt
            if step.cue and is_thought:
                thoughts.end_step()
                on_text(step.cue, is_thought)
            report_text = partial(on_text, is_thought=is_thought)
            part = self._engine.generate(prompt, step, request.seed, request.adapter, report_text)
            parts.append(part)
            if part.finish in ("length", "cancelled"):
                break
            prompt = (*prompt, part.text.rstrip())
        usage = Usage(
            prompt=parts[0].prompt_tokens + parts[0].cached_tokens,
            cached=parts[0].cached_tokens,
            completion=sum(p.generated_tokens for p in parts),
            thoughts=sum(p.generated_tokens for p in parts[: len(steps) - 1]),
        )
        escaped = tuple(dict.fromkeys(token for p in parts for token in p.escaped))
        is_cut = parts[-1].finish in ("length", "cancelled")
        return Choice(texts[False], "length" if is_cut else "stop", usage, texts[True], escaped, job.forged)

    def cancel_all(self) -> None:
        """Cancel all running and waiting jobs."""
        for group in list(self._groups):
            group.cancel()

    def close(self) -> None:
        """Wait for the threads; call `cancel_all` first."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class JobGroup:
    """The jobs of one request. Iterate over the group to get their events."""

    def __init__(self, loop: asyncio.AbstractEventLoop, jobs: int, groups: set[JobGroup]) -> None:
        self.loop = loop
        self.futures: list[Future[None]] = []
        self._groups = groups
        self._jobs = jobs
        self._cancelled = threading.Event()
        self._events: asyncio.Queue[Event | RequestError | None] = asyncio.Queue()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def report(self, event: Event | RequestError) -> None:
        """Hand an event to the event loop; called from a slot's thread."""
        if not self.is_cancelled:
            self.loop.call_soon_threadsafe(self._events.put_nowait, event)

    def cancel(self) -> None:
        """Cancel the jobs: waiting jobs never start, running jobs stop at their next token."""
        if not self.is_cancelled:
            self._cancelled.set()
            for future in self.futures:
                future.cancel()
            self._events.put_nowait(None)
        self._groups.discard(self)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the events of all jobs until all are done.

        Raises:
            RequestError: a job failed.
            Cancelled: the jobs were cancelled.
        """
        remaining = self._jobs
        while remaining:
            event = await self._events.get()
            if event is None:
                raise Cancelled
            if isinstance(event, RequestError):
                raise event
            remaining -= isinstance(event, Done)
            yield event
            # `get` does not suspend while the queue has events, so other tasks would starve and miss a disconnect.
            await asyncio.sleep(0)
        self._groups.discard(self)


def retry_after(active: int, slots: int, durations: Sequence[float]) -> int:
    """Estimate the seconds (1 to 60) until a slot is free for a new job, from the durations of recent jobs."""
    median = sorted(durations)[len(durations) // 2] if durations else 1.0
    return max(1, min(60, math.ceil(median * max(1, active - slots + 1) / slots)))
