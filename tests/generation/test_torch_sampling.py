"""Drawing tokens from logits, and the penalty on repetition."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfalign.generation.engines.base import Sampling
from selfalign.generation.engines.repetition import penalties
from selfalign.generation.engines.torch_sampling import Draw, draw, largest


def drawn(logits: list[float], sampling: Sampling, number: int = 400, **more: object) -> set[int]:
    draws = [Draw(sampling, np.random.default_rng(n), **more) for n in range(number)]  # type: ignore[arg-type]
    return set(draw(torch.tensor([logits]).repeat(number, 1), draws))


def test_limits_decide_which_tokens_are_drawn() -> None:
    logits = [3.0, 2.0, 1.0, -9.0]
    assert drawn(logits, Sampling(0.0, 1.0, 1)) == {0}
    assert drawn(logits, Sampling(1.0, 1.0, 1, top_k=2)) == {0, 1}
    assert drawn(logits, Sampling(1.0, 0.5, 1)) == {0}
    assert drawn(logits, Sampling(1.0, 0.99, 1)) == {0, 1, 2}
    assert drawn(logits, Sampling(1.0, 0.99, 1), changes={0: float("-inf"), 1: -20.0}) == {2}
    assert drawn(logits, Sampling(1.0, 1.0, 1), allowed=np.array([3])) == {3}


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, float(np.log(3))]]).repeat(4000, 1)
    tokens = draw(logits, [Draw(Sampling(1.0, 1.0, 1), np.random.default_rng(n)) for n in range(4000)])
    assert 0.72 < sum(tokens) / 4000 < 0.78


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5000))
def test_largest_equals_a_full_sort(seed: int, number: int, size: int) -> None:
    logits = torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
    values, tokens = largest(logits.clone(), number)
    assert torch.equal(values, logits.sort(1, descending=True).values[:, : values.shape[1]])
    assert torch.equal(values, logits.gather(1, tokens))


def test_longer_repetition_costs_more() -> None:
    nothing = lambda _: False  # noqa: E731
    assert penalties([1, 2, 3, 1, 2], 1.0, 2, nothing) == {3: 1.0}
    assert penalties([9, 1, 2, 3, 9, 1, 2], 1.0, 2, nothing) == {3: 2.0}
    assert penalties([1, 2, 3, 4, 2], 1.0, 2, nothing) == {}
    assert penalties([1, 2, 3, 1, 2], 0.0, 2, nothing) == {}


def test_break_ends_a_repeated_sequence() -> None:
    assert penalties([1, 7, 2, 3, 1, 7, 2], 1.0, 2, lambda token: token == 7) == {}
    assert penalties([7, 1, 2, 3, 7, 1, 2], 1.0, 2, lambda token: token == 7) == {3: 1.0}
