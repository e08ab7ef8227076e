"""Prefix trees contain every text, and each shared token once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.generation.scoring.base import Scored, ScoreRequest
from selfalign.generation.scoring.prefix_tree import Layout, lay_out

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(tuple)
REQUESTS = st.lists(st.builds(ScoreRequest, TOKENS, TOKENS), min_size=1, max_size=12)


def check_layout(layout: Layout, requests: list[ScoreRequest]) -> None:
    """Check that each target node ends the text before its continuation token."""
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
def test_tree_contains_every_text_without_duplicates(requests: list[ScoreRequest], budget: int, begin: int):
    head = tuple(range(10, 10 + begin * 8))  # a prefix of up to 48 tokens
    requests = [ScoreRequest(head + r.context, r.continuation) for r in requests]
    layout = lay_out(requests, budget)
    check_layout(layout, requests)
    for tree in layout.trees:
        below = list(zip(tree.parents, tree.ids, strict=True))
        assert len(set(below)) == len(below)  # siblings differ


def test_long_common_prefix_is_computed_once():
    head = tuple(range(100))
    requests = [ScoreRequest((*head, 200 + i), (1, 2)) for i in range(50)]
    layout = lay_out(requests, budget=20)
    assert layout.prefix == head and layout.computed == 100 + 50 * 2
    check_layout(layout, requests)
    assert lay_out(requests, budget=20, cached=head[:80]).prefix == head[:80]
    assert lay_out(requests, budget=20, cached=head[:10]).prefix == head
    assert lay_out(requests, budget=20, cached=(7, 7)).prefix == head


def test_candidates_share_their_context():
    context = tuple(range(30))
    answers = [ScoreRequest(context, (i,)) for i in range(5)] + [ScoreRequest(context, (9, i)) for i in range(5)]
    layout = lay_out(answers)
    # The context has 30 tokens, and the 9 follows: the last token of a continuation is never an input.
    assert layout.computed == 31
    check_layout(layout, answers)
    (tree,) = layout.trees
    assert len(tree.rows()) == 2


def test_tree_exceeds_its_budget_only_for_shared_tokens():
    long = tuple(range(60))
    requests = [ScoreRequest(long, (i, *range(20))) for i in range(5)]
    assert len(lay_out(requests, budget=80).trees) == 2
    apart = [ScoreRequest((i, *range(40)), (1,)) for i in range(4)]
    assert [len(t.ids) for t in lay_out(apart, budget=80).trees] == [41] * 4


def test_empty_context_or_continuation_is_an_error():
    for parts in (((), (1,)), ((1,), ())):
        with pytest.raises(ValueError, match="at least one token"):
            ScoreRequest(*parts)


def test_score_totals():
    score = Scored((-1.0, -3.0))
    assert (score.total, score.per_token) == (-4.0, -2.0)
