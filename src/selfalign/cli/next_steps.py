"""Suggest the next commands: what `selfalign` prints without a verb."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_MOST_RUNS = 3


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run below the working directory."""

    path: str
    finished: bool
    has_report: bool
    is_trained: bool


def find_runs(folder: Path) -> list[FoundRun]:
    """Return the runs in `folder/runs`, the one that was changed last first."""
    found = []
    for path in _folders(folder / "runs"):
        with contextlib.suppress(OSError):  # it cannot be read, or was removed in the meantime
            if (path / "recipe.yaml").is_file() and (path / "journal.sqlite").is_file():
                finished = (path / "manifest.json").exists()
                report = (path / "report/index.html").exists()
                trained = any(path.glob("[34]_*/adapter"))
                run = FoundRun(os.path.relpath(path, folder), finished, report, trained)
                found.append((path.stat().st_mtime, run))
    return [run for _, run in sorted(found, key=lambda entry: (-entry[0], entry[1].path))]


def _folders(parent: Path) -> list[Path]:
    try:
        return list(parent.iterdir())
    except OSError:  # there is no such folder, or it cannot be read
        return []


def lines(runs: Sequence[FoundRun]) -> Iterator[str]:
    """Yield what to do next, given the runs."""
    if not runs:
        yield "There is no run in ./runs yet. Begin with one of these:\n"
        yield from _commands(
            ("selfalign run", "run all stages on the embedded model"),
            ("selfalign plan", "estimate its time and memory on this machine"),
            ("selfalign run --set engine.kind=fake --limit 10 --out runs/try", ""),
            ("", "try all stages in seconds, with random words"),
            ("selfalign init mine", "write a constitution and a recipe to edit"),
        )
        yield ""
    for run in runs[:_MOST_RUNS]:
        argument = shlex.quote(run.path)
        if run.finished:
            yield f"{run.path} is finished:\n"
            yield from _commands(
                (f"selfalign chat {argument}", "chat with its models"),
                (f"selfalign view {argument}", "read every row, and why rows were dropped"),
            )
            if run.is_trained:
                yield from _commands((f"selfalign export {argument} gguf", "write a file for llama.cpp and Ollama"))
            if run.has_report:
                yield f"  Report: {run.path}/report/index.html"
        else:
            yield f"{run.path} is not finished. The command that started it resumes it.\n"
            yield from _commands((f"selfalign status {argument}", "see how far it is"))
        yield ""
    if len(runs) > _MOST_RUNS:
        yield f"There are {len(runs) - _MOST_RUNS} more runs in ./runs.\n"
    yield "All commands: selfalign --help"


def _commands(*commands: tuple[str, str]) -> Iterator[str]:
    for command, meaning in commands:
        yield f"  {command:<32} {meaning}".rstrip()
