"""`selfalign evaluate`, on a small random model and the fake engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

import seed_runs
import small_models
from sample_constitutions import GOOD
from scripted_judges import prefers
from selfalign.cli.main import app
from selfalign.cli.options import joined_names
from selfalign.errors import UserError
from selfalign.evaluation import models, scoring
from selfalign.evaluation.judges import Judge
from selfalign.generation.engines.fake import Fake
from selfalign.run.context import Context

pytestmark = pytest.mark.integration
QUESTIONS = Path(__file__).parents[1] / "data/fixture_questions.jsonl"
HHH = Path(__file__).parents[1] / "data/fixture_hhh.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write(tmp_path_factory.mktemp("tiny"))


def evaluate(*words: str) -> str:
    """Run the command and return its output; raise its error."""
    done = CliRunner().invoke(app, ["evaluate", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_second_evaluation_reads_the_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "check_scorer", lambda scorer, adapter=None: None)
    (tmp_path / "c.yaml").write_text(GOOD, "utf-8")
    words = [
        f"small={folder}", "--benchmarks", "hhh", "--data", f"hhh={HHH}", "--out", str(tmp_path / "out"),
        "--constitution", str(tmp_path / "c.yaml"), "--system-prompt", "verbose", "--prompted",
    ]  # fmt: skip
    table = evaluate(*words)
    assert "hhh (fixture)  accuracy by log-likelihood" in table and "harmless " in table
    assert max(map(len, table.splitlines())) <= 100, "it fits a terminal"
    assert "vs small" in " ".join(table.split()) and "difference" in table and "verbose" in table
    monkeypatch.setattr(scoring, "check_scorer", None)  # no scorer is started
    result = json.loads(evaluate(*words, "--json"))
    assert {s["prompt"] for s in result if s["prompt"]} == {"verbose", "constitution"}
    assert result == json.loads((tmp_path / "out/scores.json").read_text("utf-8"))


def test_untrained_model_gets_no_score(folder: Path, tmp_path: Path):
    words = [str(folder), "--benchmarks", "hhh", "--data", f"hhh={HHH}", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="at chance on trivial items"):
        evaluate(*words)
    assert not (tmp_path / "out/scores.json").exists()


def test_models_of_a_run_are_compared_in_pairs(fake_run: Callable[..., Context], monkeypatch: pytest.MonkeyPatch):
    context = fake_run("evaluate.max_new_tokens=16")
    judge = Judge("mine", Fake(script=prefers("-")), "identity")
    monkeypatch.setattr(models, "open_judge", lambda *_: nullcontext(judge))
    words = [str(context.run.path), "--benchmarks", "questions", "--data", f"questions={QUESTIONS}"]
    table = evaluate(*words, "--system-prompt", "two-shot", "--models", "base,final")
    assert "questions (fixture_questions)  win rate: not judged" in table
    table = evaluate(*words, "--system-prompt", "two-shot", "--models", "base,final", "--judge", "embedded")
    output = " ".join(table.split())
    assert (
        "win rate against base, judged by mine" in output and "no difference: 0 won, 4 tied, 0 lost vs base;" in output
    )
    assert "first 0, second 0, p 1.000" in output
    assert "wins against base" not in output and "subset final household 50% facts 50%" in output
    assert max(map(len, table.splitlines())) <= 100, "it fits a terminal"
    result = json.loads(evaluate(*words, "--models", "base", "--limit", "2", "--json"))
    assert {(s["benchmark"], s["n"]) for s in result} == {("questions (fixture_questions)", 2)}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["x"], "name what to measure with --benchmarks"),
        (["x", "--benchmarks", "mmlu"], "'mmlu' is not known"),
        (["x", "--benchmarks", "hhh", "--system-prompt", "loud"], "system prompt 'loud'"),
        (["x", "--benchmarks", "hhh", "--data", "hhh"], "write NAME=SOURCE"),
        (["x", "--benchmarks", "behaviour", "--scenarios", "all"], "use one of development, test"),
        (["x", "--benchmarks", "behaviour", "--scenarios", "test", "--data", "behaviour=x.yaml"], "asked as a whole"),
        (["x", "--benchmarks", "hhh", "--models", "base"], "are for a run"),
        (["x", "--benchmarks", "vicuna", "--data", "question=x.txt"], "is one of hhh, truthfulqa, vicuna, questions"),
        (["no/such/folder/x.gguf", "--benchmarks", "hhh"], "is not 'embedded'"),
    ],
)
def test_wrong_options_are_errors_of_one_line(words: list[str], match: str, tmp_path: Path):
    with pytest.raises(UserError, match=match) as error:
        evaluate(*words, "--out", str(tmp_path / "out"))
    assert "\n" not in str(error.value)


def test_report_compares_runs_with_different_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        seed_runs.write(Path(f"s{seed}"), seed).journal.close()
    done = CliRunner().invoke(app, ["report", "s0", "s1", "s2"], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert "vs base" in done.stdout and "vs prompted base" in done.stdout and "primary, Holm p" in done.stdout
    stored = json.loads(Path("comparisons/s0_s1_s2.json").read_text("utf-8"))
    assert [run["seed"] for run in stored["runs"]] == [0, 1, 2]
    as_json = CliRunner().invoke(app, ["report", "s0", "s1", "s2", "--json"])
    assert json.loads(as_json.stdout) == stored
    assert [s["vs"] for s in stored["primary"]] == ["base", "prompted base"]
    assert all(len(s["values"]) == 3 and s["holm"] is None for s in stored["exploratory"] if s["prompt"])
    seed_runs.write(Path("other"), 9, base="another model").journal.close()
    refused = CliRunner().invoke(app, ["report", "s0", "other"])
    assert "the base model differs: b -> another model" in str(refused.exception)


def test_names_of_files_about_many_runs_are_short_enough() -> None:
    many = [[f"{'runs/a-long-name-' * 3}{n}" for n in range(first, first + 9)] for first in (0, 1)]
    names = [joined_names(targets) for targets in many]
    assert all(len(name) <= 200 for name in names) and len(set(names)) == 2
    assert joined_names(["runs/a", "runs/b"]) == "runs-a_runs-b"
