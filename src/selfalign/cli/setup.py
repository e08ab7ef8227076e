"""Provide the verb that installs an engine."""

from __future__ import annotations

from typing import Annotated

import typer

from selfalign.errors import UserError


def setup(
    engine: Annotated[str, typer.Argument(help="The engine: vllm.", metavar="ENGINE")],
    package: Annotated[
        str, typer.Option(metavar="REQUIREMENT", help="Install this instead of the tested version: vllm==0.31.0.")
    ] = "",
) -> None:
    """Install vLLM in an environment of its own.

    It is in the cache, and for the GPU, or for the CPU if there is none.
    """
    from selfalign.generation.engines import vllm_environment

    if engine != "vllm":
        raise UserError(f"the engine {engine!r} needs no setup or is unknown: the only one to set up is vllm")
    for line in vllm_environment.install(package):
        typer.echo(line)
