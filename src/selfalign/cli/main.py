"""Assemble the command line. No heavy library is imported before a verb needs it."""

from __future__ import annotations

import sys

import typer

from selfalign.cli import chat, constitution, evaluate, export, runs, suggest, web
from selfalign.cli.options import Quiet, Verbose

app = typer.Typer(
    help="Align language models from scratch, with principles and few human-written items.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (
    runs.run, runs.plan, runs.init, runs.prompts, runs.align, runs.engrave, runs.clone, evaluate.evaluate, runs.report,
    runs.status, runs.duplicates, chat.chat, web.serve, web.view, export.export, export.push, runs.recipe, runs.env,
):  # fmt: skip
    app.command()(_verb)
constitution.app.command()(suggest.suggest)
app.add_typer(constitution.app, name="constitution")


@app.callback()
def _options(verbose: Verbose = False, quiet: Quiet = False) -> None:
    pass


def main() -> None:
    """Run the command line. Expected errors end with one line and an exit code; only bugs show a traceback."""
    from selfalign.errors import SelfAlignError
    from selfalign.system.environment import share_processor
    from selfalign.system.signals import STOP

    share_processor()
    STOP.install()
    try:
        app()
    except SelfAlignError as error:
        from selfalign.system.console import plain

        _exit(plain(str(error)), error.exit_code)
    except OSError as error:
        import errno

        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            _exit(f"no space on the disk{where}; free some space, then run the same command again", 75)
        denied = (errno.EACCES, errno.EPERM, errno.EROFS)
        wrong_path = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
        if error.errno in denied or (error.errno in wrong_path and error.filename):
            _exit(f"{error.filename} cannot be written ({error.strerror})", 1)
        raise


def _exit(message: str, code: int) -> None:
    typer.echo(f"selfalign: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
