"""The verb `selfalign serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from selfalign.run.context import Context


def register(app: typer.Typer, open_run: Callable[[Path], Context]) -> None:
    """Add the verb."""

    @app.command()
    def serve(
        run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
        host: Annotated[
            str, typer.Option(help="The address to listen on; beyond loopback a token is needed.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
        slots: Annotated[int, typer.Option(min=1, max=256, help="Answers generated at once.")] = 4,
        max_queue: Annotated[int, typer.Option(min=0, max=10_000, help="Answers that may wait; more get 429.")] = 32,
        max_tokens: Annotated[
            int | None,
            typer.Option(min=1, help="The most that one answer may have; the engine's context unless given."),
        ] = None,
        style: Annotated[
            str, typer.Option(help="The system prompt: standard, concise, verbose or two-shot.")
        ] = "standard",
        allow_host: Annotated[
            list[str] | None, typer.Option(metavar="NAME", help="Answer under this host name, too; repeatable.")
        ] = None,
    ) -> None:
        """Serve the run's models: OpenAI's API under /v1, a chat page at /. SELFALIGN_TOKEN is the key, where set."""
        from selfalign.errors import Interrupted

        try:
            start(open_run(run), host, port, slots, max_queue, max_tokens, style, allow_host or [])
        except Interrupted as ended:
            raise typer.Exit(ended.exit_code) from None


def start(
    context: Context, host: str, port: int, slots: int, max_queue: int, max_tokens: int | None, style: str,
    allowed: list[str],
) -> None:  # fmt: skip
    """Serve until a signal comes.

    Raises:
        UserError: a library, a token, the port or the run's weights are missing.
        Interrupted: always in the end.
    """
    from selfalign.web import guard, server

    server.check_installed()
    from selfalign.web.serve import routes
    from selfalign.web.serve.job_queue import JobQueue
    from selfalign.web.serve.models import ServedModels

    policy = guard.policy(host, allowed)
    limit = max_tokens or context.recipe.engine.context
    models = ServedModels(context, style, limit)
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
        if not policy.loopback:
            context.screen.say("reachable from other machines, unencrypted: put TLS before it", "yellow")
        server.serve(app, listening, queue.cancel_all)
    finally:
        listening.close()
        queue.close()
        engine.close()
