"""Write docs/cli.md, the reference of the command line, from the program itself.

python tools/cli_reference.py            write the page
python tools/cli_reference.py --check    exit with 1 if the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from selfalign.cli.main import app

PAGE = Path(__file__).parents[1] / "docs/cli.md"
INTRODUCTION = """\
# Command line reference

These are all commands and options of the program, from its help texts (`python tools/cli_reference.py` writes this \
page; do not edit it). [exit-codes.md](exit-codes.md) explains the exit codes.

`selfalign` without a verb suggests the next commands. `selfalign --install-completion` installs the completion of \
verbs and options for the shell in which it runs (bash, zsh, fish or PowerShell). \
Every verb that prints a table has `--json`.
"""


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the full name and the object of each command, groups before their commands."""
    yield name, command
    for child, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {child}")


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def section(name: str, command: Any) -> str:
    """Return the Markdown about one command: its help, its usage, and a table of arguments and options."""
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"## `{name}`", "", escape(" ".join(command.help.split())), "", "```", usage, "```"]
    records = (parameter.get_help_record(context) for parameter in command.params)
    table = [f"| `{words.replace('|', chr(92) + '|')}` | {escape(text)} |" for words, text in filter(None, records)]
    return "\n".join([*lines, *(["", "| | |", "|---|---|", *table] if table else [])])


def reference() -> str:
    """Return the whole page."""
    top = typer.main.get_command(app)
    sections = (section(name, command) for name, command in commands(top, "selfalign"))
    return "\n\n".join([INTRODUCTION.rstrip(), *sections]) + "\n"


def main() -> None:
    """Write the page, or check it."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(reference(), "utf-8")
    elif PAGE.read_text("utf-8") != reference():
        sys.exit("docs/cli.md is out of date; run python tools/cli_reference.py")


if __name__ == "__main__":
    main()
