"""A broken scorer is an error before it scores a benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from selfalign.errors import UserError
from selfalign.evaluation import scoring
from selfalign.generation.scoring.base import Scored, Text


class Scripted:
    """A scorer by rule."""

    name = "scripted"
    tokens = (0, 0)

    def __init__(self, rule: Callable[[int], Scored | None]) -> None:
        self._rule = rule

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        return [self._rule(i) for i in range(len(requests))]

    def close(self) -> None: ...


def test_working_scorer_passes():
    scoring.check_scorer(Scripted(lambda i: Scored((-1.0 - i % 2,))))
    # Two wrong are let pass: a small model may miss one.
    scoring.check_scorer(Scripted(lambda i: Scored((-1.0 - (i % 2 if i >= 4 else -(i % 2) + 1),))))


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (lambda i: Scored((0.0, 0.0)), "0 for every token"),
        (lambda i: Scored((-2.5,)), "-2.5000 for every token"),
        (lambda i: Scored((math.nan,)), "gave nan"),
        (lambda i: Scored((-math.inf if i == 7 else -1.0,)), "gave -inf"),
        (lambda i: Scored((0.5 - i,)), "gave 0.5"),
        (lambda i: Scored((-1.0 - (i // 2 + i) % 2,)), "at chance on trivial items: 6 of 12 are right"),
        (lambda i: Scored((-2.0 + i % 2,)), "0 of 12 are right"),
        (lambda i: None, "nothing can be scored"),
    ],
)
def test_broken_scorer_is_an_error_of_one_line(rule: Callable[[int], Scored | None], match: str):
    with pytest.raises(UserError, match=match) as error:
        scoring.check_scorer(Scripted(rule))
    assert "\n" not in str(error.value) and "scripted" in str(error.value)


def test_single_number_is_no_error():
    scoring.check_numbers([Scored((-2.0,))], "x", "one item")
