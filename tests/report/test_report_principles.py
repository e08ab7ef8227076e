"""Counts of principles, verbs and lengths, and even samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.data.records import Prompt, Response, prompt_id, write_jsonl
from selfalign.report import data_quality, principles
from selfalign.run.context import Context

Runs = Callable[..., Context]


def answer(text: str, cited: list[int], source: str = "self_instruct", kind: str = "", words: int = 20) -> Response:
    said = " ".join(["word"] * words)
    return Response(prompt_id(text, ""), text, "", said, f"Thoughts on {text}", cited, source, kind)


ROWS = [
    answer("Write a poem about rain.", [15]),
    answer("Write a letter to Ann.", [15, 3]),
    answer("Who won today?", [9, 12], "red_team", "current events"),
    answer("What costs a loaf now?", [9], "red_team", "current events", words=200),
    answer("What is the time?", [9, 7], "red_team", "real-time information"),
]


def counted(fake_run: Runs, rows: list[Response]) -> dict:
    context = fake_run()
    write_jsonl(context.run.jsonl("prompts"), (Prompt(r.id, r.instruction, source=r.source) for r in rows))
    write_jsonl(context.run.jsonl("responses"), rows)
    return principles.gather(context.run, data_quality.tag_verbs(context.run))


def test_principles_are_counted_by_source_type_and_verb(fake_run: Runs):
    pytest.importorskip("textblob")
    report = counted(fake_run, ROWS)
    by_id = {p["id"]: p for p in report["principles"]}
    assert by_id[9]["used"] == 3
    assert by_id[9]["by_source"] == {"self_instruct": 0, "red_team": 3}
    assert by_id[15]["by_source"] == {"self_instruct": 2, "red_team": 0}
    assert by_id[1]["used"] == 0
    use = report["principle_use"]
    assert (use["answers"], use["citations"], use["by_source"]) == (5, 8, {"self_instruct": 2, "red_team": 3})
    types = {t["name"]: t for t in use["question_types"]}
    assert types["current events"] == {"name": "current events", "answers": 2, "principles": {"9": 2, "12": 1}}
    assert [t["name"] for t in use["question_types"]] == ["real-time information", "current events"]
    verbs = {v["name"]: v for v in use["verbs"]}
    assert verbs["write"] == {"name": "write", "answers": 2, "principles": {"15": 2, "3": 1}}


def test_examples_cite_their_principle_first_and_are_distinct(fake_run: Runs):
    examples = {e["principle"]: e for e in counted(fake_run, ROWS)["examples"]}
    assert examples[15]["message"] == "Write a poem about rain."
    assert examples[3]["message"] == "Write a letter to Ann."
    assert examples[12]["message"] == "Who won today?"
    assert examples[7]["message"] == "What is the time?"
    assert examples[9]["message"] == "What costs a loaf now?", "the others stand for 7 and 12 already"
    assert examples[9]["thoughts"] == "Thoughts on What costs a loaf now?"
    assert 1 not in examples


def test_only_response_is_example_of_all_its_principles(fake_run: Runs):
    examples = counted(fake_run, [answer("Only one.", [2, 3])])["examples"]
    assert [(e["principle"], e["message"]) for e in examples] == [(2, "Only one."), (3, "Only one.")]


def test_run_without_responses_has_no_citations(fake_run: Runs):
    report = principles.gather(fake_run().run, {})
    assert report["examples"] == []
    assert report["principle_use"]["citations"] == 0
    assert len(report["principles"]) == 16


# -- samples, lengths, verbs -------------------------------------------------------------------------------------------


def test_sample_is_even_ordered_and_reproducible():
    assert data_quality.sample(range(5), 10) == ([0, 1, 2, 3, 4], 5)
    some, number = data_quality.sample(iter(range(10_000)), 1000)
    assert (len(some), number) == (1000, 10_000)
    assert some == sorted(some) == data_quality.sample(range(10_000), 1000)[0]
    halves = Counter(n < 5000 for n in some)
    assert 430 < halves[True] < 570, "drawn evenly: 500, give or take four standard deviations of 16"


@given(st.lists(st.integers(0, 3000), max_size=50))
def test_histogram_of_lengths_adds_up(lengths: list[int]):
    summary = data_quality.lengths(" ".join(["w"] * n) for n in lengths)
    assert summary["texts"] == sum(summary["histogram"]) == len(lengths)
    if lengths:
        ordered = sorted(lengths)
        assert summary["longest"] == ordered[-1]
        assert ordered[0] <= summary["low"] <= summary["median"] <= summary["high"] <= summary["longest"]


def test_lengths_are_counted_in_their_bins():
    summary = data_quality.lengths(["", "a", "a b", "a b c", " ".join("w" * 5), " ".join("w" * 9000)])
    starts = dict(zip(data_quality.LENGTHS, summary["histogram"], strict=True))
    assert (starts[1], starts[2], starts[3], starts[4], starts[2048]) == (2, 1, 1, 1, 1)


def test_verbs_prefer_self_instruct_prompts():
    tagged = [("self_instruct", ("write", "poem"))] * 3 + [("self_instruct", ("write", ""))]
    tagged += [("self_instruct", ("list", "river")), ("red_team", ("win", "prize"))]
    pairs = data_quality.verb_objects(tagged)
    assert (pairs["of"], pairs["texts"], pairs["different"]) == ("self_instruct", 5, 3)
    assert pairs["verbs"] == [
        {"verb": "write", "objects": [["poem", 3]]},
        {"verb": "list", "objects": [["river", 1]]},
    ]
    assert data_quality.verb_objects([("user", ("sort", "word"))])["of"] == "all"


def test_verbs_and_objects_are_limited():
    tagged = [("user", (f"verb{v}", f"noun{n}")) for v in range(30) for n in range(9)]
    verbs = data_quality.verb_objects(tagged)["verbs"]
    assert len(verbs) == 20
    assert {len(v["objects"]) for v in verbs} == {4}


def test_citations_agree_with_hints_more_often_than_permuted():
    first, second = frozenset({1}), frozenset({2, 3})
    rows = [(first, frozenset({1, 5})), (first, frozenset({1})), (second, frozenset({3})), (second, frozenset({4}))]
    assert principles.hint_agreement(rows) == {"answers": 4, "agree": 3, "permuted": 2 * 2 / 4 + 2 * 1 / 4}
    assert principles.hint_agreement([]) == {"answers": 0, "agree": 0, "permuted": 0}
