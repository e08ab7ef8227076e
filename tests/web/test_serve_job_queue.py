"""The job queue: capacity, cancellation, stripped streams, Retry-After."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.generation.engines.base import Request, Sampling, Step
from selfalign.web.guard import RequestError
from selfalign.web.serve.job_queue import Cancelled, Done, Event, Job, JobQueue, NewText, StreamStripper, retry_after
from web_servers import SlowFake

STEP = Step(Sampling(0.0, 1.0, 50))


def job(text: str = "Hello", seed: int = 0, steps: tuple[Step, ...] = (STEP,), strip: bool = True) -> Job:
    return Job(Request((text,), steps, seed), strip)


@given(st.lists(st.text(alphabet=" \n\tab\u3000", max_size=6), max_size=8))
def test_streamed_text_is_stripped_like_the_whole(stretches: list[str]):
    trim = StreamStripper()
    shown = [trim.feed(stretch) for stretch in stretches]
    assert "".join(shown) == "".join(stretches).strip()
    assert all(part.rstrip() == part for part in shown)  # white space that may be the end is held back


def test_retry_after_grows_with_the_queue():
    assert retry_after(4, 4, []) == 1
    assert retry_after(5, 4, [2.0] * 9) == 1
    assert retry_after(40, 4, [2.0] * 9) == 19
    assert retry_after(40, 4, [0.001]) == 1
    assert retry_after(10_000, 1, [30.0]) == 60
    waits = [retry_after(n, 4, [1.0, 2.0, 9.0]) for n in range(4, 60)]
    assert waits == sorted(waits)


def together(engine: SlowFake, use: Any, slots: int = 2, max_queue: int = 2) -> Any:
    """Run a coroutine with a JobQueue, and close it."""

    async def run() -> Any:
        queue = JobQueue(engine, slots, max_queue)
        try:
            return await use(queue)
        finally:
            queue.cancel_all()
            queue.close()
            await asyncio.sleep(0)
            assert queue.active == 0
            assert not queue._groups

    return asyncio.run(run())


async def all_of(queue: JobQueue, jobs: list[Job]) -> list[Event]:
    return [event async for event in queue.start(jobs)]


def test_events_of_a_choice_add_up_to_its_text():
    events = together(SlowFake(), lambda g: all_of(g, [job(seed=n) for n in range(4)]))
    for number in range(4):
        mine = [e for e in events if e.index == number]
        *stretches, done = mine
        assert isinstance(done, Done)
        assert "".join(s.text for s in stretches if isinstance(s, NewText)) == done.choice.text != ""
        assert done.choice.usage.completion == len(done.choice.text.split())


def test_fast_response_does_not_block_the_event_loop():
    async def use(queue: JobQueue) -> tuple[int, int]:
        running = queue.start([job()])
        while queue.active:  # all events are queued before the first is read
            await asyncio.sleep(0.001)
        turns = [0]

        def turn() -> None:
            turns[0] += 1
            running.loop.call_soon(turn)

        turn()
        return len([event async for event in running]), turns[0]

    events, turns = together(SlowFake(), use)
    assert events > 20
    assert turns >= events


def test_steps_before_the_last_are_internal_thoughts():
    script = {0: " First I think.\n", 1: " 2 (kind).", 2: " An answer. "}
    seen: list[str] = []

    def say(prompt: str, step: Step, rng: Any) -> str:
        seen.append(prompt)
        return script[len(seen) - 1]

    steps = (STEP, Step(STEP.sampling, cue="\nCites:"), Step(STEP.sampling, cue="\n\nAlma:"))
    events = together(SlowFake(script=say), lambda g: all_of(g, [job("Q", steps=steps)]))
    done = events[-1]
    assert isinstance(done, Done)
    assert done.choice.thoughts == "First I think.\nCites: 2 (kind)."
    assert done.choice.text == "An answer."
    assert seen[2] == "Q First I think.\nCites: 2 (kind).\n\nAlma:"
    assert "".join(e.text for e in events if isinstance(e, NewText) and e.is_thought) == done.choice.thoughts
    assert done.choice.usage.thoughts == 6


def test_truncated_thoughts_give_an_empty_response():
    short = Step(Sampling(0.0, 1.0, 2))
    events = together(SlowFake(), lambda g: all_of(g, [job(steps=(short, STEP))]))
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.choice.text, done.choice.finish) == ("", "length")


def test_unstripped_text_keeps_white_space():
    events = together(SlowFake(script=lambda *_: " a \n"), lambda g: all_of(g, [job(strip=False)]))
    assert isinstance(events[-1], Done)
    assert events[-1].choice.text == " a \n"


def test_queue_refuses_jobs_beyond_its_capacity():
    async def use(queue: JobQueue) -> None:
        first = queue.start([job(seed=n) for n in range(3)])
        with pytest.raises(RequestError) as caught:
            queue.start([job(), job()])  # all or nothing
        assert caught.value.status == 429
        second = queue.start([job()])
        with pytest.raises(RequestError):
            queue.start([job()])
        with pytest.raises(RequestError) as caught:
            queue.start([job()] * 5)
        assert caught.value.status == 400
        second.cancel()
        await asyncio.sleep(0.05)
        assert queue.active == 3  # a waiting job has left the queue
        first.cancel()
        with pytest.raises(Cancelled):
            async for _ in first:
                pass

    engine = SlowFake(0.02)
    together(engine, use)
    assert engine.requests == 2


def test_failed_choice_fails_the_request():
    async def use(queue: JobQueue) -> None:
        running = queue.start([job("poison"), job()])
        with pytest.raises(RequestError) as caught:
            async for _ in running:
                pass
        assert caught.value.status == 502
        running.cancel()

    together(SlowFake(fail="poison"), use)
