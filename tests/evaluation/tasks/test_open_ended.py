"""Open-ended questions on the fake engine: answers, a rule-based judge in both orders, resuming, two-shot."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from scripted_judges import prefers
from selfalign.constitution import Constitution
from selfalign.data.records import read_jsonl
from selfalign.errors import Interrupted, UserError
from selfalign.evaluation import benchmarks, evaluate, judges, models, results
from selfalign.evaluation.benchmarks import Benchmark
from selfalign.evaluation.evaluate import EvaluationRequest
from selfalign.evaluation.judges import Judge
from selfalign.evaluation.models import ComparedModel, EngineGroup
from selfalign.evaluation.records import OpenAnswer, PairVerdict, Score
from selfalign.evaluation.results import ResultStore
from selfalign.evaluation.tasks import ORIGINS, TASKS, open_ended
from selfalign.evaluation.tasks.open_ended import OpenQuestion, OpenQuestions
from selfalign.generation.engines.base import Step
from selfalign.generation.engines.fake import Fake, default_script
from selfalign.model.dialogue import PLAIN
from selfalign.report import side_by_side
from selfalign.run.context import Context
from selfalign.run.journal import Journal
from selfalign.system.console import Screen

DATA = Path(__file__).parents[2] / "data"
VICUNA, OWN = str(DATA / "fixture_vicuna.jsonl"), str(DATA / "fixture_questions.jsonl")
REQUEST = EvaluationRequest(["vicuna"], data={"vicuna": VICUNA})
Script = Callable[[str, Step, random.Random], str]


def load(name: str, source: str) -> Benchmark:
    return benchmarks.load(ORIGINS[name], source)


def a_judge(script: Script, name: str = "by rule") -> Judge:
    return Judge(name, Fake(parallel=2, script=script), f"identity of {name}")


@pytest.fixture
def judged_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Judge], None]:
    def use(judge: Judge) -> None:
        monkeypatch.setattr(models, "open_judge", lambda *_: nullcontext(judge))

    return use


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def under_the_constitution(prompt: str, step: Step, rng: random.Random) -> str:
    """The prompted base gives a good answer, every other model some answer."""
    if prompt.rstrip().endswith(("(internal thoughts):", "Principles:")):
        return default_script(prompt, step, rng)
    return f" {'good' if '# Conversations' in prompt else 'some'} answer\n\nUser:"


def by(scores: list[Score], model: str, start: str, benchmark: str = "vicuna (fixture)") -> Score:
    [result] = [s for s in scores if (s.benchmark, s.model) == (benchmark, model) and s.measure.startswith(start)]
    return result


def test_without_a_judge_answers_have_scores_without_value(fake_run: Callable[..., Context]) -> None:
    context = fake_run()
    evaluate.run(context, REQUEST)
    rows = read_jsonl(context.run.evaluation / "vicuna.jsonl", OpenAnswer)
    assert [r.model for r in rows[::4]] == ["base", "prompted base", "engraved", "final"] and len(rows) == 16
    assert [(r.category, r.question_id, r.question) for r in rows[:4]] == [
        (i.subset, i.key, i.turns[0]) for i in load("vicuna", VICUNA).items if isinstance(i, OpenQuestion)
    ]
    assert all(r.answer and "Principles:" not in r.answer for r in rows)
    assert not (context.run.evaluation / "vicuna-verdicts.jsonl").exists()
    scores = results.read_scores(context.run.scores)
    assert [(s.benchmark, s.model, s.measure, s.n, s.value) for s in scores] == [
        ("vicuna (fixture)", m, "win rate: not judged", 4, None) for m in ("base", "prompted base", "engraved", "final")
    ]
    requests = context.journal.counts("vicuna").generation.requests
    evaluate.run(context, REQUEST)
    assert context.journal.counts("vicuna").generation.requests == requests
    assert read_jsonl(context.run.evaluation / "vicuna.jsonl", OpenAnswer) == rows
    assert context.journal.counts("vicuna").rows_in == 16


def test_judge_compares_in_both_orders(
    fake_run: Callable[..., Context], judged_by: Callable[[Judge], None], capsys: pytest.CaptureFixture[str]
) -> None:
    context = fake_run(script=under_the_constitution)
    context.screen = Screen(0)
    judged_by(a_judge(prefers("good")))
    evaluate.run(context, replace(REQUEST, judge="embedded"))
    scores = results.read_scores(context.run.scores)
    won = by(scores, "prompted base", "win rate")
    assert (won.measure, won.value, won.n, won.vs) == (
        "win rate against base, judged by by rule",
        1,
        4,
        "base (standard)",
    )
    assert won.low and won.low > 0.5 and won.p == pytest.approx(2 / 2**4)
    for model in ("engraved", "final"):  # on the fake engine they say what the base says
        assert by(scores, model, "win rate against base").value == 0.5
        assert by(scores, model, "ties against base").value == 4
    assert by(scores, "final", "ties against engraved").vs == "engraved"
    assert by(scores, "prompted base", "win rate", "vicuna (fixture)/writing").n == 1
    assert not any("not judged" in s.measure for s in scores)
    ledger = context.journal.counts("pair-judge")
    assert (ledger.finished, ledger.rows_in, ledger.kept) == (True, 20, 20)
    assert "right on 100%" in ledger.notes["trial"]
    assert "20 pairs: it preferred the first answer in both orders in 0" in capsys.readouterr().err.replace("\n", " ")
    rows = read_jsonl(context.run.evaluation / "vicuna-verdicts.jsonl", PairVerdict)
    assert {(r.model, r.verdict) for r in rows} == {
        ("prompted base", "win"), ("engraved", "tie"), ("final", "tie"), ("final", "loss")
    }  # fmt: skip
    # Later without a judge, then with another one: what was judged stays judged.
    evaluate.run(context, REQUEST)
    assert results.read_scores(context.run.scores) == scores
    judged_by(
        a_judge(lambda p, s, r: " A" if "good" in p.rsplit("Answer A:", 1)[1] else prefers("?")(p, s, r), "other")
    )
    evaluate.run(context, replace(REQUEST, judge="embedded", models=["base"]))
    measures = {s.measure for s in results.read_scores(context.run.scores)}
    assert {f"win rate against base, judged by {j}" for j in ("by rule", "other")} < measures


def test_new_judge_weights_replace_verdicts(
    fake_run: Callable[..., Context], judged_by: Callable[[Judge], None]
) -> None:
    context, request = (
        fake_run(script=under_the_constitution),
        replace(REQUEST, judge="embedded", models=["base", "prompted"]),
    )
    for word, wins, losses in (("good", 4, 0), ("some", 0, 4)):
        judged_by(Judge("j", Fake(script=prefers(word)), word))
        evaluate.run(context, request)
        scores = results.read_scores(context.run.scores)
        assert [by(scores, "prompted base", m).value for m in ("wins", "losses")] == [wins, losses]
    assert len(read_jsonl(context.run.evaluation / "vicuna-verdicts.jsonl", PairVerdict)) == 4


def test_position_bias_is_counted(fake_run: Callable[..., Context], judged_by: Callable[[Judge], None]) -> None:
    context = fake_run()
    knows = prefers("-")
    judged_by(a_judge(lambda p, s, r: " A" if knows(p, s, r) == " tie" else knows(p, s, r)))
    evaluate.run(context, replace(REQUEST, judge="embedded", models=["base", "final"]))
    scores = results.read_scores(context.run.scores)
    assert by(scores, "final", "first place in both orders against base").value == 4
    assert by(scores, "final", "second place in both orders against base").value == 0
    assert by(scores, "final", "win rate").value == 0.5


@pytest.mark.parametrize(
    "script", [lambda p, s, r: " A", lambda p, s, r: r.choice([" A", " B"]), lambda p, s, r: " maybe"]
)
def test_judge_at_chance_judges_nothing(
    fake_run: Callable[..., Context],
    judged_by: Callable[[Judge], None],
    script: Script,
    capsys: pytest.CaptureFixture[str],
) -> None:
    context = fake_run()
    context.screen = Screen(0)
    judge = a_judge(script)
    judged_by(judge)
    evaluate.run(context, replace(REQUEST, judge="embedded", models=["base", "prompted"]))
    assert "it judges nothing" in capsys.readouterr().err.replace("\n", " ")
    assert not (context.run.evaluation / "vicuna-verdicts.jsonl").exists()
    assert isinstance(judge.engine, Fake) and judge.engine.requests == 2 * len(judges.CERTAIN_PAIRS)
    assert {s.measure for s in results.read_scores(context.run.scores)} == {"win rate: not judged"}


def test_other_replies_count_as_unparsable(
    fake_run: Callable[..., Context], judged_by: Callable[[Judge], None]
) -> None:
    context = fake_run(script=under_the_constitution)
    knows = prefers("good")
    judged_by(a_judge(lambda p, s, r: " A better one" if "lighthouse" in p else knows(p, s, r)))
    evaluate.run(context, replace(REQUEST, judge="embedded", models=["base", "prompted"]))
    scores = results.read_scores(context.run.scores)
    assert by(scores, "prompted base", "unparsable").value == 1 and by(scores, "prompted base", "win rate").n == 3
    ledger = context.journal.counts("pair-judge")
    assert (ledger.kept, ledger.failed) == (3, {"neither A, B nor tie": 1})
    none = by(scores, "prompted base", "win rate", "vicuna (fixture)/writing")
    assert (none.n, none.value, none.p) == (0, None, None)


def test_interrupted_judge_resumes(fake_run: Callable[..., Context], judged_by: Callable[[Judge], None]) -> None:
    context, request = (
        fake_run(script=under_the_constitution),
        replace(REQUEST, judge="embedded", models=["base", "prompted"]),
    )
    knows, certain = prefers("good"), 2 * len(judges.CERTAIN_PAIRS)
    left = [certain + 3]

    def stopped(prompt: str, step: Step, rng: random.Random) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted(15)
        return knows(prompt, step, rng)

    first = Judge("by rule", Fake(parallel=1, script=stopped), "identity of by rule")
    judged_by(first)
    with pytest.raises(Interrupted):
        evaluate.run(context, request)
    assert len(read_jsonl(context.run.evaluation / "vicuna.jsonl", OpenAnswer)) == 8, (
        "answers are never lost to a judge"
    )
    assert not (context.run.evaluation / "vicuna-verdicts.jsonl").exists()
    second = a_judge(knows)
    judged_by(second)
    evaluate.run(context, request)
    assert isinstance(second.engine, Fake) and second.engine.requests == 2 * 4 - 3
    third = a_judge(lambda p, s, r: pytest.fail("everything was judged"))  # type: ignore[arg-type, return-value]
    judged_by(third)
    evaluate.run(context, request)
    assert by(results.read_scores(context.run.scores), "prompted base", "wins").value == 4


def test_two_shot_prepends_worked_turns_and_is_a_column(
    fake_run: Callable[..., Context], default_constitution: Constitution
) -> None:
    seen: list[str] = []

    def script(prompt: str, step: Step, rng: random.Random) -> str:
        seen.append(prompt)
        return default_script(prompt, step, rng)

    context = fake_run(script=script)
    models = ["base", "final"]
    evaluate.run(context, replace(REQUEST, models=models))
    assert not any(default_constitution.prompts.two_shot[0].answer in p for p in seen)
    seen.clear()
    evaluate.run(context, replace(REQUEST, models=models, prompt="two-shot"))
    assert len(seen) == 8
    for shot in default_constitution.prompts.two_shot:
        assert all(p.index(shot.user) < p.index(shot.answer) < p.rindex("?") for p in seen if "lighthouse" not in p)
    scores = results.read_scores(context.run.scores)
    assert [(s.model, s.prompt) for s in scores] == [(m, p) for p in ("standard", "two-shot") for m in models]
    without = replace_two_shot(default_constitution)
    with pytest.raises(UserError, match=r"prompts\.two_shot is empty"):
        evaluate.run(fake_run(name="without", texts=without), replace(REQUEST, prompt="two-shot"))


def test_report_shows_answers_side_by_side(fake_run: Callable[..., Context]) -> None:
    context = fake_run()
    assert side_by_side.gather(context.run) == {"side_by_side": [], "heldout": 0, "questions": []}
    evaluate.run(context, replace(REQUEST, models=["base", "final"]))
    evaluate.run(context, replace(REQUEST, models=["base"], prompt="two-shot"))
    [section] = side_by_side.questions(context.run)
    assert (section["title"], section["file"]) == ("Vicuna questions (fixture)", "5_evaluation/vicuna.jsonl")
    questions_ = [i.turns[0] for i in load("vicuna", VICUNA).items if isinstance(i, OpenQuestion)]
    assert [r["message"] for r in section["rows"]] == questions_ and section["number"] == 4
    assert all(set(r["answers"]) == {"base · standard", "base · two-shot", "final"} for r in section["rows"])


def replace_two_shot(texts: Constitution) -> Constitution:
    return texts.model_copy(update={"prompts": texts.prompts.model_copy(update={"two_shot": []})})


def model(name: str, word: str) -> EngineGroup:
    """Return a model whose every answer contains the word."""
    engine = Fake(parallel=2, script=lambda p, s, r: f" {word} words of {name}.\n\nUser:")
    compared = ComparedModel(name, "standard", None, f"{name} {word}")
    return EngineGroup([compared], lambda: PLAIN, lambda: engine)


def test_question_files_coexist_and_stale_verdicts_are_removed(
    fake_run: Callable[..., Context], tmp_path: Path
) -> None:
    context = fake_run()
    (tmp_path / "out").mkdir()
    store = ResultStore(tmp_path / "out", context.journal, Screen(-1))
    (tmp_path / "second.txt").write_text("What is a fjord?\n\n  How tall is a giraffe?  \n", "utf-8")
    judge = a_judge(prefers("good"))

    def ask(source: str, groups: list[EngineGroup], judged: bool = True) -> None:
        task, items = TASKS["questions"], load("questions", source)
        assert isinstance(task, OpenQuestions)
        evaluation = evaluate._Evaluation(
            EvaluationRequest(["questions"]), store, context.recipe, context.run.constitution, engines=groups
        )
        evaluation.items = {"questions": items}
        evaluation.measure()
        if judged:
            task.judge(store, items, judge)

    for source in (OWN, str(tmp_path / "second.txt")):
        ask(source, [model("base", "poor"), model("mine", "good")])
    rows = read_jsonl(store.path("questions"), OpenAnswer)
    assert [r.benchmark for r in rows[::4]] == ["questions (fixture_questions)"] * 2 + ["questions (second)"]
    assert [r.question for r in rows[-2:]] == ["What is a fjord?", "How tall is a giraffe?"]
    assert [r.question_id for r in rows[:4]] == ["tea-1", "walk", "", "4"]
    scores = evaluate.publish_scores(store)
    rates = {s.benchmark: s.value for s in scores if s.measure.startswith("win rate")}
    assert rates == dict.fromkeys(
        [*(f"questions (fixture_questions){c}" for c in ("", "/household", "/facts")), "questions (second)"], 1
    )
    # Other weights under the same name: their answers are not what was judged.
    ask(OWN, [model("mine", "worse")], judged=False)
    verdicts = read_jsonl(store.path("questions-verdicts"), PairVerdict)
    assert [v.benchmark for v in verdicts] == ["questions (second)"] * 2
    result = {
        (s.benchmark, s.model): s.measure for s in evaluate.publish_scores(store) if s.measure.endswith("not judged")
    }
    assert set(result) == {("questions (fixture_questions)", m) for m in ("base", "mine")}
    state = json.loads((store.folder / results.USAGE_LOG).read_text("utf-8"))
    assert {label: sorted(entry[results.MODELS_KEY]) for label, entry in state.items()} == {
        f"questions ({n})": ["base|standard", "mine|standard"] for n in ("fixture_questions", "second")
    }
    # A run of everything again judges what is new only, and replaces the judge's own verdicts.
    ask(OWN, [model("mine", "worse")])
    verdicts = read_jsonl(store.path("questions-verdicts"), PairVerdict)
    assert [v.verdict for v in verdicts] == ["win"] * 2 + ["tie"] * 4


def test_single_model_has_no_pairs(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [OpenAnswer("i", "vicuna", 0, "", "", "?", "standard", "base", "An answer", True)]
    silent = a_judge(lambda p, s, r: pytest.fail("the judge got a request"))  # type: ignore[arg-type, return-value]
    assert open_ended.judge_answers(rows, silent, journal, Screen(0)) == []
    assert "not compared" in capsys.readouterr().err


@pytest.mark.slow
def test_real_judge_is_restricted_to_its_replies(
    tmp_path: Path, default_constitution: Constitution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded model may fail its trial as a judge. If the trial is skipped, the grammar permits only verdicts."""
    request = EvaluationRequest(["questions"], data={"questions": OWN}, judge="judge=embedded", limit=3)
    out = tmp_path / "out"
    scores = evaluate.run_alone(out, ["embedded"], request, default_constitution, True, Screen(-1))
    rows = read_jsonl(out / "questions.jsonl", OpenAnswer)
    assert len(rows) == 6 and all(r.answer for r in rows)
    assert scores and all("not judged" in s.measure or "judged by judge" in s.measure for s in scores)
    monkeypatch.setattr(judges, "pair_trial", lambda judge, journal: judges.wilson(32, 32))
    scores = evaluate.run_alone(out, ["embedded"], request, default_constitution, True, Screen(-1))
    verdicts = read_jsonl(out / "questions-verdicts.jsonl", PairVerdict)
    assert len(verdicts) == 3 and all(v.verdict in ("win", "tie", "loss") for v in verdicts)
    assert by(scores, "embedded, prompted", "win rate against embedded", "questions (fixture_questions)").n == 3
