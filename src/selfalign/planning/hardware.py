"""List the GPUs and model shapes for `plan --cluster`: public figures with their sources (docs/capacity.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from selfalign.errors import UserError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, with its vendor's figures."""

    name: str
    flops: float
    """Dense bf16 (V100: fp16) tensor FLOP/s, accumulated in fp32; data sheets often show twice that, with sparsity."""
    bandwidth: float
    """Memory bandwidth in bytes/s."""
    memory: float
    """Memory in bytes."""
    link: float
    """Bytes/s in one direction to the other GPUs of its node: NVLink, else PCIe 4.0 x16."""
    source: str


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a dense decoder with gated feed-forward layers."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    """Width of one head."""
    inner: int
    """Width of a feed-forward layer."""
    vocabulary: int
    tied: bool
    """Whether input and output embeddings are one matrix."""
    source: str

    @property
    def body(self) -> int:
        """Return the parameters of the layers' matrices, without norms."""
        attention = self.hidden * self.head * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def parameters(self) -> int:
        return self.body + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def computed(self) -> int:
        """Return the parameters in a token's matrix products: all except the input embedding, a look-up."""
        return self.body + self.vocabulary * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Return the bytes of one token's keys and values, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head

    def adapter(self, rank: int, targets: list[str]) -> int:
        """Return the parameters of a LoRA adapter of that rank on those matrices."""
        wide, narrow = self.heads * self.head, self.kv_heads * self.head
        sides = {
            "q_proj": self.hidden + wide,
            "k_proj": self.hidden + narrow,
            "v_proj": self.hidden + narrow,
            "o_proj": wide + self.hidden,
            "gate_proj": self.hidden + self.inner,
            "up_proj": self.hidden + self.inner,
            "down_proj": self.inner + self.hidden,
            "qkv_proj": self.hidden + wide + 2 * narrow,
            "gate_up_proj": self.hidden + 2 * self.inner,
        }
        return self.layers * rank * sum(sides[name] for name in targets)


_TABLES = json.loads((resources.files("selfalign") / "assets/hardware.json").read_text("utf-8"))
GPUS = {gpu["name"]: Gpu(**gpu) for gpu in _TABLES["gpus"]}
SHAPES = {shape["name"]: Shape(**shape) for shape in _TABLES["shapes"]}
ALIASES: dict[str, str] = _TABLES["aliases"]
"""Unambiguous other names; "A100" could be two GPUs."""
_KEYS = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "intermediate_size": "inner",
    "vocab_size": "vocabulary",
}


def read_shape(folder: Path) -> Shape:
    """Return the shape of the model in a folder, from its config.json.

    Raises:
        UserError: config.json is missing, invalid or incomplete.
    """
    path = folder / "config.json"
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json: it is not a Hugging Face model folder") from None
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} cannot be read as JSON") from None
    config = value.get("text_config", value) if isinstance(value, dict) else None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object")
    sizes = {name: _positive(config, key, path) for key, name in _KEYS.items()}
    if config.get("num_local_experts") or config.get("num_experts"):
        raise UserError(f"{path}: a mixture of experts; the planner supports dense models only")
    return Shape(
        name=folder.resolve().name,
        kv_heads=_positive(config, "num_key_value_heads", path, sizes["heads"]),
        head=_positive(config, "head_dim", path, max(1, sizes["hidden"] // sizes["heads"])),
        tied=bool(config.get("tie_word_embeddings", str(config.get("model_type")).startswith("gemma"))),
        source=path.name,
        **sizes,
    )


def _positive(config: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or not 0 < value < 10**7:
        raise UserError(f"{path}: {key} is {value!r}, but the planner needs an integer of at least 1")
    return value
