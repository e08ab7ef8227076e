"""`selfalign` without a verb suggests the next commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from selfalign.cli import next_steps
from selfalign.cli.main import app
from selfalign.cli.next_steps import FoundRun


def make_run(folder: Path, changed: float, *files: str) -> None:
    folder.mkdir(parents=True)
    for name in ("recipe.yaml", "journal.sqlite", *files):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    os.utime(folder, (changed, changed))


def test_runs_are_found_latest_first(tmp_path: Path):
    make_run(tmp_path / "runs/a", 100, "manifest.json", "report/index.html")
    make_run(tmp_path / "runs/b", 200, "3_engrave/adapter")
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "runs/file").touch()
    assert next_steps.find_runs(tmp_path) == [
        FoundRun("runs/b", False, False, True),
        FoundRun("runs/a", True, True, False),
    ]


def test_a_path_with_spaces_is_quoted():
    text = "\n".join(next_steps.lines([FoundRun("runs/my run", finished=True, has_report=True, is_trained=True)]))
    assert "selfalign chat 'runs/my run'" in text and "selfalign export 'runs/my run' gguf" in text


def test_missing_folder_has_no_runs(tmp_path: Path):
    assert next_steps.find_runs(tmp_path) == []


def test_first_steps_are_shown_without_runs():
    text = "\n".join(next_steps.lines([]))
    assert "selfalign run " in text and "selfalign plan" in text and "selfalign init mine" in text


def test_finished_and_unfinished_runs_have_other_steps():
    finished = "\n".join(next_steps.lines([FoundRun("runs/a", True, True, True)]))
    assert "selfalign chat runs/a" in finished and "runs/a/report/index.html" in finished
    unfinished = "\n".join(next_steps.lines([FoundRun("runs/a", False, False, True)]))
    assert "selfalign status runs/a" in unfinished and "resumes" in unfinished


def test_steps_fit_80_columns_and_name_existing_verbs():
    runs = [FoundRun(f"runs/{name}", name != "b", True, name != "c") for name in "abcdef"]
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in [*next_steps.lines([]), *next_steps.lines(runs)]:
        assert len(line) <= 80
        if line.startswith("  selfalign "):
            assert line.split()[1] in verbs


def selfalign(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[0] = 'selfalign'; from selfalign.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.mark.integration
def test_command_alone_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = selfalign()
    assert done.returncode == 0 and "selfalign init mine" in done.stdout and done.stderr == ""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "expected"),
    [("selfalign stat", "status"), ("selfalign constitution li", "lint"), ("selfalign run --lim", "--limit")],
)
def test_shell_completes_verbs_and_options(words: str, expected: str):
    number = str(len(words.split()) - 1)
    done = selfalign(_SELFALIGN_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=number)
    assert done.stdout.split() == [expected]
