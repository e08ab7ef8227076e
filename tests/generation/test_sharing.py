"""Who gets which request, and what becomes of those of the dead: decisions without a cluster."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from selfalign.generation.engines.base import Completion, Request, RowError
from selfalign.generation.ray.sharing import AHEAD, DEATHS, Board, Item, Seat


def board(*slots: int) -> Board:
    made = Board()
    made.seats = [Seat(n) for n in slots]
    return made


def add(made: Board, *keys: str, sink=lambda *_: None) -> None:
    for key in keys:
        made.add(Item(key, Request((key,), (), 0), sink))


def held(seat: Seat) -> list[str]:
    return [item.key for item in (*seat.flying.values(), *seat.outbox)]


def test_idle_slots_come_first_and_nobody_hoards():
    made = board(2, 4)
    add(made, *map(str, range(6)))
    made.share()
    assert [s.load for s in made.seats] == [2, 4]
    add(made, *map(str, range(6, 40)))
    made.share()
    assert [s.load for s in made.seats] == [2 * AHEAD, 4 * AHEAD]
    assert len(made.todo) == 40 - 12


def test_what_takes_long_waits_for_whoever_is_free():
    made = Board(ahead=1)
    made.seats = [Seat(1), Seat(1)]
    add(made, *"abc")
    made.share()
    slow, fast = made.seats
    assert (held(slow), held(fast)) == (["a"], ["b"])
    made.send(slow)
    ((ticket, _),) = made.send(fast)
    assert made.finished(fast, ticket) and made.share() == [fast]
    assert held(fast) == ["c"]


def test_who_finishes_first_gets_the_next():
    made = board(1, 1)
    add(made, *"abcdef")
    made.share()
    slow, fast = made.seats
    made.send(slow)
    tickets = [ticket for ticket, _ in made.send(fast)]
    assert made.finished(fast, tickets[0])
    assert made.share() == [fast]
    assert len(held(fast)) == AHEAD
    assert made.finished(fast, tickets[0]) is None  # the same result twice


def test_the_dead_ones_requests_go_to_others_in_their_order():
    made = board(1)
    add(made, *"abc")
    made.share()
    made.send(made.seats[0])
    assert made.died(made.seats[0], "gone") == 0
    assert [item.key for item in made.todo] == ["a", "b", "c"]
    assert [item.deaths for item in made.todo] == [1, 0, 0]  # one slot: only the first was begun


def test_a_killer_is_found_and_the_innocent_live():
    """Four slots, one request that kills: it alone is given up, after three deaths; all others finish."""
    failed: list[str] = []
    done: list[str] = []
    made = board(4, 4)

    def sink(key, result, seconds):
        (failed if isinstance(result, RowError) else done).append(key)

    add(made, *(f"r{i}" for i in range(11)), "poison", *(f"s{i}" for i in range(11)), sink=sink)
    deaths = 0
    for _ in range(200):
        made.share()
        for seat in made.seats:
            made.send(seat)
            begun = list(seat.flying.items())[: seat.slots]
            if any(item.key == "poison" for _, item in begun):
                made.died(seat, "shot")
                deaths += 1
                seat.slots = 4
                continue
            for ticket, item in begun[:1]:
                made.finished(seat, ticket)
                item.sink(item.key, Completion(), 0.0)
    assert failed == ["poison"]
    assert deaths == DEATHS
    assert len(done) == len(set(done)) == 22


@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_nothing_is_lost_or_doubled_whatever_dies(seed: int, slots: list[int]):
    rng = random.Random(seed)
    made = board(*slots)
    found: list[str] = []
    wanted = [str(i) for i in range(rng.randint(1, 30))]
    add(made, *wanted, sink=lambda key, result, seconds: found.append(key))
    taken: list[str] = []
    for turn in range(2_000):
        made.share()
        number = rng.randrange(len(slots))
        seat = made.seats[number]
        assert seat.load <= seat.slots * AHEAD
        made.send(seat)
        move = rng.random()
        if move < 0.15 and turn < 500:
            made.died(seat, "gone")
            seat.slots = slots[number]
        elif move < 0.17 and turn < 500:
            taken += [item.key for item in made.waiting(lambda item: True)]
        elif seat.flying:
            ticket = rng.choice(list(seat.flying)[: seat.slots])
            item = made.finished(seat, ticket)
            assert item
            item.sink(item.key, Completion(), 0.0)
        if len(found) + len(taken) == len(wanted):
            break
    assert sorted(found + taken) == sorted(wanted)
