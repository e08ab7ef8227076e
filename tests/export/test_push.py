"""`selfalign push` against a local server with the hub's API: uploads, refusals and errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import fake_hub
from fake_hub import TOKEN, FakeHub, Fault
from selfalign.cli import main
from selfalign.errors import UserError
from selfalign.export import dataset, hub, model_export
from selfalign.export.push import find_or_export
from selfalign.export.record import RECORD, is_file_entry
from selfalign.pipeline.order import run_stage
from selfalign.run.context import Context
from selfalign.system.atomic import file_hash

pytestmark = pytest.mark.integration
SMALL = ("prompts.self_instruct.count=12", "prompts.red_team.count=12", "prompts.red_team.topic_rounds=1",
         "evaluate.heldout_prompts=4")  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """Start a local hub, and direct this process to it."""
    yield from fake_hub.connected(monkeypatch, tmp_path)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Write an export like that of `export RUN adapter`, with small files."""
    return written(tmp_path / "adapter", {
        "README.md": b"---\nlicense: other\nbase_model: a/b\ntags: [self-align, lora]\n---\n\n# Alma\n",
        "NOTICE": b"The terms.\n", "adapter_config.json": b"{}", "adapter_model.safetensors": b"weights " * 900,
        "more/second.safetensors": b"others " * 50,
    })  # fmt: skip


def written(folder: Path, files: dict[str, bytes], **fields: object) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    listed = {name: {"sha256": file_hash(folder / name), "bytes": len(data)} for name, data in files.items()}
    record = {"format": 1, "form": "adapter", "made": "2026-01-01T00:00:00Z", "holds": True, **fields, "files": listed}
    (folder / RECORD).write_text(json.dumps(record))
    return folder


def on_disk(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def push(folder: Path, *more: str, to: str = "me/alma") -> Result:
    done = CliRunner().invoke(main.app, ["push", str(folder), *more, "--to", to])
    output = f"{done.stdout}{done.stderr}{done.exception!r}"
    assert TOKEN not in output and "s3cretsignature" not in output
    return done


def error(done: Result, kind: int) -> str:
    """Return the error line with which the command ended."""
    assert getattr(done.exception, "exit_code", None) == kind, (done.exception, done.stderr)
    assert "\n" not in str(done.exception)
    return str(done.exception)


# -- uploads ---------------------------------------------------------------------------------------------------------


def test_push_sends_exactly_the_export_in_one_commit(server: FakeHub, adapter: Path) -> None:
    done = push(adapter, "--yes")
    assert done.exit_code == 0 and done.stdout == f"{server.url}/me/alma\n"
    assert server.files("me/alma") == on_disk(adapter)
    repo = server.repos["model", "me/alma"]
    assert repo.private and len(repo.commits) == 1 and not server.leaked
    assert "to the new model" in done.stderr and "(private)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("  commit ") and "content=" not in done.stderr
    assert "terms of the base (NOTICE): The terms." in done.stderr
    for name, size in (("adapter_model.safetensors", "7.2 kB"), ("NOTICE", "11 B")):
        assert any(line.split() == [name, *size.split()] for line in done.stderr.splitlines())


def test_second_push_sends_only_changes(server: FakeHub, adapter: Path) -> None:
    push(adapter, "--yes")
    puts = server.count("PUT")
    again = push(adapter, "--yes")
    assert again.exit_code == 0 and "no changes" in again.stderr and server.count("PUT") == puts == 2
    (adapter / "README.md").write_text("---\ntags: [self-align]\n---\n\nMy words.\n")
    edited = push(adapter, "--yes", "--message", "Words")
    assert "README.md was edited since the export" in edited.stderr and "names no base_model" in edited.stderr
    assert server.repos["model", "me/alma"].commits[1:] == [("main", "Words", ["README.md"])]
    assert server.files("me/alma") == on_disk(adapter)


def test_revision_creates_a_branch(server: FakeHub, adapter: Path) -> None:
    assert push(adapter, "--yes", "--revision", "v1").exit_code == 0
    assert server.files("me/alma", branch="v1") == on_disk(adapter) and server.files("me/alma") == {}
    assert push(adapter, "--yes", "--revision", "v1").exit_code == 0
    assert [branch for branch, *_ in server.repos["model", "me/alma"].commits] == ["v1"]


def test_push_of_a_run_exports_its_rows_first(
    server: FakeHub, fake_run: Callable[..., Context], capfd: pytest.CaptureFixture[str]
) -> None:
    context = fake_run(*SMALL)
    for stage in ("prompts", "align", "engrave"):
        run_stage(context, stage)  # type: ignore[arg-type]
    (context.run.path / ".env").write_text("SECRET=1")
    context.release_engine()
    done = push(context.run.path, "dataset", "--type", "jsonl", "--yes", to="my-org/rows")
    folder = dataset.standard_folder(context, "prompt-completion")
    assert done.exit_code == 0 and done.stdout == f"{server.url}/datasets/my-org/rows\n"
    received = server.files("my-org/rows", "dataset")
    assert received == on_disk(folder) and "engrave/train.jsonl" in received
    assert not any("journal" in name or "env" in name for name in received)
    assert "licence terms of the base model are unknown" in done.stderr
    before = server.count("POST /api/datasets/my-org/rows/commit")
    assert push(context.run.path, "dataset", "--yes", to="my-org/rows").exit_code == 0
    assert server.count("POST /api/datasets/my-org/rows/commit") == before == 1
    with context.run.jsonl("prompts").open("a") as file:
        file.write("\n")
    done = push(context.run.path, "dataset", "--yes", to="my-org/rows")
    assert "is older than the run's data: `selfalign export" in error(done, 1)


# -- consent ---------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_without_consent(server: FakeHub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--yes confirms, --dry-run only lists" in error(push(adapter), 1)
    assert server.requests == []
    dry = push(adapter, "--dry-run")
    assert dry.exit_code == 0 and server.requests == []
    assert "to the model me/alma (created as private if it does not exist):" in dry.stdout and dry.stdout.endswith(
        "nothing was sent\n"
    )
    assert "adapter_model.safetensors" in dry.stdout and "PUBLIC" not in dry.stdout
    from selfalign.cli import export as export_verbs

    for answer, agreed in {"": False, "n\n": False, "yes!\n": False, "y\n": True, "YES\n": True}.items():
        monkeypatch.setattr(sys, "stdin", type("Typed", (), {"readline": lambda self, a=answer: a})())
        assert export_verbs._confirmed() is agreed


def test_public_repository_needs_public_option(server: FakeHub, adapter: Path) -> None:
    assert "PUBLIC: everyone can read it" in push(adapter, "--yes", "--public", to="me/open").stderr
    assert not server.repos["model", "me/open"].private
    assert "me/open is public: use --public to push to it" in error(push(adapter, "--yes", to="me/open"), 1)
    assert "no changes" in push(adapter, "--yes", "--public", to="me/open").stderr
    push(adapter, "--yes")
    assert "private; --public does not change that" in push(adapter, "--yes", "--public").stderr


def test_foreign_repository_needs_force(server: FakeHub, adapter: Path) -> None:
    for files in ({"README__md": b"---\ntags: [mine]\n---\n"}, {"export__json": b"{}", "thesis__txt": b"years"}):
        repo = server.add("me/mine", **files)
        before = dict(repo.branches["main"])
        done = push(adapter, "--yes", to="me/mine")
        assert "me/mine has files that selfalign did not push" in error(done, 1)
        assert repo.branches["main"] == before
    done = push(adapter, "--yes", "--force", to="me/mine")
    assert "replaces 1 of its files, keeps 1" in done.stderr
    assert server.files("me/mine") == {"thesis.txt": b"years", **on_disk(adapter)}


# -- refused folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".env", "journal.sqlite", "more/.DS_Store", "more/new/deep.txt"])
def test_stray_files_are_refused(server: FakeHub, adapter: Path, name: str) -> None:
    (adapter / name).parent.mkdir(exist_ok=True)
    (adapter / name).write_text("HF_TOKEN=x")
    assert name in error(push(adapter, "--yes"), 1) and server.requests == []


def test_links_changed_and_missing_files_are_refused(server: FakeHub, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    (adapter / "linked").symlink_to(tmp_path / "secret")
    assert "is a link, which an export never contains" in error(push(adapter, "--yes"), 1)
    (adapter / "linked").unlink()
    weights.unlink()
    assert "lacks files of the export (adapter_model.safetensors)" in error(push(adapter, "--yes"), 1)
    weights.symlink_to(tmp_path / "secret")
    assert "is a link" in error(push(adapter, "--yes"), 1)
    weights.unlink()
    weights.write_bytes(content[:-1] + b"!")
    assert "adapter_model.safetensors changed since the export" in error(push(adapter, "--yes"), 1)
    weights.write_bytes(content)
    os.mkfifo(adapter / "pipe")
    assert "is not a regular file" in error(push(adapter, "--yes"), 1)
    assert server.requests == []


def test_folders_that_are_not_exports_are_refused(
    adapter: Path, tmp_path: Path, fake_run: Callable[..., Context]
) -> None:
    assert "neither an export (it has no export.json) nor a run" in error(push(tmp_path / "none", "--yes"), 1)
    assert "omit adapter, --type, which are for a run directory" in error(
        push(adapter, "adapter", "--type", "f16", "--yes"), 1
    )
    run = fake_run().run.path
    assert "is a run; name what to push: adapter, merged" in error(push(run, "--yes"), 1)
    assert "'onnx' is not a form to push" in error(push(run, "onnx", "--yes"), 1)
    assert "--model does not apply to `push RUN dataset`" in error(push(run, "dataset", "--model", "x", "--yes"), 1)
    assert "1_prompts/prompts.jsonl is missing" in error(push(run, "dataset", "--yes"), 1)
    assert "fake engine runs no model" in error(push(run, "adapter", "--yes"), 1)
    for fields, match in (({"form": "launch"}, "of the form 'launch'"), ({"holds": False}, "does not match")):
        folder = written(tmp_path / match[:5], {"README.md": b"x"}, **fields)
        assert match in error(push(folder, "--yes"), 1)
    for text in ("half", "[]", '{"files": 3}', '{"files": {"../x": {"sha256": ""}}}', "[" * 9000):
        (adapter / RECORD).write_text(text)
        assert "is not a valid record of an export" in error(push(adapter, "--yes"), 1)


@given(st.text(max_size=30))
def test_record_entries_stay_below_the_folder(name: str) -> None:
    if is_file_entry(name, {"sha256": ""}):
        parts = Path(name).parts
        assert parts and not Path(name).is_absolute() and not any(part.startswith(".") for part in parts)


@given(st.text("ab-._/ é\n", max_size=12) | st.from_regex(r"[a-z]{1,3}/[a-z]{1,3}", fullmatch=True))
def test_accepted_names_are_valid_on_the_hub(name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        hub.check_name(name)
    except UserError as refused:
        assert "\n" not in str(refused)
        return
    assert name.count("/") == 1
    try:
        validate_repo_id(name)
    except HFValidationError as wrong:
        raise AssertionError(name) from wrong


# -- errors ----------------------------------------------------------------------------------------------------------


def test_missing_token_or_network_is_a_one_line_error(
    server: FakeHub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    for token, message in (
        ("", "no token for the hub"),
        ("hf_é", "contains invalid characters"),
        ("a b", "characters"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        assert message in error(push(adapter, "--yes"), 1)
    assert server.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "rejects the token (401" in error(push(adapter, "--yes"), 1)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.role = "read"
    assert "is read-only" in error(push(adapter, "--yes"), 1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error(push(adapter, "--yes"), 1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "127.0.0.1 cannot be reached" in error(push(adapter, "--yes"), 75)
    monkeypatch.setattr(constants, "ENDPOINT", "huggingface")
    assert "HF_ENDPOINT is not a valid address" in error(push(adapter, "--yes"), 1)
    assert server.repos == {}


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault("POST /api/repos/create", 403, message="No rights"), 1, "may not write to me/alma (403: No rights)"),
        (Fault("POST /api/repos/create", 409), 75, "was changed by someone else during the push (409)"),
        (Fault("GET /api/models/me/alma", 403, message="Blocked"), 1, "may not write to me/alma (403: Blocked)"),
        (Fault("GET /api/whoami", 429), 75, "too many requests to the hub (429)"),
        (Fault("GET /api/whoami", 500), 75, "127.0.0.1 failed (500)"),
        (Fault("POST .*/preupload", 500, times=9), 75, "127.0.0.1 failed (500)"),
        (Fault("POST .*/commit", 503), 75, "127.0.0.1 failed (503)"),
        (Fault("POST .*/commit", 400, message="Your push was rejected"), 1, "upload (400: Your push was rejected)"),
        (Fault("POST .*/preupload", 404), 1, "does not exist or is not visible to this token (404"),
        (Fault("PUT /storage", 403, times=9), 1, "may not write to me/alma (403)"),
        (Fault("POST .*/commit", times=9), 75, "cannot be reached"),
    ],
)  # fmt: skip
def test_hub_errors_are_one_line(server: FakeHub, adapter: Path, fault: Fault, kind: int, message: str) -> None:
    server.faults = [fault]
    assert message in error(push(adapter, "--yes"), kind)
    server.faults = []
    assert push(adapter, "--yes").exit_code == 0 and server.files("me/alma") == on_disk(adapter)


def test_hub_without_xet_names_the_setting(server: FakeHub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    done = push(adapter, "--yes")
    assert isinstance(done.exception, UserError) and "HF_HUB_DISABLE_XET=1" in str(done.exception)
    assert not server.repos["model", "me/alma"].commits


def test_token_and_signatures_in_hub_errors_are_removed(server: FakeHub, adapter: Path) -> None:
    message = f"bad token {TOKEN} at http://u:secret@x/y?X-Amz-Signature=s3cretsignature"
    server.faults = [Fault("POST .*/commit", 400, message=message)]
    line = error(push(adapter, "--yes"), 1)
    assert "bad token (token) at http://x/y" in line and "secret" not in line


def test_temporary_faults_are_retried(server: FakeHub, adapter: Path) -> None:
    server.faults = [Fault("PUT /storage", 500, times=2), Fault("POST .*/preupload", 503), Fault("PUT /storage")]
    done = push(adapter, "--yes")
    assert done.exit_code == 0 and server.files("me/alma") == on_disk(adapter)
    assert "Retrying" not in done.stderr  # the library's messages may contain signed addresses


def test_push_continues_after_a_dropped_connection(server: FakeHub, adapter: Path) -> None:
    oid = file_hash(adapter / "adapter_model.safetensors")
    server.faults = [Fault(f"PUT /storage/{oid}", times=99)]
    assert "files that were uploaded are not sent again" in error(push(adapter, "--yes"), 75)
    assert server.files("me/alma") == {} and len(server.blobs) == 1
    server.faults, server.requests = [], []
    assert push(adapter, "--yes").exit_code == 0
    assert server.count("PUT") == 1 and server.files("me/alma") == on_disk(adapter)


def test_concurrent_commit_is_not_overwritten(server: FakeHub, adapter: Path) -> None:
    push(adapter, "--yes")
    (adapter / "README.md").write_text("---\ntags: [self-align]\n---\nNew\n")
    repo = server.repos["model", "me/alma"]
    wait = threading.Event()
    server.faults = [Fault("POST .*/preupload", hold=wait)]

    def other() -> None:
        while not server.count("POST /api/models/me/alma/preupload") > 1:
            threading.Event().wait(0.01)
        repo.branches["main"]["theirs.txt"] = b"theirs"
        wait.set()

    thread = threading.Thread(target=other)
    thread.start()
    done = push(adapter, "--yes")
    thread.join(10)
    assert "changed by someone else during the push (412" in error(done, 75)
    assert push(adapter, "--yes").exit_code == 0 and server.files("me/alma")["theirs.txt"] == b"theirs"


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user with a network. Reading a tokenizer sets HF_HUB_OFFLINE in this process."""
    return {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home),
        **more,
    }


def test_ctrl_c_commits_nothing_and_push_can_be_repeated(server: FakeHub, adapter: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "selfalign.cli.main", "push", str(adapter), "--to", "me/alma", "--yes"]
    hold = threading.Event()
    server.faults = [Fault("PUT /storage", hold=hold, times=2)]
    made = environment(server.url, tmp_path / "home")
    with subprocess.Popen(command, env=made, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for _ in range(600):
            if server.count("PUT /storage") or process.poll() is not None:
                break
            threading.Event().wait(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    hold.set()
    assert TOKEN not in err
    assert (process.returncode, out) == (130, ""), err
    assert "nothing was committed. Run the same command again" in err and "Traceback" not in err
    assert server.files("me/alma") == {}
    server.faults = []
    again = subprocess.run(command, env={**made, "HF_DEBUG": "1"}, text=True, capture_output=True, check=True)
    assert again.stdout == f"{server.url}/me/alma\n" and TOKEN not in again.stderr
    assert server.files("me/alma") == on_disk(adapter)


# -- real exports ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_exports_of_a_small_model_are_pushed(
    server: FakeHub, tmp_path: Path, default_constitution: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import ModelCard
    from test_export import tiny_run

    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    context = tiny_run(tmp_path, default_constitution, "llama, plain turns")  # type: ignore[arg-type]
    for form in model_export.WEIGHT_TYPES:
        name = f"me/{form}"
        folder = find_or_export(context, form)
        assert find_or_export(context, form) == folder
        done = push(folder, "--yes", to=name)
        assert done.exit_code == 0, done.exception
        assert server.files(name) == on_disk(folder)
        data = ModelCard(server.files(name)["README.md"].decode()).data.to_dict()
        assert data["license"] == "other" and data["library_name"] and "self-align" in data["tags"]
        assert "no changes" in push(folder, "--yes", to=name).stderr
    context.journal.close()
