"""How requests are laid out as trees: every text can be read off again, and nothing stands there twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.generation.scoring.base import Scored, ScoreRequest
from selfalign.generation.scoring.prefix_tree import Layout, lay_out

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(tuple)
REQUESTS = st.lists(st.builds(ScoreRequest, TOKENS, TOKENS), min_size=1, max_size=12)


def read_off(layout: Layout, requests: list[ScoreRequest]) -> None:
    """Each wanted token's node must end the very text that stands before the token."""
    seen = []
    for tree in layout.trees:
        assert all(parent < node for node, parent in enumerate(tree.parents))
        for i, nodes in tree.targets:
            seen.append(i)
            assert len(nodes) == len(requests[i].continuation)
            for number, node in enumerate(nodes):
                path: list[int] = []
                at = node
                while at >= 0:
                    assert tree.positions[at] == tree.positions[node] - len(path)
                    path.append(tree.ids[at])
                    at = tree.parents[at]
                before = requests[i].ids[: len(requests[i].context) + number]
                assert (*layout.prefix, *reversed(path)) == before
    assert sorted(seen) == list(range(len(requests)))


@given(REQUESTS, st.integers(1, 40), st.integers(0, 6))
def test_every_text_can_be_read_off_its_tree(requests: list[ScoreRequest], budget: int, begin: int):
    head = tuple(range(10, 10 + begin * 8))  # up to 40 tokens that all texts begin with
    requests = [ScoreRequest(head + r.context, r.continuation) for r in requests]
    layout = lay_out(requests, budget)
    read_off(layout, requests)
    read_off(lay_out(requests, shared=False), requests)
    for tree in layout.trees:
        below = list(zip(tree.parents, tree.ids, strict=True))
        assert len(set(below)) == len(below)  # no two nodes say the same at the same place


def test_a_long_common_beginning_is_computed_once():
    head = tuple(range(100))
    requests = [ScoreRequest((*head, 200 + i), (1, 2)) for i in range(50)]
    layout = lay_out(requests, budget=20)
    assert layout.prefix == head and layout.computed == 100 + 50 * 2
    read_off(layout, requests)
    assert lay_out(requests, budget=20, cached=head[:80]).prefix == head[:80]
    assert lay_out(requests, budget=20, cached=head[:10]).prefix == head
    assert lay_out(requests, budget=20, cached=(7, 7)).prefix == head


def test_candidates_share_their_context_and_one_token_answers_cost_nothing():
    context = tuple(range(30))
    answers = [ScoreRequest(context, (i,)) for i in range(5)] + [ScoreRequest(context, (9, i)) for i in range(5)]
    layout = lay_out(answers)
    # Thirty tokens of context, and the 9: the last token of an answer is never an input.
    assert layout.computed == 31
    read_off(layout, answers)
    (tree,) = layout.trees
    assert len(tree.rows()) == 2


def test_a_tree_grows_past_its_budget_only_for_what_shares_enough():
    long = tuple(range(60))
    requests = [ScoreRequest(long, (i, *range(20))) for i in range(5)]
    assert len(lay_out(requests, budget=80).trees) == 2
    apart = [ScoreRequest((i, *range(40)), (1,)) for i in range(4)]
    assert [len(t.ids) for t in lay_out(apart, budget=80).trees] == [41] * 4


def test_an_empty_part_is_refused():
    for parts in (((), (1,)), ((1,), ())):
        with pytest.raises(ValueError, match="at least one token"):
            ScoreRequest(*parts)


def test_totals():
    found = Scored((-1.0, -3.0))
    assert (found.total, found.per_token) == (-4.0, -2.0)
