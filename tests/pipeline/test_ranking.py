"""Stage 2 with several samples: their outcomes in the journal, and the ranking by contrast, on the fake engine."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

import pytest

from selfalign.constitution.rendering import render
from selfalign.data.prompt_text import BOS
from selfalign.data.records import Prompt, Response, prompt_id, read_jsonl, write_jsonl
from selfalign.errors import Interrupted
from selfalign.evaluation import scoring
from selfalign.evaluation.models import ComparedModel, ScorerGroup
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Fake, default_script
from selfalign.generation.scoring.base import Scored, Text
from selfalign.model.dialogue import PLAIN
from selfalign.pipeline import ranking, step2_self_align
from selfalign.run.context import Context
from selfalign.run.ledger import CandidateOutcome

Runs = Callable[..., Context]
TYPES = ("harmful requests", "opinions", "")


def script_with(empty: float) -> Callable[[str, Step, random.Random], str]:
    """Return a script that responds with nothing to this fraction of the samples."""

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        if prompt.endswith("\n\nAlma:"):
            return " " if rng.random() < empty else f" The sea is {rng.randrange(10**6)} waves wide."
        return default_script(prompt, step, rng)

    return script


class Words:
    """A scorer that likes large numbers: with the constitution, each token is likelier by that number."""

    name = "words"
    tokens = (0, 0)

    def __init__(self, stop_after: int = 1000) -> None:
        self.calls: list[list[str]] = []
        self._stop_after = stop_after

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        assert adapter is None
        if len(self.calls) == self._stop_after:
            raise Interrupted(signal.SIGTERM)
        self.calls.append(["".join(p for p in context if p != BOS) for context, _ in requests])
        return [Scored(tuple(self._logprobs(*request))) for request in requests]

    def _logprobs(self, context: Sequence[str], continuation: str) -> list[float]:
        words = continuation.split()
        gain = next(int(w) for w in words if w.isdigit()) / 10**6 if len(context) > 2 else 0.0
        return [-3.0 - n / 100 + gain for n in range(len(words))]

    def close(self) -> None:
        pass


@pytest.fixture
def ranked(fake_run: Runs, monkeypatch: pytest.MonkeyPatch) -> Callable[[Words], Context]:
    """Makes the context of a run with nine prompts whose responses the given scorer ranks."""
    monkeypatch.setattr(ranking, "is_on", lambda context: True)
    monkeypatch.setattr(scoring, "check_scorer", lambda scorer: None)
    made: list[Context] = []

    def make(scorer: Words) -> Context:
        model = ComparedModel("base", "standard", None, "words")
        group = lambda *_: [ScorerGroup([model], lambda: PLAIN, lambda: scorer)]  # noqa: E731
        monkeypatch.setattr(ranking, "scorers_of_run", group)
        context = made[0] if made else with_prompts(fake_run("align.rank=contrast", "align.samples=4"))
        made.append(context)
        return context

    return make


def with_prompts(context: Context, **engine: object) -> Context:
    """Give the run nine prompts of three types in turn."""
    texts = [f"Question number {n} about the {w}?" for n, w in enumerate(("sea", "sky", "sun") * 3)]
    rows = [Prompt(prompt_id(t, ""), t, exemplar_type=TYPES[n % 3]) for n, t in enumerate(texts)]
    write_jsonl(context.run.jsonl("prompts"), rows)
    context._engine = Fake(parallel=2, **{"script": script_with(0.25), **engine})  # type: ignore[arg-type]
    return context


def align(context: Context) -> dict[str, str]:
    step2_self_align.run(context)
    return {r.id: r.response for r in read_jsonl(context.run.jsonl("responses"), Response)}


def by_row(context: Context) -> dict[str, list[CandidateOutcome]]:
    return {row: list(group) for row, group in groupby(context.journal.candidates("align"), lambda c: c.id)}


def test_every_sample_has_an_outcome(fake_run: Runs):
    context = with_prompts(fake_run("align.samples=4", "max_failed=1"), script=script_with(0.6), fail="number 4")
    kept = align(context)
    several, counts = by_row(context), context.journal.counts("align")
    requests = counts.generation.requests + sum(counts.failed.values())
    assert requests == sum(map(len, several.values())) + 9 - len(several)
    assert any(len(candidates) > 1 for candidates in several.values())
    for row, candidates in several.items():
        assert [c.sample for c in candidates] == list(range(len(candidates)))
        assert Counter(c.state for c in candidates)["kept"] == (row in kept)
        assert all(bool(c.reason) == (c.state != "kept") and c.score is None for c in candidates)
    context.journal.restart("align")
    assert context.journal.candidates("align") == []


def test_contrast_keeps_the_response_with_the_best_score(ranked: Callable[[Words], Context]):
    context = ranked(Words())
    kept = align(context)
    rows = by_row(context)
    assert len(rows) == 9 and all(len(candidates) == 4 for candidates in rows.values())
    for row, text in kept.items():
        scores = [c.score for c in rows[row] if c.score is not None]
        best = next(c for c in rows[row] if c.state == "kept")
        if scores:  # of one response that passes, there is nothing to rank
            assert best.score == max(scores) == pytest.approx(int(text.split()[3]) / 10**6, abs=1e-4)
            assert len(scores) == len([c for c in rows[row] if c.reason != "empty"])
    counts = context.journal.counts("align")
    assert counts.rows_in == 9 == counts.kept + sum(counts.dropped.values())
    assert "align_scores" not in context.journal.stages()


def test_responses_of_a_type_are_scored_together(ranked: Callable[[Words], Context]):
    scorer = Words()
    context = ranked(scorer)
    align(context)
    prefixes = [render(context.run.constitution, name) for name in TYPES]
    found = [{next((p for p in prefixes if text.startswith(p)), "") for text in call} for call in scorer.calls]
    assert all(len(kinds) == 1 for kinds in found)
    assert sorted(kinds.pop() for kinds in found if kinds != {""}) == sorted(prefixes)


def test_interrupted_ranking_resumes_with_the_same_result(ranked: Callable[[Words], Context]):
    with pytest.raises(Interrupted):
        align(ranked(Words(stop_after=3)))
    scorer = Words()
    context = ranked(scorer)
    context._engine = Fake(fail="Question")  # a new request would fail
    kept, rows = align(context), by_row(context)
    assert len(scorer.calls) == 3
    assert align(ranked(Words(stop_after=0))) == kept
    assert by_row(context) == rows


def test_fake_engine_draws_all_samples_without_ranking(fake_run: Runs):
    context = with_prompts(fake_run("align.samples=3", "align.rank=contrast"))
    assert align(context) and not ranking.is_on(context)
    assert all(c.score is None for c in context.journal.candidates("align"))
