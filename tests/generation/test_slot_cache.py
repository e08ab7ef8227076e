"""The choice of a slot by its cache, waiting for one in turn, and the limit on saved prefixes."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from selfalign.generation.engines.slot_cache import SavedPrefix, SavedPrefixes, Slots, common_length

TOKENS = st.lists(st.integers(0, 2), max_size=40)


@given(TOKENS, TOKENS, TOKENS)
def test_common_length_counts_equal_tokens_at_the_beginning(start: list[int], a: list[int], b: list[int]) -> None:
    a, b = start + a, start + b
    expected = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_length(a, b) == expected


def test_the_slot_with_most_of_the_prompt_is_used() -> None:
    slots = Slots(3)
    with slots.use([1, 2, 3], None) as slot:
        slot.tokens, first = [1, 2, 3], slot.number
    with slots.use([9], None) as other:
        other.tokens = [9]
    assert other.number != first
    with slots.use([1, 2, 3, 4], None) as again:
        assert again.number == first
    with slots.use([1, 2, 3, 4], "adapter") as third:
        assert third.number not in (first, other.number)


def test_a_failed_request_leaves_nothing_recorded_in_its_slot() -> None:
    slots = Slots(1)
    with suppress(ValueError), slots.use([1, 2], None) as slot:
        slot.tokens = [1, 2]
        raise ValueError
    with slots.use([1, 2], None) as again:
        assert again.tokens == []


def test_threads_get_a_slot_in_the_order_of_their_calls() -> None:
    slots, order, ready = Slots(1), list[int](), threading.Semaphore(0)

    def work(number: int) -> None:
        ready.release()
        with slots.use([number], None):
            order.append(number)

    threads = []
    with slots.use([0], None):
        for number in range(5):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            ready.acquire()
            while len(slots._queue) <= number:
                threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(5))


def test_the_prefix_unused_for_longest_is_deleted(tmp_path: Path) -> None:
    saved, files = SavedPrefixes(limit=25), [tmp_path / str(n) for n in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(b"0123456789")
        saved.add(SavedPrefix([number], None, file))
        assert saved.find([0, 7], None)[1] == 1
    assert [file.exists() for file in files] == [True, False, True]
    assert saved.find([1, 7], None)[1] == 0
    assert saved.find([0], "adapter") == (None, 0)


def test_the_saved_prefix_with_most_of_the_prompt_is_found(tmp_path: Path) -> None:
    saved = SavedPrefixes(limit=100)
    for tokens in ([1], [1, 2], [1, 3]):
        saved.add(SavedPrefix(tokens, None, tmp_path / "x"))
    found, length = saved.find([1, 2, 3], None)
    assert found is not None
    assert (found.tokens, length) == ([1, 2], 2)
