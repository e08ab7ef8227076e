"""`selfalign serve` as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-m", "selfalign.cli.main", "serve"]


@contextmanager
def serve(run: Path, *options: str, token: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `selfalign serve` on a free port; yield the process and its address."""
    environment = {**os.environ, "SELFALIGN_TOKEN": token}
    process = subprocess.Popen(
        [*COMMAND, str(run), "--port", "0", *options], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stderr is not None
        output = ""
        while not (found := re.search(r"chat page\s+(http://\S+)/", output)):
            line = process.stderr.readline()
            assert line, output
            output += line
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
