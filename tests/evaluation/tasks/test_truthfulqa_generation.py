"""TruthfulQA generation on the fake engine: answers, a rule-based judge, scores with and without it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from selfalign.data.records import read_jsonl
from selfalign.evaluation import benchmarks, evaluate, judges, models, results
from selfalign.evaluation.evaluate import EvaluationRequest
from selfalign.evaluation.judges import Judge, Referenced
from selfalign.evaluation.records import JudgedAnswer
from selfalign.evaluation.tasks import truthfulqa
from selfalign.evaluation.tasks.truthfulqa import ORIGIN, Question
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Fake, default_script
from selfalign.model import sources
from selfalign.run.context import Context
from selfalign.run.journal import Journal
from selfalign.system.console import Screen

GENERATION = "truthfulqa-generation"
SOURCE = str(Path(__file__).parents[2] / "data/fixture_truthfulqa.csv")
REQUEST = EvaluationRequest([GENERATION], data={"truthfulqa": SOURCE})
ITEMS = [i for i in benchmarks.load(ORIGIN, SOURCE).items if isinstance(i, Question)]


def referenced(item: Question) -> Referenced:
    return Referenced(benchmarks.item_id(item), item.question, item.correct, item.incorrect)


def knows(prompt: str, step: Step, rng: random.Random) -> str:
    """A judge that knows the fixture: an answer is true unless it is listed as incorrect."""
    assert step.grammar and prompt.count("Question:") == 4
    block = prompt.rsplit("\n\n", 1)[-1]
    answer = block.split("Given answer: ")[1].split("\n")[0]
    wrong = {a for i in ITEMS for a in i.incorrect}
    if "answers the question?" in block:
        return " no" if "not sure" in answer else " yes"
    return " no" if answer in wrong else " yes"


def a_judge(script: Callable[[str, Step, random.Random], str]) -> Judge:
    return Judge("by rule", Fake(parallel=2, script=script), "identity")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def test_without_a_judge_answers_have_scores_without_value(fake_run: Callable[..., Context]) -> None:
    context = fake_run()
    evaluate.run(context, REQUEST)
    rows = read_jsonl(context.run.evaluation / f"{GENERATION}.jsonl", JudgedAnswer)
    assert [r.model for r in rows[::8]] == ["base", "prompted base", "engraved", "final"] and len(rows) == 32
    assert all(r.truthful is None and r.answer and r.question for r in rows)
    assert not any("internal thoughts" in r.answer or "Principles:" in r.answer for r in rows)
    scores = results.read_scores(context.run.scores)
    assert [(s.model, s.measure, s.n, s.value) for s in scores] == [
        (m, "truthful and informative: not judged", 8, None) for m in ("base", "prompted base", "engraved", "final")
    ]
    assert {s.benchmark for s in scores} == {"truthfulqa (fixture) generation"}
    json.loads(context.run.scores.read_text("utf-8"), parse_constant=pytest.fail)  # no NaN, which is no JSON
    requests = context.journal.counts(GENERATION).generation.requests
    evaluate.run(context, REQUEST)
    assert context.journal.counts(GENERATION).generation.requests == requests
    assert read_jsonl(context.run.evaluation / f"{GENERATION}.jsonl", JudgedAnswer) == rows


def liar(prompt: str, step: Step, rng: random.Random) -> str:
    """The base gives incorrect answers, the prompted base is not sure."""
    if prompt.rstrip().endswith(("(internal thoughts):", "Principles:")):
        return default_script(prompt, step, rng)
    if "# Conversations" in prompt:
        return " I am not sure.\n\nUser:"
    item = next(i for i in ITEMS if i.question in prompt)
    return f" {item.incorrect[-1]}\n\nUser:"


def test_judge_decides_truthful_and_informative(
    fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = fake_run(script=liar)
    monkeypatch.setattr(models, "open_judge", lambda *_: nullcontext(a_judge(knows)))
    evaluate.run(
        context, EvaluationRequest([GENERATION], ["base", "prompted"], data={"truthfulqa": SOURCE}, judge="embedded")
    )
    result = {(s.measure, s.model): s for s in results.read_scores(context.run.scores)}
    base, prompted = (
        [result[f"{m}, judged by by rule", name].value for m in ("truthful", "informative", "truthful and informative")]
        for name in ("base", "prompted base")
    )
    assert (base, prompted) == ([0, 1, 0], [1, 0, 0])
    judged = context.journal.counts("judge")
    assert (judged.finished, judged.rows_in, judged.kept) == (True, 16, 16)
    assert result["truthful, judged by by rule", "prompted base"].p == pytest.approx(2 / 2**8)
    # Later without a judge, and with another model: what was judged stays judged.
    evaluate.run(context, replace(REQUEST, models=["base", "final"]))
    rows = read_jsonl(context.run.evaluation / f"{GENERATION}.jsonl", JudgedAnswer)
    assert [(r.model, r.truthful) for r in rows[::8]] == [("base", False), ("prompted base", True), ("final", None)]


@pytest.mark.parametrize(
    "script", [lambda p, s, r: " yes", lambda p, s, r: r.choice([" yes", " no"]), lambda p, s, r: " maybe"]
)
def test_judge_at_chance_judges_nothing(
    journal: Journal, script: Callable[[str, Step, random.Random], str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [JudgedAnswer("i", "truthfulqa", 0, "?", "standard", "base", "An answer", True)]
    result = truthfulqa.judge_answers(rows, benchmarks.load(ORIGIN, SOURCE), a_judge(script), journal, Screen(0))
    assert result == rows and "it judges nothing" in capsys.readouterr().err


def test_judged_reference_is_hidden_from_the_judge(journal: Journal) -> None:
    seen: list[str] = []

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        seen.append(prompt.rsplit("\n\n", 1)[-1])
        return knows(prompt, step, rng)

    result = judges.truth_trial(a_judge(script), journal, [referenced(i) for i in ITEMS])
    assert (result.value, len(seen)) == (1.0, 16)
    for block in seen:
        answer = block.split("Given answer: ")[1].split("\n")[0]
        lists = [line.split(": ", 1)[1].split("; ") for line in block.split("\n")[1:3]]
        assert all(answer not in answers for answers in lists)


def test_replies_other_than_yes_or_no_are_no_verdict(journal: Journal) -> None:
    pairs = [(referenced(ITEMS[0]), "a"), (referenced(ITEMS[1]), "b")]
    judge = a_judge(lambda p, s, r: " Yes" if "Given answer: a\n" in p else " 42")
    assert judges.judge_truth(judge, journal, pairs, informative=False) == [True, None]
    rows = [JudgedAnswer("i", "truthfulqa", 0, "?", "standard", "base", "a", True, True, None, "j")]
    assert truthfulqa.generation_scores(rows) == []


@pytest.mark.slow
def test_real_model_answers_truthfulqa(tmp_path: Path, default_constitution: object) -> None:
    """The embedded model may fail its trial as a judge."""
    from selfalign import constitution as constitutions

    assert sources.resolve("embedded").gguf_path
    request = EvaluationRequest([GENERATION], data={"truthfulqa": SOURCE}, judge="judge=embedded", limit=4)
    texts = constitutions.load("default")
    scores = evaluate.run_alone(tmp_path / "out", ["embedded"], request, texts, True, Screen(-1))
    rows = read_jsonl(tmp_path / "out" / f"{GENERATION}.jsonl", JudgedAnswer)
    assert len(rows) == 8 and all(r.answer for r in rows)
    assert scores and all("not judged" in s.measure or "judged by judge" in s.measure for s in scores)
