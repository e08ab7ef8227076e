"""Windows and the choice among servers, by told answers and a told clock: no server is called."""

from __future__ import annotations

from typing import Any, cast

import pytest

from selfalign.generation.engines.fleet import Endpoint, Fleet, Ticket, Window
from selfalign.generation.retries import Transient


def answered(window: Window, count: int, seconds: Any) -> list[int]:
    """The sizes after each of so many answers; `seconds(n)` is what a call takes with n at once."""
    sizes = []
    for _ in range(count):
        at_once = int(window.size)
        window.answered(seconds(at_once), 50, at_once)
        sizes.append(int(window.size))
    return sizes


def test_a_window_grows_to_its_limit_where_more_calls_take_no_longer():
    window = Window(16)
    assert window.size == 2
    assert answered(window, 40, lambda n: 1.0)[-1] == 16
    assert Window(1).size == 1


def test_a_window_grows_on_a_server_that_batches():
    window = Window(64)
    assert answered(window, 400, lambda n: 1.0 + n / 64)[-1] > 40


def test_more_calls_than_a_server_has_slots_are_given_back():
    window = Window(64)
    sizes = answered(window, 600, lambda n: max(1.0, n / 4))
    assert max(sizes[40:]) <= 12 and sum(sizes[100:]) / len(sizes[100:]) < 10 and min(sizes[20:]) >= 4


def test_a_server_that_thrashes_is_given_less():
    window = Window(64)
    sizes = answered(window, 600, lambda n: 1.0 if n <= 8 else n * n / 8)
    assert sum(sizes[100:]) / 500 < 14


def test_refusals_halve_a_window_down_to_one_and_additions_follow():
    window = Window(64)
    answered(window, 100, lambda n: 1.0)
    for size in (32, 16, 8, 4, 2, 1, 1):
        window.refused()
        assert int(window.size) == size
    assert answered(window, 3, lambda n: 1.0)[-1] <= 3, "by addition, not doubling"


def endpoint(title: str, limit: int = 4) -> Endpoint:
    return Endpoint(cast(Any, None), title, limit)


def gone_through(fleet: Fleet, seconds: float, times: int) -> None:
    for _ in range(times):
        ticket = Ticket()
        taken = fleet.take(ticket)
        assert taken
        fleet.finished(taken, ticket, seconds, 50)


def test_the_faster_server_with_room_is_taken_and_the_slower_one_when_it_is_full():
    slow, fast = endpoint("slow"), endpoint("fast")
    for _ in range(8):
        slow.note_speed(4.0, 50, 2)
        fast.note_speed(1.0, 50, 2)
    fleet = Fleet([slow, fast])
    assert [cast(Endpoint, fleet.take(Ticket())).title for _ in range(4)] == ["fast", "fast", "slow", "slow"]
    assert fast.speed == pytest.approx(4 * slow.speed)


def test_a_server_that_nobody_has_measured_is_tried_and_equal_ones_share():
    known, new = endpoint("known"), endpoint("new")
    known.note_speed(1.0, 50, 1)
    assert Fleet([known, new]).take(Ticket()) is new
    pair = [endpoint("a"), endpoint("b")]
    for e in pair:
        e.note_speed(1.0, 50, 1)
    fleet = Fleet(pair)
    assert {cast(Endpoint, fleet.take(Ticket())).title for _ in range(2)} == {"a", "b"}


def test_refused_together_halves_once_and_the_server_rests():
    now = [0.0]
    one = endpoint("one", 16)
    one.window.size = 16.0
    fleet = Fleet([one], clock=lambda: now[0])
    tickets = [Ticket() for _ in range(8)]
    for ticket in tickets:
        assert fleet.take(ticket) is one
    for ticket in tickets:
        assert not fleet.failed(one, ticket, Transient("429", 7.0, "busy"), lambda n, wait: wait or 0.0)
    assert int(one.window.size) == 8 and one.rest_until == 7.0 and not one.away
    assert not one.room(6.9) and one.room(7.0)


def test_three_failures_in_a_row_send_a_server_away_and_nobody_listening_one():
    left: list[str] = []
    one, two = endpoint("one"), endpoint("two")
    fleet = Fleet([one, two], lambda e: left.append(e.title))
    for number in range(3):
        ticket = Ticket(prefer=one)
        assert fleet.take(ticket) is one
        assert fleet.failed(one, ticket, Transient("no reply"), lambda n, w: 0.0)
        assert bool(one.away) == (number == 2)
        one.window.size = 2.0
    ticket = Ticket()
    assert fleet.take(ticket) is two
    assert not fleet.failed(two, ticket, Transient("refused", failure="unreachable"), lambda n, w: 0.0)
    assert left == ["one", "two"] and fleet.take(Ticket()) is None
    fleet.back(one)
    assert fleet.take(Ticket()) is one and int(one.window.size) == 1
    assert "two: 0 requests, 0 tokens, 1 error" in fleet.lines()[1] and "(now: refused)" in fleet.lines()[1]


def test_what_failed_at_one_goes_to_another_and_then_round_again():
    one, two = endpoint("one"), endpoint("two")
    fleet = Fleet([one, two])
    ticket = Ticket(prefer=one, begun=True)
    assert fleet.take(ticket) is one
    assert fleet.failed(one, ticket, Transient("x"), lambda n, w: 0.0)
    assert fleet.take(ticket) is two
    assert not fleet.failed(two, ticket, Transient("x"), lambda n, w: 0.0)
    assert not ticket.tried and fleet.take(ticket) is one
