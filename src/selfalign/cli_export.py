"""The verb `selfalign export`. No heavy import until it needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    form: Annotated[str, typer.Argument(help="launch: a folder to train in elsewhere.", metavar="FORM")],
    out: Annotated[Path, typer.Option(help="The folder to make.", metavar="DIR")],
    stage: Annotated[str, typer.Option(help="launch: engrave or clone.")] = "engrave",
    gpus: Annotated[int, typer.Option(min=1, help="launch: processes on each node.")] = 8,
    nodes: Annotated[int, typer.Option(min=1, help="launch: machines.")] = 1,
    strategy: Annotated[str, typer.Option(help="launch: ddp, fsdp or deepspeed.")] = "ddp",
    quantize: Annotated[str, typer.Option(help="launch: none or 4bit (QLoRA).")] = "none",
) -> None:
    """Write what a run made for use elsewhere."""
    from selfalign.errors import UserError

    if form != "launch":
        raise UserError(f"export {form!r}: launch")
    _launch(run, out, stage, gpus, nodes, strategy, quantize)


def _launch(run: Path, out: Path, stage: str, gpus: int, nodes: int, strategy: str, quantize: str) -> None:
    from selfalign.context import Context
    from selfalign.export import launch
    from selfalign.progress import Screen
    from selfalign.run import RunDir

    context = Context(RunDir.open(run), Screen(0))
    try:
        for line in launch.write(context, out, launch.Wanted(stage, gpus, nodes, strategy, quantize)):
            typer.echo(line)
    finally:
        context.run.journal.close()
