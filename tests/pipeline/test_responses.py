"""Test which of a prompt's responses is kept, and which responses the cap on stock refusals counts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import pytest

from selfalign.data.records import Prompt, Response, prompt_id, read_jsonl, write_jsonl
from selfalign.generation.engines.fake import Fake
from selfalign.generation.loop import GenerationResult
from selfalign.pipeline import step4_verbose_cloning
from selfalign.pipeline.responses import UNCHOSEN, Candidate, ResponseWriter, response_to
from selfalign.quality.contamination import Benchmarks
from selfalign.quality.filter_settings import FilterSettings
from selfalign.quality.response_filters import Leaks, ResponseJudge
from selfalign.run.context import Context
from selfalign.run.journal import LedgerWriter
from selfalign.run.ledger import CandidateOutcome, RowOutcome

REFUSAL, IGNORANCE, LIVE = "I cannot help with that.", "I do not know your aunt.", "I have no live data."


class Outcomes:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.kept: list[bool] = []
        self.candidates: list[CandidateOutcome] = []

    def record(self, outcome: RowOutcome, candidates: Sequence[CandidateOutcome] = ()) -> None:
        self.kept.append(outcome.state == "kept")
        self.candidates += candidates


@pytest.mark.parametrize(
    ("answer", "question_type", "is_wanted", "kept"),
    [
        (REFUSAL, "", False, False),
        (REFUSAL, "harmless questions", False, False),
        (REFUSAL, "harmful requests", True, True),
        (IGNORANCE, "", False, True),
        (IGNORANCE, "famous people", False, False),
        (IGNORANCE, "private people", True, True),
        (LIVE, "", False, True),
        (LIVE, "timeless facts", False, False),
        (LIVE, "live questions", True, True),
    ],
)
def test_cap_counts_only_refusals_that_nobody_wants(answer: str, question_type: str, is_wanted: bool, kept: bool):
    outcomes = Outcomes()
    filters = FilterSettings.model_validate({"responses": {"refusals": 0.0}}).responses
    judge = ResponseJudge(filters, Leaks("Alma", 8), Benchmarks())
    writer = ResponseWriter(io.BytesIO(), cast(LedgerWriter, outcomes), judge)
    prompt = Prompt("1", "How is it going there?", question_type=question_type)
    writer.add(response_to(prompt, answer), refusal_is_wanted=is_wanted)
    assert outcomes.kept == [kept]


def test_stage_four_keeps_admissions_that_a_type_wants(fake_run: Callable[..., Context]):
    context = fake_run("verbose_cloning.replay=0", "filters.verbose.refusals=0", "evaluate.heldout_prompts=0")
    names = ("real-time information", "facts that stay the same")
    texts = [f"{text} on the coast?" for text in ("How warm is it", "How many towns are there")]
    pairs = zip(texts, names, strict=True)
    rows = [Prompt(prompt_id(t, ""), t, question_type=name, exemplar_type=name) for t, name in pairs]
    write_jsonl(context.run.jsonl("prompts"), rows)
    answer = "I have no live data, so I cannot see the thermometers there. A website of your town shows them."
    context._engine = Fake(script=lambda *rest: answer)
    step4_verbose_cloning._respond(context)
    kept = read_jsonl(context.run.jsonl("verbose_responses"), Response)
    assert [r.question_type for r in kept if r.source != "identity"] == [names[0]]


def choose(candidates: Sequence[Candidate], refusals: float = 1.0) -> Outcomes:
    """Write the best of these candidates, after a failed one."""
    outcomes = Outcomes()
    filters = FilterSettings.model_validate({"responses": {"refusals": refusals}}).responses
    judge = ResponseJudge(filters, Leaks("Alma", 8), Benchmarks())
    writer = ResponseWriter(io.BytesIO(), cast(LedgerWriter, outcomes), judge)
    writer.add_best(candidates, failures={9: GenerationResult("x", None, "engine error")})
    return outcomes


def candidates(*scores: float | None, text: str = "The sea is salty, answer number") -> list[Candidate]:
    prompt = Prompt("1", "Why do ships float?")
    return [Candidate(response_to(prompt, f"{text} {n}."), sample=n, score=s) for n, s in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [((None, None), 0), ((0.1, 0.3, 0.2), 1), ((-0.2, -0.1), 1), ((None, -5.0), 1), ((0.5, 0.5), 0)],
)
def test_best_score_is_kept_or_else_the_first(scores: tuple[float | None, ...], chosen: int):
    outcomes = choose(candidates(*scores))
    *others, failed = outcomes.candidates
    assert [c.reason for c in others] == ["" if n == chosen else UNCHOSEN for n in range(len(scores))]
    assert [c.score for c in others] == list(scores)
    assert (failed.sample, failed.state, failed.reason) == (9, "failed", "engine error")


def test_filtered_candidate_is_not_chosen_whatever_its_score():
    poor, good = candidates(9.0, 0.1)
    outcomes = choose([replace(poor, truncated=True), good])
    assert [(c.state, c.reason) for c in outcomes.candidates[:2]] == [("dropped", "truncated"), ("kept", "")]


def test_cap_drops_the_chosen_candidate():
    outcomes = choose(candidates(0.1, 0.2, text="I cannot help with that, request"), refusals=0.0)
    assert outcomes.kept == [False]
    assert [c.reason for c in outcomes.candidates[:2]] == [UNCHOSEN, "more stock refusals than wanted"]
