"""Run the command line in a process of its own, forked from one that has already loaded the package.

A new interpreter takes about a second to import what a command needs; a fork takes none. Tests of the interpreter's
start, of signals and of closed files start `python -m selfalign.cli.main` themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import Any

PRELOADED = (
    "selfalign.cli.main", "selfalign.cli.starter", "selfalign.pipeline.order", "selfalign.pipeline.preview",
    "selfalign.planning.prepare", "selfalign.planning.terminal", "selfalign.report.page", "selfalign.report.terminal",
    "selfalign.report.status",
)  # fmt: skip


def selfalign(
    *arguments: str, cwd: Path, columns: int = 120, input: str = "", max_file_size: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command and return its exit code and output. Files may be limited to a size in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(input, "utf-8")
        environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": str(columns)}
        order = [list(arguments), str(cwd), environment, [str(s) for s in streams], max_file_size]
        server = _server()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        output, errors = (s.read_text(os.environ.get("PYTHONIOENCODING", "utf-8")) for s in streams[1:])
    return subprocess.CompletedProcess(arguments, code, output, errors)


@cache
def _server() -> subprocess.Popen[str]:
    """Return the process to fork from, one per test process."""
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def _serve() -> None:
    """Run the commands that arrive on standard input, one after the other, and print their exit codes."""
    for name in PRELOADED:
        __import__(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(
    arguments: list[str], cwd: str, environment: dict[str, str], streams: list[str], max_file_size: int | None
) -> None:
    """Run one command in the forked process, and end it."""
    from selfalign.cli.main import main

    code: Any = 1
    os.environ.clear()
    os.environ.update(environment)
    for number, (path, flags) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        os.dup2(os.open(path, flags | os.O_CREAT, 0o600), number)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)
    try:
        os.chdir(cwd)
        sys.argv = ["selfalign", *arguments]
        if max_file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
