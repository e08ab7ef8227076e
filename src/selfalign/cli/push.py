"""The verb `selfalign push`. No heavy import until it is needed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from selfalign.export.push import PushOptions
    from selfalign.system.console import Screen

_MODELS = ("adapter", "merged", "gguf-adapter", "gguf")
_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_MODELS, ("model", "type")),
    "dataset": ("format", "stage", "type"),
}
"""Form -> the options of its export."""


def register(app: typer.Typer, screen: Callable[[], Screen]) -> None:
    """Add the verb to the command line."""

    @app.command()
    def push(
        source: Annotated[
            Path, typer.Argument(help="An export's folder, or a run directory with FORM.", metavar="EXPORT|RUN")
        ],
        form: Annotated[
            str | None,
            typer.Argument(help="Of a run: adapter, merged, gguf-adapter, gguf or dataset.", metavar="[FORM]"),
        ] = None,
        to: Annotated[str, typer.Option(help="The repository.", metavar="OWNER/NAME")] = ...,  # type: ignore[assignment]
        model: Annotated[str | None, typer.Option(help="As in `export`.")] = None,
        kind: Annotated[str | None, typer.Option("--type", help="As in `export`; of a data set parquet.")] = None,
        format_: Annotated[str | None, typer.Option("--format", help="As in `export`.")] = None,
        stage: Annotated[str | None, typer.Option(help="As in `export`.")] = None,
        public: Annotated[bool, typer.Option("--public", help="For everybody to read; private unless given.")] = False,
        revision: Annotated[str | None, typer.Option(help="The branch; main unless given.")] = None,
        message: Annotated[str, typer.Option(help="Of the commit.")] = "",
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would leave; ask no hub.")] = False,
        force: Annotated[
            bool, typer.Option("--force", help="Write to a repository that selfalign did not fill, too.")
        ] = False,
    ) -> None:
        """Upload an export to the Hugging Face hub, after you agreed. The token is HF_TOKEN or `hf auth login`."""
        from selfalign.errors import Interrupted
        from selfalign.export.push import PushOptions
        from selfalign.system.signals import STOP

        STOP.message = b"\nstopping\n"
        given = {"model": model, "type": kind, "format": format_, "stage": stage}
        named = {key: value for key, value in given.items() if value is not None}
        try:
            _push(source, form, named, PushOptions(to, public, revision, message, force), yes, dry_run, screen())
        except Interrupted as ended:
            typer.echo("selfalign: stopped; nothing was committed. The same command goes on", err=True)
            sys.stdout.flush()
            os._exit(ended.exit_code)  # threads of the library may be in the middle of an upload


def _push(
    source: Path,
    form: str | None,
    named: dict[str, str],
    options: PushOptions,
    yes: bool,
    dry_run: bool,
    screen: Screen,
) -> None:
    from selfalign.errors import UserError
    from selfalign.export import hub
    from selfalign.export import push as pushes

    hub.check_name(options.repo)
    if not yes and not dry_run and not sys.stdin.isatty():
        raise UserError("nobody can be asked here (no terminal): --yes agrees, --dry-run only lists. Nothing was sent")
    folder = _folder(source, form, named, screen)
    if dry_run:
        for line in pushes.preview(folder, options):
            typer.echo(line)
        return

    def agreed(lines: list[str]) -> bool:
        for line in lines:
            screen.say(line)
        return yes or _asked()

    if (url := pushes.push(folder, options, agreed, screen)) is None:
        typer.echo("selfalign: nothing was sent", err=True)
        raise typer.Exit(1)
    typer.echo(url)


def _asked() -> bool:
    """y or N on the terminal; the end of input and Ctrl-C are N."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        typer.echo("send it? y/N ", nl=False, err=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        typer.echo(err=True)
        return False
    finally:
        signal.signal(signal.SIGINT, before)


def _folder(source: Path, form: str | None, named: dict[str, str], screen: Screen) -> Path:
    """The export to push: the folder that was named, or the run's, made first where it is not there."""
    from selfalign.errors import UserError
    from selfalign.export.record import RECORD

    if (source / RECORD).is_file():
        if form or named:
            given = ", ".join([*([form] if form else []), *(f"--{key}" for key in named)])
            raise UserError(f"{source} is an export already: {given} is for a run directory")
        return source
    if not (source / "recipe.yaml").is_file():
        raise UserError(f"{source} is neither an export (it has no {RECORD}) nor a run (it has no recipe.yaml)")
    if form is None:
        raise UserError(f"{source} is a run: name what to push, {', '.join(_OPTIONS)}, or an export's folder")
    if form not in _OPTIONS:
        raise UserError(f"{form!r} is no form to push; known are {', '.join(_OPTIONS)}")
    if wrong := next((key for key in named if key not in _OPTIONS[form]), None):
        known = ", ".join(f"--{key}" for key in _OPTIONS[form])
        raise UserError(f"--{wrong} is no option of `push RUN {form}`; it has {known}")
    from selfalign import api
    from selfalign.export.push import find_or_export

    names = {"type": "file_type", "format": "row_format"}
    with api.open_run(source, screen=screen) as run:
        return find_or_export(run.context, form, **{names.get(key, key): value for key, value in named.items()})
