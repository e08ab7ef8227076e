"""Run the command line as a user does: processes on the fake engine (command_line.py)."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import selfalign
from selfalign.cli.main import explain
from selfalign.system.version import __version__

pytestmark = pytest.mark.integration

FAKE = ["--set", "engine.kind=fake", "--set", "evaluate.limit=4"]
WHOLE = [*FAKE, "--set", "prompts.self_instruct.count=12", "--set", "prompts.red_team.count=20"]
SMALL = [*WHOLE, "--set", "stages=[prompts, align, engrave, verbose_cloning, evaluate]"]
"""Without the report, which takes seconds."""


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.jsonl"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of SMALL. Tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    done = selfalign("run", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the folder with a finished run of SMALL."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_run_writes_tables_report_and_manifest(tmp_path: Path) -> None:
    done = selfalign("run", *WHOLE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/quick"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["files"]["1_prompts/prompts.jsonl"]["rows"] == 32
    for stage in manifest["stages"]:
        decided = stage["kept"] + sum(stage["dropped"].values()) + sum(stage["failed"].values())
        assert stage["rows_in"] == decided
    assert "2 self-align" in done.stdout and "final" in done.stdout
    assert (run / "report/index.html").read_text().startswith("<!doctype html>")


def test_version_is_printed(tmp_path: Path) -> None:
    assert selfalign("--version", cwd=tmp_path).stdout == f"selfalign {__version__}\n"


def test_same_command_again_changes_nothing(folder: Path) -> None:
    before = files(folder / "runs/quick")
    again = selfalign("run", *SMALL, cwd=folder)
    assert again.returncode == 0 and "done" in again.stderr
    assert files(folder / "runs/quick") == before


def test_killed_run_resumes_to_the_same_files(tmp_path: Path) -> None:
    many = [*FAKE, "--set", "stages=[prompts, align]", "--set", "prompts.self_instruct.count=400"]
    assert selfalign("run", *many, "--out", "a", cwd=tmp_path).returncode == 0
    command = [sys.executable, "-m", "selfalign.cli.main", "run", *many, "--out", "b"]
    killed = 0
    for seconds in (0.1, 0.4):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not (tmp_path / "b/journal.sqlite").exists():
            time.sleep(0.05)
        time.sleep(seconds)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed
    done = selfalign("run", *many, "--out", "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "b") == files(tmp_path / "a")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_run_that_can_resume(tmp_path: Path, signum: signal.Signals, code: int) -> None:
    many = [*FAKE, "--set", "stages=[prompts]", "--set", "prompts.self_instruct.count=20000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "selfalign.cli.main", "run", *many], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "runs/quick/journal.sqlite").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert stderr.strip().splitlines()[-1].startswith("selfalign: stopped by") and "Traceback" not in stderr


def test_fake_engine_loads_no_model(tmp_path: Path) -> None:
    environment = {**os.environ, "SELFALIGN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "selfalign.cli.main", "run", *SMALL], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache").exists()


def test_full_disk_exits_75_and_resumes(tmp_path: Path, finished: Path) -> None:
    full = selfalign("run", *SMALL, cwd=tmp_path, max_file_size=60_000)
    assert full.returncode == 75, full.stderr
    assert len(full.stderr.strip().splitlines()[-1]) < 300 and "Traceback" not in full.stderr
    assert selfalign("run", *SMALL, cwd=tmp_path).returncode == 0
    assert files(tmp_path / "runs/quick") == files(finished / "runs/quick")


def one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_mistakes_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"instruction": 3}\n')
    (tmp_path / "no.gguf").write_bytes(b"not a model")
    text = selfalign("constitution", "show", "--json", cwd=tmp_path).stdout
    wrong = json.loads(text)
    wrong["exemplars"][0]["thoughts"] = "A request. Principles: 99 (kindness)."
    (tmp_path / "wrong.yaml").write_text(json.dumps(wrong))
    run = lambda *a: selfalign("run", *a, cwd=tmp_path)  # noqa: E731
    one_line(run("--set", "align.temprature=1"), 1, "align.temprature", "did you mean 'temperature'")
    one_line(run("quik"), 1, "quik", "quick, standard, paper")
    one_line(run("--set", "seeds=empty.jsonl"), 1, "empty.jsonl", "no seed task")
    one_line(run("--set", "seeds=bad.jsonl"), 1, "bad.jsonl:1")
    one_line(run("--set", "constitution=wrong.yaml"), 1, "wrong.yaml", "99 (kindness)")
    one_line(run("--set", "model=no.gguf"), 1, "no.gguf", "not a GGUF")
    one_line(run("--set", "model=nowhere"), 1, "nowhere")
    one_line(selfalign("status", "nowhere", cwd=tmp_path), 1, "nowhere", "not a run")
    one_line(selfalign("chat", "nowhere", "-p", "hi", cwd=tmp_path), 1, "not a run")
    assert selfalign("run", "--no-such-option", cwd=tmp_path).returncode == 2


def test_changed_recipe_needs_new(tmp_path: Path) -> None:
    stages = ["--set", "stages=[prompts]"]
    assert selfalign("run", *SMALL, *stages, cwd=tmp_path).returncode == 0
    changed = selfalign("run", *SMALL, *stages, "--set", "seed=7", cwd=tmp_path)
    one_line(changed, 1, "seed: 0 -> 7", "--new")
    assert selfalign("run", *SMALL, *stages, "--set", "seed=7", "--new", cwd=tmp_path).returncode == 0
    assert (tmp_path / "runs/quick.1/1_prompts/prompts.jsonl").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thing.txt").write_text("mine")
    one_line(selfalign("run", *SMALL, "--out", "other", cwd=tmp_path), 1, "other", "not a run")


def test_edited_file_is_overwritten_only_with_force(folder: Path) -> None:
    responses = folder / "runs/quick/2_self_align/responses.jsonl"
    lines = responses.read_text().splitlines(keepends=True)
    responses.write_text("".join(lines[1:]))
    one_line(selfalign("align", "runs/quick", cwd=folder), 1, "responses.jsonl", "--force")
    engraved = selfalign("run", *SMALL, cwd=folder)
    assert engraved.returncode == 0 and "removed manually 1" in engraved.stderr
    assert selfalign("align", "runs/quick", "--force", cwd=folder).returncode == 0
    assert responses.read_text() == "".join(lines)


def test_user_prompts_replace_stage_1(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(
        "Name three rivers of Asia.\nWhy is the sky blue?\n\nName three rivers of Asia.\n"
    )
    one_line(selfalign("run", *FAKE, "--prompts", "yours.txt", cwd=tmp_path), 1, "yours.txt", "does not exist")
    done = selfalign("run", *FAKE, "--prompts", "mine.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs/quick/1_prompts/prompts.jsonl").read_text().splitlines()]
    assert {r["instruction"] for r in rows} == {"Name three rivers of Asia.", "Why is the sky blue?"}
    assert "duplicate 1" in done.stderr
    before = files(tmp_path / "runs/quick")
    one_line(selfalign("run", *FAKE, cwd=tmp_path), 1, "prompts.file", "--new")
    assert files(tmp_path / "runs/quick") == before


def test_wrong_model_leaves_no_run(tmp_path: Path) -> None:
    one_line(selfalign("run", "--set", "model=typo.gguf", cwd=tmp_path), 1, "typo.gguf")
    one_line(selfalign("run", "--set", "model=models/typo.gguf", cwd=tmp_path), 1, "typo.gguf", "is not 'embedded'")
    assert not (tmp_path / "runs").exists()


def test_stage_stopped_midway_is_not_taken_for_an_edit(folder: Path) -> None:
    run = folder / "runs/quick"
    responses = run / "2_self_align/responses.jsonl"
    responses.write_text("".join(responses.read_text().splitlines(keepends=True)[2:]))
    (run / "3_engrave/examples.jsonl").write_text("")  # as if killed between writing and publishing
    import sqlite3

    with sqlite3.connect(run / "journal.sqlite") as journal:
        journal.execute("DELETE FROM published WHERE stage = 'engrave'")
    journal.close()
    again = selfalign("run", *SMALL, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (run / "3_engrave/examples.jsonl").read_text()


def test_stage_without_its_input_is_refused_at_once(tmp_path: Path) -> None:
    one_line(selfalign("run", *FAKE, "--set", "stages=[align]", cwd=tmp_path), 1, "'align'", "prompts.jsonl")


def test_preview_shows_exact_prompts_and_writes_nothing(tmp_path: Path) -> None:
    done = selfalign("run", *FAKE, "--preview", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6. Instruction:⟦" in done.stdout and "(internal thoughts):⟦" in done.stdout
    assert "\n-⟦" in done.stdout and "question:⟦" not in done.stdout  # quick lists questions by type
    assert list(tmp_path.iterdir()) == []


def test_status_json_and_chat_on_the_fake_engine(folder: Path) -> None:
    status = json.loads(selfalign("status", "runs/quick", "--json", cwd=folder).stdout)
    assert status["finished"] and {s["stage"] for s in status["stages"]} >= {
        "self_instruct",
        "align",
        "verbose_cloning",
    }
    answer = selfalign("chat", "runs/quick", "-p", "Hello there", "--model", "base", cwd=folder)
    assert answer.returncode == 0 and answer.stdout.strip()
    one_line(selfalign("chat", "runs/quick", "-p", "x", "--model", "best", cwd=folder), 1, "best", "base, engraved")
    for name in ("concise", "two-shot"):
        assert selfalign("chat", "runs/quick", "-p", "Hi", "--system-prompt", name, cwd=folder).stdout.strip()
    one_line(selfalign("chat", "runs/quick", "-p", "x", "--system-prompt", "rude", cwd=folder), 1, "rude", "two-shot")
    dialogue = selfalign("chat", "runs/quick", "--lines", cwd=folder, input="Hello\n/quit\n")
    assert dialogue.returncode == 0 and "single-turn" in dialogue.stderr


def test_two_processes_cannot_hold_one_run(tmp_path: Path) -> None:
    import fcntl

    assert selfalign("run", *SMALL, "--set", "stages=[prompts]", cwd=tmp_path).returncode == 0
    with (tmp_path / "runs/quick/journal.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        one_line(selfalign("run", *SMALL, "--set", "stages=[prompts]", cwd=tmp_path), 1, "in use by process")


def test_file_in_place_of_a_folder_is_one_line(folder: Path) -> None:
    (folder / "file").touch()
    done = selfalign("export", "runs/quick", "dataset", "--out", "file/mine", cwd=folder)
    one_line(done, 1, "file", "cannot be written")


def test_console_of_40_ascii_columns_shows_every_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = selfalign("status", "runs/quick", cwd=folder).stdout
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    narrow = selfalign("status", "runs/quick", cwd=folder, columns=40)
    numbers = [re.findall(r"\d[\d,.]*", text) for text in (whole, narrow.stdout)]
    assert narrow.returncode == 0 and sorted(numbers[0]) == sorted(numbers[1])
    status = selfalign("status", "runs/quick", "--json", cwd=folder)
    assert json.loads(status.stdout)["stages"] and status.returncode == 0


def test_tables_have_a_json_form(tmp_path: Path) -> None:
    stages = "stages=[prompts, align]"
    done = selfalign("run", *WHOLE, "--set", stages, "--json", cwd=tmp_path)
    value = json.loads(done.stdout)
    assert value["state"] == "finished" and [row["stage"] for row in value["stages"]][-1] == "align"
    assert json.loads(selfalign("status", "runs/quick", "--json", cwd=tmp_path).stdout) == value
    one_line(selfalign("report", "runs/quick", "--json", cwd=tmp_path), 1, "several runs", "status RUN --json")


def test_private_umask_and_closed_input_are_respected(tmp_path: Path) -> None:
    (tmp_path / "ä b").mkdir()
    rows = tmp_path / "ä b/rows ü.jsonl"
    rows.write_text('{"instruction": "Nenne eine Frucht \u2013 nur eine.", "output": "Ein Apfel \U0001f34e."}\n')
    given = [*FAKE, "--set", "align.form=given", "--set", "stages=[prompts, align]"]
    arguments = ["run", *given, "--prompts", str(rows), "--out", str(tmp_path / "ä b/r 1")]
    command = 'umask 077; exec "$0" -m selfalign.cli.main "$@" <&-'
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [p for p in (tmp_path / "ä b/r 1").rglob("*") if p.stat().st_mode & 0o077] == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 75, "no space on the disk; free some space"),
        (OSError(errno.EMFILE, "Too many open files", "a"), 75, "ulimit -n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 75, "Cannot allocate memory"),
        (OSError(errno.EIO, "Input/output error", "a"), 75, "a"),
        (OSError(errno.EROFS, "Read-only file system", "a"), 1, "a cannot be written (Read-only file system)"),
        (OSError(errno.ENOENT, "No usable temporary directory found"), 1, "set TMPDIR"),
        (OSError(errno.ENOENT, "No such file or directory", "a"), 1, "a: No such file or directory"),
        (OSError("without a number"), 1, "without a number"),
    ],
)
def test_system_error_is_one_line(error: OSError, code: int, text: str) -> None:
    shown, exit_code = explain(error)
    assert text in shown and exit_code == code and "\n" not in shown and "None" not in shown


def test_deleted_working_directory_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "working directory no longer exists" in explain(OSError(errno.ENOENT, "No such file"))[0]


def test_env_and_help_and_schema(tmp_path: Path) -> None:
    assert "selfalign" in selfalign("env", cwd=tmp_path).stdout
    schema = json.loads(selfalign("recipe", "--schema", cwd=tmp_path).stdout)
    assert schema["additionalProperties"] is False and "prompts" in schema["required"]
    assert "form: by_type" in selfalign("recipe", "quick", cwd=tmp_path).stdout
    listed = selfalign("--help", cwd=tmp_path).stdout
    for verb in (
        "run",
        "status",
        "chat",
        "env",
        "prompts",
        "align",
        "engrave",
        "clone",
        "evaluate",
        "report",
    ):
        assert f"\n  {verb} " in listed


def test_help_and_tables_fit_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def output(*arguments: str) -> str:
        text = selfalign(*arguments, cwd=tmp_path, columns=80).stdout
        assert text and max(map(len, text.splitlines())) <= 80, arguments
        return text

    assert selfalign("run", *SMALL, "--limit", "6", cwd=tmp_path).returncode == 0
    for arguments in (["--help"], ["constitution", "--help"], ["plan", "quick", *FAKE], ["status", "runs/quick"]):
        text = output(*arguments).replace("[ARGS]...", "")
        assert "..." not in text, "no summary of a command is cut"
        assert arguments[0] != "plan" or "…" not in text, "no cell is cut"
