"""The assignment of requests to Ray workers, also after a worker dies, without a cluster."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from selfalign.generation.engines.base import Completion, RowError
from selfalign.generation.ray.jobs import AHEAD, MAX_DEATHS, WorkerJob, WorkerQueue, WorkerSlot

Queue = WorkerQueue[WorkerSlot]


def queue(*parallel: int, ahead: int = AHEAD) -> Queue:
    return WorkerQueue([WorkerSlot(ahead, n) for n in parallel])


def add(jobs: Queue, *keys: str, sink: Callable[[str, Any, float], None] = lambda *_: None) -> None:
    for key in keys:
        jobs.waiting.append(WorkerJob(key, key, sink))


def held(slot: WorkerSlot) -> list[str]:
    return [job.key for job in slot.in_flight.values()]


def test_idle_workers_come_first_and_no_worker_hoards():
    jobs = queue(2, 4)
    add(jobs, *map(str, range(6)))
    jobs.assign()
    assert [len(s.in_flight) for s in jobs.slots] == [2, 4]
    add(jobs, *map(str, range(6, 40)))
    jobs.assign()
    assert [len(s.in_flight) for s in jobs.slots] == [2 * AHEAD, 4 * AHEAD]
    assert len(jobs.waiting) == 40 - 12


def test_long_requests_wait_for_a_free_worker():
    jobs = queue(1, 1, ahead=1)
    add(jobs, *"abc")
    slow, fast = jobs.slots
    batches = jobs.assign()
    assert (held(slow), held(fast)) == (["a"], ["b"])
    ((ticket, _),) = batches[fast]
    assert jobs.finish(fast, ticket) and list(jobs.assign()) == [fast]
    assert held(fast) == ["c"]


def test_the_faster_worker_gets_the_next_request():
    jobs = queue(1, 1)
    add(jobs, *"abcdef")
    _, fast = jobs.slots
    ticket, _ = jobs.assign()[fast][0]
    assert jobs.finish(fast, ticket)
    assert list(jobs.assign()) == [fast]
    assert len(held(fast)) == AHEAD
    assert jobs.finish(fast, ticket) is None, "the same result twice"


def test_requests_of_a_dead_worker_wait_again_in_order():
    jobs = queue(1)
    add(jobs, *"abc")
    jobs.assign()
    assert jobs.reassign(jobs.slots[0], "gone") == 0
    assert [job.key for job in jobs.waiting] == ["a", "b", "c"]
    assert [job.deaths for job in jobs.waiting] == [1, 0, 0], "with one slot only the first was begun"


def test_only_the_poison_request_fails():
    failed: list[str] = []
    done: list[str] = []
    jobs = queue(4, 4)

    def sink(key: str, result: Any, seconds: float) -> None:
        (failed if isinstance(result, RowError) else done).append(key)

    add(jobs, *(f"r{i}" for i in range(11)), "poison", *(f"s{i}" for i in range(11)), sink=sink)
    deaths = 0
    for _ in range(200):
        jobs.assign()
        for slot in jobs.slots:
            begun = list(slot.in_flight.items())[: slot.parallel]
            if any(job.key == "poison" for _, job in begun):
                jobs.reassign(slot, "killed")
                deaths += 1
                slot.parallel = 4
                continue
            for ticket, job in begun[:1]:
                jobs.finish(slot, ticket)
                job.sink(job.key, Completion(), 0.0)
    assert failed == ["poison"]
    assert deaths == MAX_DEATHS
    assert len(done) == len(set(done)) == 22


def test_a_suspect_is_tried_alone_before_others():
    jobs = queue(2, 2)
    add(jobs, "a")
    jobs.assign()
    jobs.suspects.append(WorkerJob("suspect", "", lambda *_: None, MAX_DEATHS - 1))
    add(jobs, *"bcdefg")
    jobs.assign()
    assert [held(slot) for slot in jobs.slots] == [["a", "b", "c", "d"], ["suspect"]]


def test_requests_wait_while_a_suspect_waits_for_an_empty_worker():
    jobs = queue(1)
    add(jobs, "a")
    jobs.assign()
    jobs.suspects.append(WorkerJob("suspect", "", lambda *_: None, MAX_DEATHS - 1))
    add(jobs, "b")
    assert not jobs.assign()
    assert [job.key for job in jobs.withdraw()] == ["suspect", "b"]
    add(jobs, "b")
    assert jobs.assign() and held(jobs.slots[0]) == ["a", "b"]


@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_every_request_has_one_result_whichever_workers_die(seed: int, parallel: list[int]):
    rng = random.Random(seed)
    jobs = queue(*parallel)
    finished: list[str] = []
    keys = [str(i) for i in range(rng.randint(1, 30))]
    add(jobs, *keys, sink=lambda key, result, seconds: finished.append(key))
    removed: list[str] = []
    for turn in range(2_000):
        jobs.assign()
        number = rng.randrange(len(parallel))
        slot = jobs.slots[number]
        assert len(slot.in_flight) <= slot.parallel * AHEAD
        move = rng.random()
        if move < 0.15 and turn < 500:
            jobs.reassign(slot, "gone")
            slot.parallel = parallel[number]
        elif move < 0.17 and turn < 500:
            removed += [job.key for job in jobs.withdraw()]
        elif slot.in_flight:
            ticket = rng.choice(list(slot.in_flight)[: slot.parallel])
            job = jobs.finish(slot, ticket)
            assert job
            job.sink(job.key, Completion(), 0.0)
        if len(finished) + len(removed) == len(keys):
            break
    assert sorted(finished + removed) == sorted(keys)
