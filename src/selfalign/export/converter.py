"""The merged GGUF of a base that has no GGUF: llama.cpp's own converter, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from selfalign.errors import UserError
from selfalign.export import merged
from selfalign.export.job import Job

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"


def find(source: str, folder: Path) -> Path:
    """llama.cpp's conversion script: $LLAMA_CPP (the script or a folder that holds it), else one on the path.

    Args:
        source: the base's name, for the message.
        folder: the base's folder.

    Raises:
        UserError: there is none.
    """
    named = os.environ.get(VARIABLE, "")
    path = Path(named).expanduser()
    candidates = [path, path / SCRIPT] if named else [Path(p) for p in [shutil.which(SCRIPT)] if p]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.absolute()
    where = f"${VARIABLE} names {named!r}, where it is not" if named else f"${VARIABLE} is not set"
    raise UserError(
        f"model {source!r} has no GGUF to rewrite, and llama.cpp's {SCRIPT} was not found ({where}): set {VARIABLE} to "
        f"the folder of llama.cpp's source, or put a GGUF of the base into {folder}"
    )


def write(trained: Any, job: Job, folder: Path, target: Path) -> None:
    """Merge the PEFT model, and convert the merged folder to `target`; the folder is removed again.

    Raises:
        UserError: there is no converter, or it fails.
    """
    model = job.context.model
    script = find(model.source, model.folder())
    with tempfile.TemporaryDirectory(prefix="merged-", dir=folder) as part:
        merged.write(trained, model, Path(part), "f32", job.jinja())
        command = [sys.executable, str(script), part, "--outtype", job.kind, "--outfile", str(target)]
        command += ["--model-name", f"{job.label} ({job.model})"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode or not target.is_file():
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"{script} failed ({done.returncode}): {last[:200]}")
