"""A training run's state in one file: always the old one or the whole new one, and looked at before it is used.

Adapter, optimiser moments and the record so far. There is no state of random numbers in it: each step's follow from the
seed and the step's number, so that a resumed run computes what an undisturbed one does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfalign.system import atomic


class UnusableCheckpoint(Exception):
    """Why a checkpoint cannot be gone on from, in a few words."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training run's state is kept.

    Args:
        path: the file.
        key: a hash of everything that the steps follow from; a state with another one is not used.
    """

    path: Path
    key: str

    def save(self, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
        """Publish the state.

        Args:
            record: plain values of JSON.

        Raises:
            Resumable: the disk is full.
        """
        from safetensors.torch import save

        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(record)
        note = {"key": self.key, "digest": _digest(kept, self.key, text), "record": text}
        atomic.write_bytes(self.path, save(kept, metadata=note))

    def load(self, like: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The state, or None where there is none.

        Args:
            like: names and shapes that it must have at least.

        Raises:
            UnusableCheckpoint: it is torn, belongs to other rows, settings or weights, or holds what is not a number.
        """
        if not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), "pt") as file:
                note = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            record = json.loads(text := note.get("record", ""))
        except (SafetensorError, OSError, ValueError):
            raise UnusableCheckpoint("it is torn") from None
        if note.get("digest") != _digest(tensors, note.get("key", ""), text):
            raise UnusableCheckpoint("its content is not what was written")
        if note.get("key") != self.key:
            raise UnusableCheckpoint("rows, settings or weights are others now")
        for name, tensor in like.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise UnusableCheckpoint(f"it has no {name} of the shape {list(tensor.shape)}")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise UnusableCheckpoint("it holds values that are no numbers")
        return tensors, record

    def remove(self) -> None:
        """Forget the state: the training is published."""
        self.path.unlink(missing_ok=True)


def saved_dtype(path: Path) -> str | None:
    """The type in which the training computes whose state that is; None where it does not say, or is torn."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            found = json.loads((file.metadata() or {}).get("record", "{}")).get("dtype")
    except (SafetensorError, OSError, ValueError, AttributeError):
        return None
    return found if found in ("float32", "bfloat16") else None


def _digest(tensors: Mapping[str, torch.Tensor], *texts: str) -> str:
    digest = hashlib.sha256("\0".join(texts).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
