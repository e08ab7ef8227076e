"""Upload an export to the Hugging Face hub, after the user has confirmed the list of files.

Only `selfalign push` uploads; no stage, recipe or other command does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from selfalign.errors import UserError
from selfalign.export import dataset, model_export
from selfalign.export.hub import CREATED_BY_HUB, Hub, Repository, check_name
from selfalign.export.record import Upload, check_export, read_record
from selfalign.export.trained_model import find_trained_model
from selfalign.run.context import Context
from selfalign.system.atomic import file_hash
from selfalign.system.console import Screen
from selfalign.system.signals import STOP

T = TypeVar("T")
_PUBLIC = "PUBLIC: everyone can read it"


@dataclass(frozen=True, slots=True)
class PushOptions:
    """The target of a push."""

    repo: str
    """OWNER/NAME."""
    public: bool = False
    """Create a public repository, or allow a push to one."""
    revision: str | None = None
    """The branch, which is created if needed; main if None."""
    message: str = ""
    """The commit message."""
    force: bool = False
    """Allow a push to a repository whose files are not from selfalign."""


def find_or_export(
    context: Context,
    form: str,
    model: str = "",
    file_type: str = "",
    row_format: str = "prompt-completion",
    stage: str = "",
) -> Path:
    """Return the default folder of the run's export, and export first if it is missing.

    The folder is kept, so that a repeated push sends the same bytes.

    Args:
        form: one of `record.FORMS`.
        model: for a model: engraved or final.
        file_type: type of the weights, or of the files of a data set (default: parquet).
        row_format: for a data set: one of `formats.OUTPUT_FORMATS`.
        stage: for a data set: one of `dataset.STAGES`; all that have run if empty.

    Raises:
        UserError: the existing export is outdated or has other options, or the export fails.
    """
    if form == "dataset":
        folder = dataset.standard_folder(context, row_format, stage)
        if not folder.exists():
            dataset.write(context, row_format, stage, file_type=file_type or "parquet")
            return folder
        record, names = read_record(folder), dataset.stages(context, dataset.stage_of(row_format, stage))
        sources = {name: file_hash(context.run.jsonl(dataset.STAGES[name])) for name in names}
        current = record.get("sources") == sources
    else:
        trained = find_trained_model(context, model)
        folder = model_export.standard_folder(trained, form, file_type)
        if not folder.exists():
            return model_export.export(context, form, model, file_type)
        record = read_record(folder)
        current = record.get("adapter") == file_hash(trained.adapter / "adapter_model.safetensors")
    remedy = f"`selfalign export {context.run.path} {form} --force` with the same options replaces it. Nothing was sent"
    if not current or record.get("constitution") != context.run.constitution.digest():
        raise UserError(f"{folder} is older than the run's data: {remedy}")
    if file_type and record.get("type") != file_type:
        raise UserError(f"{folder} has the type {record.get('type')}, not {file_type}: {remedy}")
    return folder


def preview(folder: Path, options: PushOptions) -> list[str]:
    """Return a description of a push without sending a request to the hub (for --dry-run)."""
    check_name(options.repo)
    upload = check_export(folder)
    access = "public" if options.public else "private"
    target = f"{upload.repo_type} {options.repo}{f', branch {options.revision}' if options.revision else ''}"
    return [f"to the {target} (created as {access} if it does not exist):", *upload.listing(), "nothing was sent"]


def push(folder: Path, options: PushOptions, confirm: Callable[[list[str]], bool], screen: Screen) -> str | None:
    """Upload an export in one commit and return the repository's address, or None if the user did not agree.

    Files of the repository that are not in the export stay.

    Args:
        confirm: receives the lines that describe the push, and returns whether the user agrees.

    Raises:
        UserError: the folder is not an export or has changed, there is no token, the hub refuses the upload, or the
            repository has other files, or is public and `options.public` is not set.
        Resumable: the hub or the network failed; the same command continues.
        Interrupted: a signal arrived, and nothing was committed.
    """
    upload = check_export(folder)
    hub = Hub(options.repo, upload.repo_type, options.revision)
    from huggingface_hub.utils import disable_progress_bars  # Hub reports it if it is missing

    user = _interruptible(hub.user)
    before = _interruptible(hub.repository)
    _check_repository(before, options)
    if not confirm([f"as {user}, to the {_describe(hub.url, before, upload, options)}:", *upload.listing()]):
        return None
    message = options.message or f"Upload {upload.form} with selfalign"
    if screen.verbosity < 0 or not screen.console.is_terminal:
        disable_progress_bars()
    commit = _interruptible(lambda: hub.commit(before, folder, [*upload.files], message, not options.public))
    unchanged = commit == before.commit
    screen.say("  no changes: the repository has these files already" if unchanged else f"  commit {commit[:12]}")
    return hub.url


def _check_repository(before: Repository, options: PushOptions) -> None:
    """Raise UserError if the repository has other files, or is public and `--public` is not set."""
    if not before.exists:
        return
    if not before.from_selfalign and not options.force:
        names = ", ".join(before.files[:3]) + (", …" if len(before.files) > 3 else "")
        raise UserError(
            f"{options.repo} has files that selfalign did not push ({names}): choose another --to, or use --force to "
            "add the export and replace files with the same name"
        )
    if not before.private and not options.public:
        raise UserError(f"{options.repo} is public: use --public to push to it, or choose another --to")


def _describe(url: str, before: Repository, upload: Upload, options: PushOptions) -> str:
    branch = f", branch {options.revision}" if options.revision else ""
    if not before.exists:
        return f"new {upload.repo_type} {url}{branch} ({_PUBLIC if options.public else 'private'})"
    access = "private" if before.private else _PUBLIC
    if before.private and options.public:
        access = "private; --public does not change that, only its settings on the hub do"
    replaced = sum(name in upload.files for name in before.files)
    others = len({*before.files} - CREATED_BY_HUB) - replaced
    return f"{upload.repo_type} {url}{branch} ({access}; replaces {replaced} of its files, keeps {others})"


def _interruptible(work: Callable[[], T]) -> T:
    """Run the work in a daemon thread, so that a signal stops it immediately."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="push", daemon=True).start()
    while not future.done():
        wait([future], 0.1)
        STOP.check()
    return future.result()
