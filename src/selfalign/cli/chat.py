"""Provide the verb that chats with a run's models in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from selfalign.cli.options import RunFolder, SystemPrompt, open_context


def chat(
    run: RunFolder,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Your message: print the response and exit; - reads stdin.")
    ] = None,
    model: Annotated[str, typer.Option(help="base, engraved or final; by default the last one trained.")] = "",
    compare: Annotated[bool, typer.Option("--compare", help="Print the responses of all models of the run.")] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Read messages and commands of one dialogue from stdin, one per line.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="The sampling temperature.")] = 0.3,
    max_tokens: Annotated[int, typer.Option(min=1, max=8192, help="Maximum number of tokens of a response.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the first response.")] = 0,
    system_prompt: SystemPrompt = "standard",
) -> None:
    """Chat with a run's models in the terminal. Piped input is one message."""
    from selfalign.cli import dialogue

    context = open_context(run)
    try:
        dialogue.start(context, prompt, model, temperature, max_tokens, seed, system_prompt, compare, lines)
    finally:
        context.release_engine()
