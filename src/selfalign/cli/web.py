"""Provide the verbs that start a web server: `serve` for a run's models, `view` for its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfalign.cli.options import RunFolder, SystemPrompt, open_context, screen
from selfalign.errors import Interrupted

if TYPE_CHECKING:
    from socket import socket

    from starlette.types import ASGIApp

    from selfalign.web.guard import Policy

Host = Annotated[str, typer.Option(help="The address to listen on; beyond loopback it needs SELFALIGN_TOKEN.")]
AllowHost = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Also accept requests for this host name; repeatable.")
]
_PORT_HELP = "The port; 0 selects a free one."


def serve(
    run: RunFolder,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help=_PORT_HELP)] = 8000,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Concurrent responses.")] = 4,
    max_queue: Annotated[
        int, typer.Option(min=0, max=10_000, help="Maximum number of waiting requests; others get status 429.")
    ] = 32,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens of a response; by default the engine's context.")
    ] = None,
    system_prompt: SystemPrompt = "standard",
    allow_host: AllowHost = None,
) -> None:
    """Serve a run's models: OpenAI-compatible API and chat page. The key is SELFALIGN_TOKEN, if set."""
    from selfalign.web import server

    server.check_installed()
    from selfalign.web import guard
    from selfalign.web.serve import routes
    from selfalign.web.serve.job_queue import JobQueue
    from selfalign.web.serve.models import ServedModels

    context, policy = open_context(run), guard.policy(host, allow_host or [])
    limit = max_tokens or context.recipe.engine.context
    models = ServedModels(context, system_prompt, limit)
    listening = server.listen(host, port)
    try:
        engine = models.start(slots)
    except BaseException:
        listening.close()
        raise
    queue = JobQueue(engine, slots, max_queue)
    try:
        app = routes.build(models, queue, policy, limit)
        url = server.address(listening)
        context.screen.say(f"{', '.join(models.models)} of {context.run.path.name}")
        context.screen.say(f"chat page  {url}/\nAPI        {url}/v1   (Ctrl-C ends)")
        _serve(app, listening, policy, queue.cancel_all)
    finally:
        listening.close()
        queue.close()
        engine.close()


def view(
    run: RunFolder,
    other: Annotated[
        Path | None, typer.Argument(help="A run to compare it with.", metavar="OTHER", show_default=False)
    ] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help=_PORT_HELP)] = 8010,
    cache: Annotated[
        Path | None, typer.Option(help="The file for the viewer's index; by default RUN/view.sqlite.")
    ] = None,
    allow_host: AllowHost = None,
) -> None:
    """Show every row of a run in the browser. Works while the run is running. The key is SELFALIGN_TOKEN, if set."""
    from selfalign.run.directory import RunDir
    from selfalign.web import server

    server.check_installed()
    from selfalign.web import guard
    from selfalign.web.view import routes
    from selfalign.web.view.index import Index

    policy = guard.policy(host, allow_host or [])
    indexes = []
    for folder, suffix in ((run, ""), (other, ".other")):
        if folder is not None:
            directory = RunDir.load(folder)
            file = cache.with_name(f"{cache.name}{suffix}") if cache else directory.view
            indexes.append(Index(folder, directory.constitution, file))
            indexes[-1].refresh_in_background()
    app = routes.build(routes.Viewer(indexes[0], indexes[1] if other else None), policy)
    listening = server.listen(host, port)
    try:
        names = " and ".join(index.run.resolve().name for index in indexes)
        screen().say(f"{names}  {server.address(listening)}/   (Ctrl-C ends)")
        _serve(app, listening, policy)
    finally:
        listening.close()


def _serve(app: ASGIApp, listening: socket, policy: Policy, on_end: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal comes; then exit with its code."""
    from selfalign.web import server

    if not policy.loopback:
        screen().say("other machines can reach this server, unencrypted; put a TLS proxy in front of it", "yellow")
    try:
        server.serve(app, listening, on_end)
    except Interrupted as error:
        raise typer.Exit(error.exit_code) from None
