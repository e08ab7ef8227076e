"""Read the memory of this machine's NVIDIA GPUs. No library is loaded, and nothing is allocated."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass

from selfalign.errors import UserError

_SECONDS = 30.0
"""Seconds that the driver may take to answer; the first query of a sleeping GPU takes a few."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """A GPU and its memory in MB."""

    name: str
    total_mb: float
    free_mb: float


def visible() -> list[GpuMemory]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES allows (all if it is not set).

    The list is empty without nvidia-smi, and for parts of a GPU (MIG), whose memory it does not list.

    Raises:
        UserError: the driver does not answer.
    """
    selected = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or (selected is not None and (selected.strip() in ("", "-1") or "MIG" in selected)):
        return []
    command = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    if selected:
        command.append(f"--id={selected}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise UserError(f"the GPU's driver does not answer (nvidia-smi, {_SECONDS:.0f} s): restart it") from None
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stdout", "") or getattr(error, "stderr", "") or error
        reason = " ".join(str(output).split())[:160]
        raise UserError(f"nvidia-smi fails ({reason}): check the GPU's driver and CUDA_VISIBLE_DEVICES") from None
    found = []
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):  # a GPU that shares the machine's memory reports none
            name, total, free = (part.strip() for part in line.rsplit(",", 2))
            found.append(GpuMemory(name, float(total) * 1.048576, float(free) * 1.048576))
    return found
