"""The verb `selfalign export`. No heavy import until it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from selfalign.progress import Screen


def register(app: typer.Typer, screen: Callable[[], Screen]) -> None:
    """Add the verb to the command line.

    Args:
        screen: makes the screen that results are said on.
    """

    @app.command()
    def export(
        run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
        form: Annotated[str, typer.Argument(help="adapter, merged, gguf-adapter or gguf.", metavar="FORM")],
        model: Annotated[str, typer.Option(help="engraved or final; the last one trained unless given.")] = "",
        out: Annotated[Path | None, typer.Option(help="The folder to make; RUN/export/... unless given.")] = None,
        kind: Annotated[
            str, typer.Option("--type", help="merged: f32 (unless given), bf16, f16; gguf: q8_0 (unless given), f16.")
        ] = "",
        force: Annotated[bool, typer.Option("--force", help="Replace an export that stands there.")] = False,
    ) -> None:
        """A trained model in a form that others load; loaded back here and compared before it is published."""
        from selfalign import api

        with api.open_run(run, screen=screen()) as opened:
            typer.echo(opened.export(form, model, kind=kind, out=out, force=force))
