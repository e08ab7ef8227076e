"""Print messages and progress: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from selfalign.system.format import duration
from selfalign.system.schedule import Schedule

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINE_EVERY_S = 10.0
_SAMPLE_EVERY_S = 30.0
_WIDE = 104
"""Columns in which a long bar and its text have room."""
_TABLE_WIDTH = 80
"""Columns that every table needs to show its numbers in full."""


def plain(text: str) -> str:
    """Return the text without control, escape and direction characters, which could manipulate the terminal."""
    return _CONTROL.sub("", text)


class Screen:
    """Messages on standard error.

    Args:
        verbosity: -1 quiet, 0 normal, 1 verbose.
    """

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self.schedule = Schedule({})
        """The plan of the whole run; empty if there is none."""
        self.console = Console(stderr=True, highlight=False)
        if self.console.width < 1:  # some terminals without a window say 0, and rich then prints nothing
            self.console.width = 80

    def say(self, text: str, style: str = "") -> None:
        """Print a message unless quiet. Control characters are removed."""
        if self.verbosity >= 0:
            self.console.print(escape(plain(text)), style=style or None, soft_wrap=True)

    def detail(self, text: str) -> None:
        """Print a message if verbose."""
        if self.verbosity >= 1:
            self.say(text, "dim")

    def spans(self, parts: Sequence[tuple[str, bool]]) -> None:
        """Print the parts of a text, each (text, marked), if verbose; marked parts are green."""
        if self.verbosity >= 1:
            shown = Text()
            for text, marked in parts:
                shown.append(plain(text), style="green" if marked else "dim")
            self.console.print(Padding(shown, (0, 0, 1, 4)))

    @property
    def is_live(self) -> bool:
        """Whether lines can be rewritten: not in a file, a pipe or a dumb terminal, even if colours are forced."""
        return self.console.is_terminal and not self.console.is_dumb_terminal and self.console.file.isatty()

    def bar(self, name: str, total: int | None, part: str = "") -> Bar:
        """Return a progress bar, to be used as a context manager. Its arguments are those of `Bar`."""
        return Bar(self, name, total, part)


class Bar:
    """The progress of one stage: rows done, tokens per second, time left. Use it as a context manager.

    Args:
        total: number of rows; None if unknown.
        part: the part of the screen's schedule, for the time left of the whole run.
    """

    def __init__(self, screen: Screen, name: str, total: int | None, part: str = "") -> None:
        self._screen = screen
        self._name = name
        self._total = total
        self._part = part
        self._done = self._done_before = self._tokens = 0
        self._start = self._last_line = self._last_sample = time.monotonic()
        self._live = screen.verbosity >= 0 and screen.is_live
        width = screen.console.width
        bar = [BarColumn(bar_width=28 if width >= _WIDE else 6)] if width >= _TABLE_WIDTH else []
        columns = (TextColumn("  {task.description:<14}"), *bar, _NoteColumn(self.note))
        self._progress = Progress(*columns, console=screen.console, transient=True)
        self._task = self._progress.add_task(name, total=total)

    def __enter__(self) -> Bar:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._live:
            self._progress.stop()
        if kind is None and self._tokens and not self._done_before:
            self._screen.schedule.finish(self._part, time.monotonic() - self._start)

    def note(self) -> str:
        """Return the progress as text: `12 of 60 · 75 tokens/s · 1:20 left · whole run 24 min left`."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        text = f"{self._done} of {self._total}" if self._total else f"{self._done}"
        if self._tokens:
            text += f" · {self._tokens / seconds:.0f} tokens/s"
        own = None
        if self._total and 0 < self._done < self._total:
            own = seconds / max(1, self._done - self._done_before) * (self._total - self._done)
            text += f" · {int(own) // 60}:{int(own) % 60:02d} left"
        whole = self._screen.schedule.left(self._part, own, seconds)
        return text if whole is None else f"{text} · whole run {duration(whole)} left"

    def sample(self, message: str, response: str = "") -> None:
        """Print one row now and then, so that the texts can be followed. Most calls print nothing."""
        now = time.monotonic()
        if now - self._last_sample < _SAMPLE_EVERY_S:
            return
        self._last_sample = now
        row = " → ".join(" ".join(text.split()) for text in (message, response) if text)
        room = max(self._screen.console.width, 40) - 12
        self._screen.say(f"  sample: {row if len(row) <= room else row[: room - 2] + ' …'}", "dim")

    def total(self, rows: int) -> None:
        """Set the total number of rows."""
        self._total = rows
        self._progress.update(self._task, total=rows)

    def begin_at(self, done: int) -> None:
        """Set the rows done in earlier sessions, which are excluded from the speed."""
        self._done = self._done_before = done

    def set(self, done: int, tokens: int = 0) -> None:
        """Set the number of rows done, and add tokens."""
        if tokens and not self._tokens:  # the journal answered the rows before
            self._done_before = self._done
        self._done, self._tokens = done, self._tokens + tokens
        now = time.monotonic()
        if self._live:
            self._progress.update(self._task, completed=done)
        elif now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            self._screen.say(f"  {self._name}: {self.note()}")

    def add(self, rows: int, tokens: int = 0) -> None:
        """Add rows and tokens."""
        self.set(self._done + rows, tokens)


class _NoteColumn(ProgressColumn):
    """The text of a bar, computed at each refresh, so that its times move while no row is finished."""

    def __init__(self, note: Callable[[], str]) -> None:
        super().__init__()
        self._note = note

    def render(self, task: Task) -> Text:
        """Return the text."""
        return Text(self._note(), no_wrap=True)


def stdout_console() -> Console:
    """Return a console for results, which go to standard output; a narrower terminal breaks the lines of tables."""
    console = Console(file=sys.stdout, highlight=False)
    console.width = max(console.width, _TABLE_WIDTH)
    return console
