"""The verb `selfalign export`. No heavy import until it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from selfalign.api import Run
    from selfalign.system.console import Screen

_MODELS = ("adapter", "merged", "gguf-adapter", "gguf")
_OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_MODELS, ("model", "type", "force")),
    "dataset": ("format", "stage", "type", "force"),
    "launch": ("stage", "gpus", "nodes", "strategy", "quantize"),
}
"""Form -> the options that it has besides --out."""


def register(app: typer.Typer, screen: Callable[[], Screen]) -> None:
    """Add the verb to the command line.

    Args:
        screen: makes the screen that results are said on.
    """

    @app.command()
    def export(
        run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
        form: Annotated[
            str, typer.Argument(help="adapter, merged, gguf-adapter, gguf, dataset or launch.", metavar="FORM")
        ],
        out: Annotated[Path | None, typer.Option(help="What to make; RUN/export/... unless given.")] = None,
        model: Annotated[
            str | None, typer.Option(help="A model: engraved or final; the last one trained unless given.")
        ] = None,
        kind: Annotated[
            str | None,
            typer.Option(
                "--type", help="merged: f32 (unless given), bf16, f16; gguf: q8_0, f16; dataset: jsonl, parquet."
            ),
        ] = None,
        format_: Annotated[
            str | None,
            typer.Option(
                "--format",
                help="dataset: prompt-completion (unless given), prompt-completion-text (exactly what this run trains "
                "on), messages, alpaca or sharegpt.",
            ),
        ] = None,
        stage: Annotated[
            str | None,
            typer.Option(
                help="launch: engrave (unless given) or clone; dataset: those, responses or prompts, all unless given."
            ),
        ] = None,
        gpus: Annotated[int | None, typer.Option(min=1, help="launch: processes on each node (8).")] = None,
        nodes: Annotated[int | None, typer.Option(min=1, help="launch: machines (1).")] = None,
        strategy: Annotated[str | None, typer.Option(help="launch: ddp (unless given), fsdp or deepspeed.")] = None,
        quantize: Annotated[str | None, typer.Option(help="launch: none (unless given) or 4bit (QLoRA).")] = None,
        force: Annotated[bool, typer.Option("--force", help="Replace what stands there.")] = False,
    ) -> None:
        """Write what a run made in a form that others take: a model (loaded back and compared), data, a training."""
        from selfalign import api

        given = {
            "model": model, "type": kind, "format": format_, "stage": stage, "gpus": gpus, "nodes": nodes,
            "strategy": strategy, "quantize": quantize, "force": force or None,
        }  # fmt: skip
        named = _checked(form, {key: value for key, value in given.items() if value is not None})
        with api.open_run(run, screen=screen()) as opened:
            for line in _lines(opened, form, out, named):
                typer.echo(line)


def _checked(form: str, named: dict[str, Any]) -> dict[str, Any]:
    """The options, if the form has them.

    Raises:
        UserError: the form is not known, or has no such option.
    """
    from selfalign.errors import UserError

    if form not in _OPTIONS:
        raise UserError(f"{form!r} is no form to export; known are {', '.join(_OPTIONS)}")
    if wrong := next((key for key in named if key not in _OPTIONS[form]), None):
        known = ", ".join(f"--{key}" for key in ("out", *_OPTIONS[form]))
        raise UserError(f"--{wrong} is no option of `export RUN {form}`; it has {known}")
    return named


def _lines(run: Run, form: str, out: Path | None, named: dict[str, Any]) -> list[str]:
    """Make it; returns what is printed."""
    if form == "dataset":
        done = run.export_dataset(
            named.get("format", "prompt-completion"), named.get("stage", ""), out, "force" in named,
            named.get("type", ""),
        )  # fmt: skip
        for note in done.notes:
            run.context.screen.say(f"  {note}", "yellow" if "skipped" in note or "held out" in note else "")
        return [f"{path}: {n:,} {'row' if n == 1 else 'rows'}" for path, n in done.files.items()]
    if form == "launch":
        return run.export_launch(out=out, **named)
    return [str(run.export(form, named.get("model", ""), kind=named.get("type", ""), out=out, force="force" in named))]
