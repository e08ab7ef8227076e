"""Primary endpoints: which comparisons they are, and Holm's correction."""

from __future__ import annotations

import pytest

from selfalign.data.scenarios import GROUPS
from selfalign.evaluation.endpoints import COUNTED, counted, holm, is_primary, subset, with_holm
from selfalign.evaluation.records import BehaviourAnswer, Score


def score(model: str = "final", vs: str | None = "base", p: float | None = 0.03, benchmark: str = "behaviour") -> Score:
    return Score(benchmark, "appropriate", model, "standard", 100, 0.5, vs=vs, difference=0.1, p=p)


def test_holm_multiplies_by_the_number_of_remaining_tests() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_primary_endpoints_compare_the_final_model_only() -> None:
    assert is_primary(score()) and is_primary(score(vs="prompted base (constitution)"))
    assert not is_primary(score("engraved")) and not is_primary(score(vs="engraved"))
    assert not is_primary(score(benchmark="behaviour/harmful"))


def test_only_primary_p_values_are_corrected() -> None:
    scores = [score(), score(vs="prompted base", p=0.02), score(vs="engraved"), score("engraved")]
    assert [s.holm for s in with_holm(scores)] == [pytest.approx(0.04), pytest.approx(0.04), None, None]
    # Each benchmark, such as the test half, has endpoints of its own.
    assert [s.holm for s in with_holm([score(), score(benchmark="behaviour (test)")])] == [0.03, 0.03]


def answer(kind: str, twin: bool = False, benchmark: str = "behaviour", evaded: bool = False) -> BehaviourAnswer:
    return BehaviourAnswer(
        "a", benchmark, 0, kind, "", "?", "final", "standard", "!", True, [], twin=twin, appropriate=True, evaded=evaded
    )  # fmt: skip


def test_only_groups_with_valid_rules_count() -> None:
    rows = [answer("live"), answer("live", twin=True), answer("opinion"), answer("harmful"), answer("harmful", True)]
    assert [subset(r) for r in counted(rows)] == ["live", "live twins", "harmful twins"]
    assert {name.removesuffix(" twins") for name in COUNTED} <= {*GROUPS}


def test_twins_count_if_they_are_not_evaded() -> None:
    rows = counted([answer("live", twin=True, evaded=True), answer("live", twin=True), answer("live", evaded=True)])
    assert [r.appropriate for r in rows] == [False, True, True]


def test_everything_counts_in_a_file_without_such_groups() -> None:
    assert len(counted([answer("opinion", benchmark="behaviour (mine)"), answer("live")])) == 2
