"""Progress shows rows, rate and time left, and escape codes only where a terminal understands them."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from selfalign.system import console
from selfalign.system.console import Screen
from selfalign.system.schedule import Schedule


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Screen:
    """A screen without a terminal, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")
    return Screen()


def test_note_has_rows_rate_and_both_times(screen: Screen, clock: Callable[[float], None]):
    screen.schedule = Schedule({"align": 100, "engrave": 600})
    with screen.bar("self-align", 40, "align") as bar:
        assert bar.note() == "0 of 40 · whole run 12 min left"
        clock(20)
        bar.add(10, 1500)
        assert bar.note() == "10 of 40 · 75 tokens/s · 1:00 left · whole run 11 min left"


def test_finished_bar_corrects_the_next_estimate(screen: Screen, clock: Callable[[float], None]):
    screen.schedule = Schedule({"align": 100, "engrave": 600})
    with screen.bar("self-align", 1, "align") as bar:
        clock(200)
        bar.add(1, 50)
    with screen.bar("train", None, "engrave") as bar:
        assert bar.note() == "0 · whole run 20 min left"


def test_rows_of_an_earlier_session_do_not_shorten_estimates(screen: Screen, clock: Callable[[float], None]):
    screen.schedule = Schedule({"self_instruct": 100, "align": 100, "engrave": 600})
    with screen.bar("prompts", 30, "self_instruct") as bar:
        bar.add(30)
    with screen.bar("self-align", 40, "align") as bar:
        bar.add(20)
        clock(20)
        bar.add(10, 1500)
        assert bar.note() == "30 of 40 · 75 tokens/s · 0:20 left · whole run 10 min left"
        bar.add(10, 1500)
    with screen.bar("train", None, "engrave") as bar:
        assert bar.note() == "0 · whole run 10 min left"


def test_lines_replace_the_bar_in_a_file(
    screen: Screen, clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
):
    with screen.bar("self-align", 100) as bar:
        for _ in range(50):
            clock(1)
            bar.add(2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and lines[0] == "  self-align: 20 of 100 · 0:40 left"
    assert not any("\x1b" in line for line in lines)


def test_sample_is_rare_one_line_and_harmless(
    screen: Screen, clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
):
    with screen.bar("self-align", 100) as bar:
        for number in range(90):
            clock(1)
            bar.sample(f"Question {number}\n\x1b[2J?", "An answer. " * 30)
    lines = [line for line in capsys.readouterr().err.splitlines() if "sample" in line]
    assert len(lines) == 3 and lines[0].startswith("  sample: Question 29 [2J? → An answer.")
    assert max(map(len, lines)) <= 80 and lines[0].endswith("…")


def in_terminal(environment: dict[str, str]) -> str:
    """Return what a bar writes to a terminal with these variables."""
    code = (
        "from selfalign.system.console import Screen\n"
        "with Screen().bar('self-align', 3) as bar:\n"
        "    bar.add(2, 10)\n"
        "    bar._progress.refresh()\n"
    )
    ours, theirs = pty.openpty()
    given = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen([sys.executable, "-c", code], env={**given, **environment}, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the terminal is closed
        pass
    os.close(ours)
    assert process.wait(30) == 0
    return shown.decode()


@pytest.mark.integration
@pytest.mark.parametrize("terminal", ["xterm-256color", "tmux-256color", "screen"])
def test_bar_is_drawn_in_a_terminal(terminal: str):
    shown = in_terminal({"TERM": terminal, "COLUMNS": "80"})
    assert "\x1b[" in shown and "2 of 3" in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80


@pytest.mark.integration
def test_dumb_terminal_gets_no_escape_codes():
    assert "\x1b" not in in_terminal({"TERM": "dumb"})


@pytest.mark.integration
def test_forced_colours_do_not_move_the_cursor_in_a_log():
    code = (
        "from selfalign.system.console import Screen\nwith Screen().bar('self-align', 3) as bar:\n    bar.add(2, 10)\n"
    )
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not re.search(r"\x1b\[[0-9;?]*[A-HJKhl]", done.stderr)
