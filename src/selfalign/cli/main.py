"""Assemble the command line. No heavy library is imported before a verb needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from selfalign.cli import chat, constitution, evaluate, export, runs, setup, suggest, web
from selfalign.cli.options import Quiet, Verbose
from selfalign.system.version import __version__

app = typer.Typer(
    help="Align language models from scratch, with principles and few human-written items.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (
    runs.run, runs.plan, runs.init, runs.prompts, runs.align, runs.engrave, runs.prefer, runs.clone,
    evaluate.evaluate, runs.report, runs.status, runs.duplicates, chat.chat, web.serve, web.view, export.export,
    export.push, setup.setup, runs.recipe, runs.env,
):  # fmt: skip
    app.command()(_verb)
constitution.app.command()(suggest.suggest)
app.add_typer(constitution.app, name="constitution")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"selfalign {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


@app.callback()
def _options(context: typer.Context, verbose: Verbose = False, quiet: Quiet = False, version: Version = False) -> None:
    if context.invoked_subcommand is None:
        from selfalign.cli import next_steps

        for line in next_steps.lines(next_steps.find_runs(Path())):
            typer.echo(line)


def main() -> None:
    """Run the command line. Expected errors end with one line and an exit code; only bugs show a traceback."""
    from selfalign.errors import SelfAlignError
    from selfalign.system.environment import provide_home, share_processor
    from selfalign.system.signals import STOP
    from selfalign.system.streams import prepare_streams

    prepare_streams()
    provide_home()
    share_processor()
    STOP.install()
    try:
        app()
    except SelfAlignError as error:
        from selfalign.system.console import plain

        _exit(plain(str(error)), error.exit_code)
    except OSError as error:
        from selfalign.system.console import plain

        text, code = explain(error)
        _exit(plain(text), code)


def explain(error: OSError) -> tuple[str, int]:
    """Return (one line, exit code) for an error of the system: 75 if the same command can succeed later."""
    import errno

    where = error.filename if isinstance(error.filename, str) else None
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space on the disk{f' for {where}' if where else ''}; {_AGAIN.format('free some space')}", 75
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many open files; {_AGAIN.format('raise the limit (ulimit -n 4096)')}", 75
    if error.errno in (errno.ENOMEM, errno.EAGAIN):
        return f"no memory or no more processes ({reason}); {_AGAIN.format('close other programs')}", 75
    if error.errno in (errno.EIO, errno.ESTALE):
        return f"the disk cannot be read or written ({where or reason}); {_AGAIN.format('check it')}", 75
    if where is None and error.errno == errno.ENOENT:
        try:
            Path.cwd()
        except OSError:
            return "the working directory no longer exists: change to another one", 1
        return f"{reason}: set TMPDIR to a folder that can be written", 1
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"{where or 'a file'} cannot be written ({reason})", 1
    return f"{where}: {reason}" if where else reason, 1


_AGAIN = "{}, then run the same command again"


def _exit(message: str, code: int) -> None:
    typer.echo("selfalign: " + message.replace("\n", "\\n"), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
