"""The time left of a run follows from its plan and from the parts that are finished."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from selfalign.system.schedule import Schedule

PLANNED = {"prompts": 60.0, "align": 120.0, "engrave": 240.0}


def test_time_left_is_that_of_the_later_parts():
    schedule = Schedule(PLANNED)
    assert schedule.left("align", 30) == 270
    assert schedule.left("align") == 360
    assert schedule.left("align", spent=100) == 260
    assert schedule.left("align", spent=200) == 240
    assert schedule.left("engrave", 0) == 0


def test_finished_part_corrects_the_plan():
    schedule = Schedule(PLANNED)
    schedule.finish("prompts", 120)
    assert schedule.left("align") == 720
    assert schedule.left("align", 30) == 510


def test_unplanned_parts_have_no_estimate_and_change_none():
    schedule = Schedule(PLANNED)
    schedule.finish("hhh", 9999)
    assert schedule.left("hhh") is None
    assert schedule.left("prompts") == 420
    assert Schedule({}).left("prompts", 5) is None


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e6)),
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1e9))),
)
def test_correction_is_limited(planned: dict[str, float], finished: list[tuple[str, float]]):
    schedule, uncorrected = Schedule(planned), Schedule(planned)
    for part, seconds in finished:
        schedule.finish(part, seconds)
    for part in planned:
        left, before = schedule.left(part), uncorrected.left(part)
        assert left is not None and before is not None and before / 4.001 <= left <= before * 4.001
