"""Windows and the choice among servers, with a simulated clock and simulated answers."""

from __future__ import annotations

from typing import Any, cast

from selfalign.generation.engines.fleet import Call, Endpoint, Fleet
from selfalign.generation.engines.window import Window
from selfalign.generation.retries import Transient


def sizes_after(window: Window, count: int, seconds: Any) -> list[int]:
    """Return the sizes after each of `count` answers; a call takes `seconds(n)` with n concurrent calls."""
    sizes = []
    for _ in range(count):
        concurrent = int(window.size)
        window.record_answer(seconds(concurrent), 50, concurrent)
        sizes.append(int(window.size))
    return sizes


def test_window_grows_to_its_limit_while_calls_take_no_longer():
    window = Window(16)
    assert window.size == 2
    assert sizes_after(window, 40, lambda n: 1.0)[-1] == 16
    assert Window(1).size == 1


def test_window_grows_on_a_server_that_batches():
    window = Window(64)
    assert sizes_after(window, 400, lambda n: 1.0 + n / 64)[-1] > 40


def test_window_shrinks_to_the_slots_of_a_server():
    window = Window(64)
    sizes = sizes_after(window, 600, lambda n: max(1.0, n / 4))
    assert max(sizes[40:]) <= 12 and sum(sizes[100:]) / len(sizes[100:]) < 10 and min(sizes[20:]) >= 4


def test_window_shrinks_on_a_server_that_thrashes():
    window = Window(64)
    sizes = sizes_after(window, 600, lambda n: 1.0 if n <= 8 else n * n / 8)
    assert sum(sizes[100:]) / 500 < 14


def test_window_halves_down_to_one_and_grows_by_addition():
    window = Window(64)
    sizes_after(window, 100, lambda n: 1.0)
    for size in (32, 16, 8, 4, 2, 1, 1):
        window.halve()
        assert int(window.size) == size
    assert sizes_after(window, 3, lambda n: 1.0)[-1] <= 3, "by addition, not doubling"


def endpoint(name: str, limit: int = 4) -> Endpoint:
    return Endpoint(cast(Any, None), name, limit)


def test_the_faster_server_is_chosen_until_it_is_full():
    slow, fast = endpoint("slow"), endpoint("fast")
    for _ in range(8):
        slow.record_speed(4.0, 50, 2)
        fast.record_speed(1.0, 50, 2)
    fleet = Fleet([slow, fast])
    assert [cast(Endpoint, fleet.acquire(Call())).url for _ in range(4)] == ["fast", "fast", "slow", "slow"]


def test_a_server_without_measurements_is_tried_and_equal_servers_share():
    known, new = endpoint("known"), endpoint("new")
    known.record_speed(1.0, 50, 1)
    assert Fleet([known, new]).acquire(Call()) is new
    pair = [endpoint("a"), endpoint("b")]
    for e in pair:
        e.record_speed(1.0, 50, 1)
    fleet = Fleet(pair)
    assert {cast(Endpoint, fleet.acquire(Call())).url for _ in range(2)} == {"a", "b"}


def test_calls_refused_together_halve_the_window_once_and_the_server_rests():
    now = [0.0]
    server = endpoint("one", 16)
    server.window.size = 16.0
    fleet = Fleet([server], clock=lambda: now[0])
    calls = [Call() for _ in range(8)]
    for call in calls:
        assert fleet.acquire(call) is server
    for call in calls:
        assert not fleet.record_failure(server, call, Transient("429", 7.0, "busy"), lambda n, wait: wait or 0.0)
    assert int(server.window.size) == 8 and server.rest_until == 7.0 and not server.outage
    assert not server.has_room(6.9) and server.has_room(7.0)


def test_three_failures_or_one_refused_connection_take_a_server_out():
    outages: list[str] = []
    one, two = endpoint("one"), endpoint("two")
    fleet = Fleet([one, two], lambda e: outages.append(e.url))
    for number in range(3):
        call = Call(preferred=one)
        assert fleet.acquire(call) is one
        assert fleet.record_failure(one, call, Transient("no reply"), lambda n, w: 0.0)
        assert bool(one.outage) == (number == 2)
        one.window.size = 2.0
    call = Call()
    assert fleet.acquire(call) is two
    assert not fleet.record_failure(two, call, Transient("refused", failure="unreachable"), lambda n, w: 0.0)
    assert outages == ["one", "two"] and fleet.acquire(Call()) is None
    fleet.put_back(one)
    assert fleet.acquire(Call()) is one and int(one.window.size) == 1
    assert "two: 0 requests, 0 tokens, 1 error" in fleet.summaries()[1] and "(now: refused)" in fleet.summaries()[1]


def test_failed_call_tries_every_server_then_starts_over():
    one, two = endpoint("one"), endpoint("two")
    fleet = Fleet([one, two])
    call = Call(preferred=one, begun=True)
    assert fleet.acquire(call) is one
    assert fleet.record_failure(one, call, Transient("x"), lambda n, w: 0.0)
    assert fleet.acquire(call) is two
    assert not fleet.record_failure(two, call, Transient("x"), lambda n, w: 0.0)
    assert not call.excluded and fleet.acquire(call) is one
