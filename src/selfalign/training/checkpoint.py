"""Save a training run's state in one file, published atomically, and verify it when it is loaded.

The file holds the adapter, the optimiser's moments and the record so far. It needs no state of random number
generators: a step's numbers follow from the seed and the step's index, so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from selfalign.system import atomic


class UnusableCheckpoint(Exception):
    """A checkpoint from which training cannot resume; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The checkpoint file of a training run.

    Args:
        path: the file.
        key: a hash of everything that determines the steps; a checkpoint with another key is not used.
    """

    path: Path
    key: str

    def save(self, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
        """Write the state, replacing the previous one.

        Args:
            record: values that JSON can represent.

        Raises:
            Resumable: the disk is full.
        """
        copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(record)
        metadata = {"key": self.key, "digest": _digest(copies, self.key, text), "record": text}
        atomic.write_bytes(self.path, save(copies, metadata=metadata))

    def load(self, like: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return (tensors, record), or None if there is no file.

        Args:
            like: tensors whose names and shapes the state must have.

        Raises:
            UnusableCheckpoint: the file is damaged, was saved for other rows, settings or weights, or holds infinite
                or NaN values.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(str(self.path), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            record = json.loads(text := metadata.get("record", ""))
        except (SafetensorError, OSError, ValueError):
            raise UnusableCheckpoint("the file is incomplete") from None
        if metadata.get("digest") != _digest(tensors, metadata.get("key", ""), text):
            raise UnusableCheckpoint("its content was altered")
        if metadata.get("key") != self.key:
            raise UnusableCheckpoint("rows, settings or weights have changed")
        for name, tensor in like.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise UnusableCheckpoint(f"it has no {name} of the shape {list(tensor.shape)}")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise UnusableCheckpoint("it holds infinite or NaN values")
        return tensors, record


def saved_dtype(path: Path) -> str | None:
    """Return the dtype that a checkpoint's training computes in; None if the file is missing, damaged or names none."""
    try:
        with safe_open(str(path), "pt") as file:
            dtype = json.loads((file.metadata() or {}).get("record", "{}")).get("dtype")
    except (SafetensorError, OSError, ValueError, AttributeError):
        return None
    return dtype if dtype in ("float32", "bfloat16") else None


def _digest(tensors: Mapping[str, torch.Tensor], *texts: str) -> str:
    digest = hashlib.sha256("\0".join(texts).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
