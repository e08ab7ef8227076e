"""Run llama.cpp's own converter, for a base model that has no GGUF."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from selfalign.errors import UserError

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"


def find_converter(source: str, folder: Path) -> Path:
    """Return the path of llama.cpp's conversion script. $LLAMA_CPP names the script or its folder; otherwise use PATH.

    Args:
        source: the name of the base model, for the error message.
        folder: the folder of the base model, for the error message.

    Raises:
        UserError: the script is not installed.
    """
    setting = os.environ.get(VARIABLE, "")
    path = Path(setting).expanduser()
    candidates = [path, path / SCRIPT] if setting else [Path(p) for p in [shutil.which(SCRIPT)] if p]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.absolute()
    where = f"it is not in ${VARIABLE}={setting}" if setting else f"${VARIABLE} is not set"
    raise UserError(
        f"model {source!r} has no GGUF, and llama.cpp's {SCRIPT} was not found ({where}): set {VARIABLE} to the "
        f"folder of llama.cpp's source, or put a GGUF of the base into {folder}"
    )


def convert(script: Path, folder: Path, target: Path, weight_type: str, name: str) -> None:
    """Convert a model folder in safetensors to the GGUF `target`, with `name` as the model's name in the file.

    Raises:
        UserError: the converter fails.
    """
    command = [sys.executable, str(script), str(folder), "--outtype", weight_type, "--outfile", str(target)]
    command += ["--model-name", name]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode or not target.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{script} failed ({done.returncode}): {last[:200]}")
