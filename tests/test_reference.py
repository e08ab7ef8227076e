"""Check that docs/cli.md and docs/python.md describe the program."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import selfalign

ROOT = Path(__file__).parents[1]


def test_command_line_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "tools/cli_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text("utf-8") == module.reference(), "run python tools/cli_reference.py"


def documented(heading: str) -> list[str]:
    """Return the names in the first column of the table under a heading of docs/python.md."""
    text = (ROOT / "docs/python.md").read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)", row)]


def test_documented_names_are_the_public_ones():
    assert sorted(documented("Names in `selfalign`")) == sorted(selfalign.__all__)
    assert all(hasattr(selfalign, name) for name in selfalign.__all__)


def test_documented_members_are_the_public_ones():
    members = [name for name in vars(selfalign.Run) if not name.startswith("_")]
    assert sorted(documented("Members of `Run`")) == sorted(members)
