"""Provide the verbs that export a run's models and data, and push exports to the Hugging Face hub."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfalign.cli.options import RunFolder, screen
from selfalign.errors import Interrupted, UserError

if TYPE_CHECKING:
    from selfalign.api import Run
    from selfalign.export.push import PushOptions

_MODELS = ("adapter", "merged", "gguf-adapter", "gguf")
_EXPORT_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_MODELS, ("model", "type", "force")),
    "dataset": ("format", "stage", "type", "force"),
    "launch": ("stage", "gpus", "nodes", "strategy", "quantize"),
}
"""Form -> the options that apply to it."""
_PUSH_OPTIONS = {form: options[:-1] for form, options in _EXPORT_OPTIONS.items() if form != "launch"}


def export(
    run: RunFolder,
    form: Annotated[
        str, typer.Argument(help="adapter, merged, gguf-adapter, gguf, dataset or launch.", metavar="FORM")
    ],
    out: Annotated[Path | None, typer.Option(help="The file or folder to write; by default in RUN/export.")] = None,
    model: Annotated[
        str | None, typer.Option(help="For models: engraved or final; by default the last one trained.")
    ] = None,
    file_type: Annotated[
        str | None,
        typer.Option(
            "--type", help="merged: f32 (default), bf16, f16; gguf: q8_0 (default), f16; dataset: jsonl, parquet."
        ),
    ] = None,
    row_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="dataset: prompt-completion (default), prompt-completion-text (exactly what this run trains on), "
            "messages, alpaca, sharegpt, or preference (the pairs of engrave.method=dpo).",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            help="launch: engrave (default) or clone; dataset: engrave, clone, responses, prompts or pairs, by default "
            "all but pairs."
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="launch: processes on each node; by default 8.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="launch: machines; by default 1.")] = None,
    strategy: Annotated[str | None, typer.Option(help="launch: ddp (default), fsdp or deepspeed.")] = None,
    quantize: Annotated[str | None, typer.Option(help="launch: none (default) or 4bit (QLoRA).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing export.")] = False,
) -> None:
    """Export a model, a data set, or a folder to train elsewhere. Exported models are compared with the original."""
    from selfalign import api

    values = {
        "model": model, "type": file_type, "format": row_format, "stage": stage, "gpus": gpus, "nodes": nodes,
        "strategy": strategy, "quantize": quantize, "force": force or None,
    }  # fmt: skip
    options = _check_options("export", form, _EXPORT_OPTIONS, values)
    with api.open_run(run, screen=screen()) as opened:
        for line in _export(opened, form, out, options):
            typer.echo(line)


def _check_options(verb: str, form: str, known: dict[str, tuple[str, ...]], values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were set. Raises UserError if the form is unknown or an option does not apply to it."""
    if form not in known:
        raise UserError(f"{form!r} is not a form to {verb}; use one of {', '.join(known)}")
    options = {name: value for name, value in values.items() if value is not None}
    if wrong := next((name for name in options if name not in known[form]), None):
        names = ", ".join(f"--{name}" for name in (*(["out"] if verb == "export" else []), *known[form]))
        raise UserError(f"--{wrong} does not apply to `{verb} RUN {form}`; it takes {names}")
    return options


def _export(run: Run, form: str, out: Path | None, options: dict[str, Any]) -> list[str]:
    """Write the export; return the lines to print."""
    force, file_type = "force" in options, options.get("type", "")
    if form == "launch":
        return run.export_launch(out=out, **options)
    if form == "dataset":
        row_format = options.get("format", "prompt-completion")
        dataset = run.export_dataset(row_format, options.get("stage", ""), out, force, file_type)
        for note in dataset.notes:
            run.context.screen.say(f"  {note}", "yellow" if "skipped" in note or "held out" in note else "")
        return [f"{path}: {n:,} {'row' if n == 1 else 'rows'}" for path, n in dataset.files.items()]
    return [str(run.export(form, options.get("model", ""), kind=file_type, out=out, force=force))]


def push(
    source: Annotated[
        Path, typer.Argument(help="The folder of an export, or a run directory with FORM.", metavar="EXPORT|RUN")
    ],
    form: Annotated[
        str | None,
        typer.Argument(help="For a run: adapter, merged, gguf-adapter, gguf or dataset.", metavar="FORM"),
    ] = None,
    to: Annotated[str, typer.Option(help="The repository.", metavar="OWNER/NAME")] = ...,  # type: ignore[assignment]
    model: Annotated[str | None, typer.Option(help="As in `export`.")] = None,
    file_type: Annotated[str | None, typer.Option("--type", help="As in `export`; for data sets parquet.")] = None,
    row_format: Annotated[str | None, typer.Option("--format", help="As in `export`.")] = None,
    stage: Annotated[str | None, typer.Option(help="As in `export`.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public; by default private.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch; by default main.")] = None,
    message: Annotated[str, typer.Option(help="The commit message.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded; contact no hub.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write even to a repository that selfalign did not create.")
    ] = False,
) -> None:
    """Upload an export to the Hugging Face hub after confirmation. The token is HF_TOKEN or `hf auth login`."""
    from selfalign.export.push import PushOptions
    from selfalign.system.signals import STOP

    STOP.message = b"\nstopping\n"
    values = {"model": model, "type": file_type, "format": row_format, "stage": stage}
    try:
        _push(source, form, values, PushOptions(to, public, revision, message, force), yes, dry_run)
    except Interrupted as error:
        typer.echo("selfalign: stopped; nothing was committed. Run the same command again to resume", err=True)
        sys.stdout.flush()
        os._exit(error.exit_code)  # threads of the library may be in the middle of an upload


def _push(
    source: Path, form: str | None, values: dict[str, str | None], options: PushOptions, yes: bool, dry_run: bool
) -> None:
    from selfalign.export import hub
    from selfalign.export import push as pushes

    hub.check_name(options.repo)
    if not yes and not dry_run and not sys.stdin.isatty():
        raise UserError("cannot ask for confirmation without a terminal; --yes confirms, --dry-run only lists")
    folder = _export_folder(source, form, values)
    if dry_run:
        for line in pushes.preview(folder, options):
            typer.echo(line)
        return

    def confirm(lines: list[str]) -> bool:
        for line in lines:
            screen().say(line)
        return yes or _confirmed()

    if (url := pushes.push(folder, options, confirm, screen())) is None:
        typer.echo("selfalign: nothing was sent", err=True)
        raise typer.Exit(1)
    typer.echo(url)


def _confirmed() -> bool:
    """Ask y or N on the terminal; the end of input and Ctrl-C mean N."""
    from selfalign.system.signals import interruptible

    try:
        with interruptible():
            typer.echo("send it? y/N ", nl=False, err=True)
            return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        typer.echo(err=True)
        return False


def _export_folder(source: Path, form: str | None, values: dict[str, str | None]) -> Path:
    """Return the export to push: `source` itself, or the run's export, which is written if it does not exist."""
    from selfalign import api
    from selfalign.export.push import find_or_export
    from selfalign.export.record import RECORD

    if (source / RECORD).is_file():
        extra = [*([form] if form else []), *(f"--{name}" for name, value in values.items() if value is not None)]
        if extra:
            raise UserError(f"{source} is an export already; omit {', '.join(extra)}, which are for a run directory")
        return source
    if not (source / "recipe.yaml").is_file():
        raise UserError(f"{source} is neither an export (it has no {RECORD}) nor a run (it has no recipe.yaml)")
    if form is None:
        raise UserError(f"{source} is a run; name what to push: {', '.join(_PUSH_OPTIONS)}; or an export's folder")
    options = _check_options("push", form, _PUSH_OPTIONS, values)
    names = {"type": "file_type", "format": "row_format"}
    with api.open_run(source, screen=screen()) as run:
        return find_or_export(run.context, form, **{names.get(name, name): value for name, value in options.items()})
