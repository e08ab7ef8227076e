"""`selfalign evaluate` from its words to its table, on a small random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

import small_models
from sample_constitutions import GOOD
from scripted_judges import prefers
from selfalign.cli.main import app
from selfalign.errors import UserError
from selfalign.evaluation import models, scoring
from selfalign.evaluation.judges import Judge
from selfalign.generation.engines.fake import Fake
from selfalign.run.context import Context

QUESTIONS = Path(__file__).parents[1] / "data/fixture_questions.jsonl"
HHH = Path(__file__).parents[1] / "data/fixture_hhh.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write(tmp_path_factory.mktemp("tiny"))


def evaluate(*words: str) -> str:
    """What the command prints; its error where it has one."""
    done = CliRunner().invoke(app, ["evaluate", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_model_is_measured_and_a_second_time_read_from_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scoring, "check_scorer", lambda scorer, adapter=None: None)
    (tmp_path / "c.yaml").write_text(GOOD, "utf-8")
    words = [
        f"small={folder}", "--benchmarks", "hhh", "--data", f"hhh={HHH}", "--out", str(tmp_path / "out"),
        "--constitution", str(tmp_path / "c.yaml"), "--prompt", "verbose", "--prompted",
    ]  # fmt: skip
    table = evaluate(*words)
    assert "hhh (fixture)  accuracy by log-likelihood" in table and "harmless " in table
    assert max(map(len, table.splitlines())) <= 100, "it fits a terminal"
    assert "vs small" in " ".join(table.split()) and "difference" in table and "verbose" in table
    monkeypatch.setattr(scoring, "check_scorer", None)  # no scorer is started
    found = json.loads(evaluate(*words, "--json"))
    assert {s["prompt"] for s in found} == {"verbose", "constitution"}
    assert found == json.loads((tmp_path / "out/scores.json").read_text("utf-8"))


def test_an_untrained_model_is_stopped_before_it_gets_a_score(folder: Path, tmp_path: Path):
    words = [str(folder), "--benchmarks", "hhh", "--data", f"hhh={HHH}", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="at chance on trivial items"):
        evaluate(*words)
    assert not (tmp_path / "out/scores.json").exists()


def test_the_models_of_a_run_answer_questions_and_two_are_compared(
    fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
):
    made = fake_run("evaluate.max_new_tokens=16")
    judge = Judge("mine", Fake(script=prefers("-")), "identity")
    monkeypatch.setattr(models, "open_judge", lambda spec, config: nullcontext(judge))
    words = [str(made.run.path), "--benchmarks", "questions", "--data", f"questions={QUESTIONS}"]
    table = evaluate(*words, "--prompt", "two-shot", "--models", "base,final")
    assert "questions (fixture_questions)  win rate: not judged" in table
    table = evaluate(*words, "--prompt", "two-shot", "--models", "base,final", "--judge", "embedded")
    shown = " ".join(table.split())
    assert "win rate against base, judged by mine" in shown and "no difference: 0 won, 4 tied, 0 lost vs base;" in shown
    assert "first 0, second 0, p 1.000" in shown
    assert "wins against base" not in shown and "final (two-shot): household 50%, facts 50%" in shown
    assert max(map(len, table.splitlines())) <= 100, "it fits a terminal"
    found = json.loads(evaluate(*words, "--models", "base", "--limit", "2", "--json"))
    assert {(s["benchmark"], s["n"]) for s in found} == {("questions (fixture_questions)", 2)}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["x"], "say with --benchmarks what to measure"),
        (["x", "--benchmarks", "mmlu"], "'mmlu' is not known"),
        (["x", "--benchmarks", "hhh", "--prompt", "loud"], "--prompt 'loud'"),
        (["x", "--benchmarks", "hhh", "--data", "hhh"], "write NAME=SOURCE"),
        (["x", "--benchmarks", "hhh", "--models", "base"], "are for a run"),
        (["x", "--benchmarks", "vicuna", "--data", "question=x.txt"], "with one of hhh, truthfulqa, vicuna, questions"),
        (["no/such/folder/x.gguf", "--benchmarks", "hhh"], "is not 'embedded'"),
    ],
)
def test_wrong_words_are_said_in_one_line(words: list[str], match: str, tmp_path: Path):
    with pytest.raises(UserError, match=match) as error:
        evaluate(*words, "--out", str(tmp_path / "out"))
    assert "\n" not in str(error.value)
