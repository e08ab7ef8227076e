"""Standard streams of consoles that cannot show every character, and of callers that closed them."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from selfalign.system.console import Screen
from selfalign.system.streams import prepare_streams, print_document

TEXT = "Übung – 🍎"


def stdout(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    """Replace standard output by a stream of that encoding; return its bytes."""
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
    return content


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "?bung ? ?"), ("cp1252", "Übung – ?"), ("utf-8", TEXT)])
def test_console_replaces_what_it_cannot_show(monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str):
    content = stdout(monkeypatch, encoding)
    prepare_streams()
    print(TEXT, "\udcff", flush=True)
    assert content.getvalue().decode(encoding) == f"{shown} ?\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_documents_lose_no_character(monkeypatch: pytest.MonkeyPatch, encoding: str):
    content = stdout(monkeypatch, encoding)
    prepare_streams()
    print("before")
    print_document(json.dumps({"text": TEXT}, ensure_ascii=False))
    assert content.getvalue().decode() == f'before\n{{"text": "{TEXT}"}}\n'


def test_terminal_of_no_width_shows_messages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "0")
    Screen().say("kept: 5")
    assert capsys.readouterr().err == "kept: 5\n"


def test_closed_streams_do_not_give_their_numbers_to_files():
    code = (
        "from selfalign.system.streams import prepare_streams; prepare_streams(); import os, sys; "
        "assert sys.stdin.read() == ''; print('x'); print('x', file=sys.stderr); sys.exit(os.dup(0))"
    )
    done = subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "{code}" <&- >&- 2>&-'], check=False)
    assert done.returncode > 2
