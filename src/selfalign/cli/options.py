"""Define the arguments and options that several verbs share, and open runs and the screen for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from selfalign.run.context import Context
    from selfalign.system.console import Screen

_verbosity = 0


def _set_verbose(value: bool) -> None:
    global _verbosity
    _verbosity = 1 if value else _verbosity


def _set_quiet(value: bool) -> None:
    global _verbosity
    _verbosity = -1 if value else _verbosity


RunFolder = Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")]
Recipe = Annotated[
    str, typer.Argument(help="quick, standard, paper, two-stage, single-gpu, or a YAML file.", metavar="RECIPE")
]
Limit = Annotated[int | None, typer.Option(help="Reduce every size of the recipe to at most this many rows.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; repeatable.")
]
UserPrompts = Annotated[
    Path | None,
    typer.Option(help="Use your own prompts: a file, a folder, or a hub data set OWNER/NAME[/CONFIG][:SPLIT]."),
]
SystemPrompt = Annotated[str, typer.Option(help="The system prompt: standard, concise, verbose or two-shot.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that were edited manually.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print more details.", callback=_set_verbose)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only results and errors.", callback=_set_quiet)]


def screen() -> Screen:
    """Return the screen for messages, with the verbosity of the options."""
    from selfalign.system.console import Screen

    return Screen(_verbosity)


def open_context(path: Path) -> Context:
    """Open a run for reading, even while another process works on it."""
    from selfalign.run.context import Context
    from selfalign.run.directory import RunDir

    return Context(RunDir.open(path), screen())


_MAX_NAME = 200
"""Maximum bytes of such a name: file systems allow 255, with a suffix."""


def joined_names(targets: Iterable[str]) -> str:
    """Return the name of a file of results about these folders or models, short enough for a file system."""
    from selfalign.data.records import content_hash

    name = "_".join(re.sub(r"[^\w.-]+", "-", target).strip("-")[-40:] for target in targets)
    return name if len(name.encode()) <= _MAX_NAME else f"{name[:40]}_{content_hash(name)}"
