"""The verb `selfalign view`. No heavy import until it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from selfalign.system.console import Screen


def register(app: typer.Typer, screen: Callable[[], Screen]) -> None:
    """Add the verb to the command line.

    Args:
        screen: makes the screen that the address is said on.
    """

    @app.command()
    def view(
        run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
        other: Annotated[
            Path | None, typer.Argument(help="A run to compare it with.", metavar="OTHER", show_default=False)
        ] = None,
        host: Annotated[
            str, typer.Option(help="The address to listen on; beyond loopback a token is needed.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8010,
        cache: Annotated[
            Path | None, typer.Option(help="Where the viewer's own index goes; RUN/view.sqlite unless given.")
        ] = None,
        allow_host: Annotated[
            list[str] | None, typer.Option(metavar="NAME", help="Answer under this host name, too; repeatable.")
        ] = None,
    ) -> None:
        """Look at a run in the browser, live while it runs. SELFALIGN_TOKEN is asked for, where set."""
        from selfalign.errors import Interrupted

        try:
            start(run, other, host, port, cache, allow_host or [], screen())
        except Interrupted as ended:
            raise typer.Exit(ended.exit_code) from None


def start(
    run: Path, other: Path | None, host: str, port: int, cache: Path | None, allowed: list[str], screen: Screen
) -> None:
    """Show the run until a signal comes.

    Raises:
        UserError: a library, a token or the port is missing, or there is no such run.
        Interrupted: always in the end.
    """
    from selfalign.run.directory import RunDir
    from selfalign.web import guard, server

    server.check_installed()
    from selfalign.web.view import routes
    from selfalign.web.view.index import Index

    policy = guard.policy(host, allowed)
    found = RunDir.look(run)
    index = Index(run, found.constitution, cache or found.view)
    index.refresh_in_background()
    beside = None
    if other is not None:
        second = RunDir.look(other)
        place = cache.with_name(f"{cache.name}.other") if cache else second.view
        beside = Index(other, second.constitution, place)
        beside.refresh_in_background()
    guarded = routes.build(routes.Viewer(index, beside), policy)
    listening = server.listen(host, port)
    try:
        names = " beside ".join(i.run.resolve().name for i in (index, beside) if i)
        screen.say(f"{names}  {server.address(listening)}/   (Ctrl-C ends)")
        if not policy.loopback:
            screen.say("reachable from other machines, unencrypted: put TLS before it", "yellow")
        server.serve(guarded, listening)
    finally:
        listening.close()
