"""Provide the verbs that start a web server: `serve` for a run's models, `view` for its rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfalign.cli.options import RunFolder, SystemPrompt, open_context, screen

if TYPE_CHECKING:
    from selfalign.run.context import Context
    from selfalign.system.console import Screen

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
    from selfalign.errors import Interrupted

    try:
        start_serve(open_context(run), host, port, slots, max_queue, max_tokens, system_prompt, allow_host or [])
    except Interrupted as error:
        raise typer.Exit(error.exit_code) from None


def start_serve(
    context: Context, host: str, port: int, slots: int, max_queue: int, max_tokens: int | None, system_prompt: str,
    allowed_hosts: list[str],
) -> None:  # fmt: skip
    """Serve the run's models until a signal comes.

    Raises:
        UserError: a library, a token, the port or the run's weights are missing.
        Interrupted: a signal came.
    """
    from selfalign.web import server

    server.check_installed()
    from selfalign.web import guard
    from selfalign.web.serve import routes
    from selfalign.web.serve.job_queue import JobQueue
    from selfalign.web.serve.models import ServedModels

    policy = guard.policy(host, allowed_hosts)
    limit = max_tokens or context.recipe.engine.context
    models = ServedModels(context, system_prompt, limit)
    socket = server.listen(host, port)
    try:
        engine = models.start(slots)
    except BaseException:
        socket.close()
        raise
    queue = JobQueue(engine, slots, max_queue)
    try:
        app = routes.build(models, queue, policy, limit)
        url = server.address(socket)
        context.screen.say(f"{', '.join(models.models)} of {context.run.path.name}")
        context.screen.say(f"chat page  {url}/\nAPI        {url}/v1   (Ctrl-C ends)")
        _warn_if_exposed(policy.loopback, context.screen)
        server.serve(app, socket, queue.cancel_all)
    finally:
        socket.close()
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
    from selfalign.errors import Interrupted

    try:
        start_view(run, other, host, port, cache, allow_host or [], screen())
    except Interrupted as error:
        raise typer.Exit(error.exit_code) from None


def start_view(
    run: Path, other: Path | None, host: str, port: int, cache: Path | None, allowed_hosts: list[str], screen: Screen
) -> None:
    """Show the run in the browser until a signal comes.

    Raises:
        UserError: a library, a token or the port is missing, or there is no such run.
        Interrupted: a signal came.
    """
    from selfalign.run.directory import RunDir
    from selfalign.web import server

    server.check_installed()
    from selfalign.web import guard
    from selfalign.web.view import routes
    from selfalign.web.view.index import Index

    policy = guard.policy(host, allowed_hosts)
    indexes = []
    for folder, suffix in ((run, ""), (other, ".other")):
        if folder is not None:
            directory = RunDir.load(folder)
            file = cache.with_name(f"{cache.name}{suffix}") if cache else directory.view
            indexes.append(Index(folder, directory.constitution, file))
            indexes[-1].refresh_in_background()
    app = routes.build(routes.Viewer(indexes[0], indexes[1] if other else None), policy)
    socket = server.listen(host, port)
    try:
        names = " and ".join(index.run.resolve().name for index in indexes)
        screen.say(f"{names}  {server.address(socket)}/   (Ctrl-C ends)")
        _warn_if_exposed(policy.loopback, screen)
        server.serve(app, socket)
    finally:
        socket.close()


def _warn_if_exposed(loopback: bool, screen: Screen) -> None:
    if not loopback:
        screen.say("other machines can reach this server, unencrypted; put a TLS proxy in front of it", "yellow")
