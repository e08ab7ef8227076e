"""The verb `export`. No heavy import until it needs one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from selfalign.context import Context


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    form: Annotated[str, typer.Argument(help="dataset.", metavar="FORM")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="dataset: prompt-completion, prompt-completion-text (exactly what this run trains on), messages, "
            "alpaca or sharegpt.",
        ),
    ] = "prompt-completion",
    stage: Annotated[
        str, typer.Option(help="dataset: engrave or clone (the training pairs), responses or prompts.")
    ] = "engrave",
    out: Annotated[
        Path | None, typer.Option(help="dataset: a .jsonl file, or a folder; RUN/export/... unless given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what stands there.")] = False,
) -> None:
    """Write what a run made in a form that other programs take."""
    from selfalign.errors import UserError

    if form != "dataset":
        raise UserError(f"{form!r} is no form; known is dataset")
    from selfalign.context import Context
    from selfalign.progress import Screen
    from selfalign.run import RunDir

    dataset(Context(RunDir.open(run), Screen()), format_, stage, out, force)


def dataset(context: Context, form: str, stage: str, out: Path | None, force: bool) -> None:
    """Write a run's rows, and print files and rows."""
    from selfalign.export import dataset as data_sets

    done = data_sets.write(context, form, stage, out, force)
    for path, number in done.files.items():
        typer.echo(f"{path}: {number:,} {'row' if number == 1 else 'rows'}")
    for note in done.notes:
        context.screen.say(f"  {note}", "yellow" if "left out" in note or "held out" in note else "")
