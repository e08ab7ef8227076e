"""The words that the project does not use are absent from the source, the documents and the help."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def check_prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_prose", ROOT / "tools/check_prose.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_source_and_documents_use_the_fields_words(check_prose: ModuleType):
    found = [
        (str(file.relative_to(ROOT)), *finding)
        for file in check_prose.files(list(check_prose.DEFAULT))
        for finding in check_prose.findings(file.read_text("utf-8"))
    ]
    assert found == []


def test_help_uses_the_fields_words(check_prose: ModuleType):
    code = (
        "import typer.main\n"
        "from selfalign.cli.main import app\n"
        "def show(command, name):\n"
        "    print(command.get_help(command.make_context(name, [], resilient_parsing=True)))\n"
        "    for child, sub in getattr(command, 'commands', {}).items():\n"
        "        show(sub, child)\n"
        "show(typer.main.get_command(app), 'selfalign')\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "Usage: selfalign" in shown and "constitution" in shown
    assert list(check_prose.findings(shown)) == []


@pytest.mark.parametrize("text", ["the inference prompt", "its fate", "it goes on", "An Entrant", "left out"])
def test_check_finds_old_words(check_prose: ModuleType, text: str):
    assert len(list(check_prose.findings(text))) == 1


@pytest.mark.parametrize("text", ["goes on to explain", "4_verbose_clone/responses.jsonl", "the system prompt"])
def test_check_spares_ordinary_words(check_prose: ModuleType, text: str):
    assert list(check_prose.findings(text)) == []
