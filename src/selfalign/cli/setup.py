"""Provide the verb that installs an engine."""

from __future__ import annotations

from typing import Annotated

import typer

from selfalign.errors import UserError


def setup(
    engine: Annotated[str, typer.Argument(help="vllm, which needs an environment of its own.", metavar="ENGINE")],
    package: Annotated[
        str, typer.Option(metavar="REQUIREMENT", help="Another version than the tested one, such as vllm==0.31.0.")
    ] = "",
) -> None:
    """Install an engine once, in the cache: vLLM for the GPU, or for the CPU without one."""
    from selfalign.generation.engines import vllm_environment

    if engine != "vllm":
        raise UserError(f"setup {engine}: only vllm can be set up; llama.cpp comes with selfalign")
    for line in vllm_environment.install(package):
        typer.echo(line)
