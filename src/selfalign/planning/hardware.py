"""List the GPUs and model shapes for `plan --cluster`: public figures with their sources (docs/capacity.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
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


_PCIE = 32e9
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("H200", 989e12, 4.80e12, 141e9, 450e9, "NVIDIA H200 data sheet (SXM)"),
        Gpu("H100", 989e12, 3.35e12, 80e9, 450e9, "NVIDIA H100 data sheet (SXM)"),
        Gpu("A100-80", 312e12, 2.039e12, 80e9, 300e9, "NVIDIA A100 data sheet (SXM, 80 GB)"),
        Gpu("A100-40", 312e12, 1.555e12, 40e9, 300e9, "NVIDIA A100 data sheet (SXM, 40 GB)"),
        Gpu("L40S", 362e12, 0.864e12, 48e9, _PCIE, "NVIDIA L40S data sheet"),
        Gpu("A10G", 70e12, 0.600e12, 24e9, _PCIE, "AWS and NVIDIA on EC2 G5 (the A10 itself: 125 TFLOP/s)"),
        Gpu("L4", 121e12, 0.300e12, 24e9, _PCIE, "NVIDIA L4 data sheet"),
        Gpu("RTX4090", 165e12, 1.008e12, 24e9, _PCIE, "NVIDIA Ada architecture white paper"),
        Gpu("RTX3090", 71e12, 0.936e12, 24e9, _PCIE, "NVIDIA GA102 architecture white paper"),
        Gpu("V100-32", 125e12, 0.900e12, 32e9, 150e9, "NVIDIA V100 data sheet (SXM2, 32 GB); the paper's, in fp16"),
    )
}
ALIASES = {
    "A100-80GB": "A100-80",
    "A100-40GB": "A100-40",
    "RTX-4090": "RTX4090",
    "RTX-3090": "RTX3090",
    "4090": "RTX4090",
    "3090": "RTX3090",
    "V100": "V100-32",
}
"""Unambiguous other names; "A100" could be two GPUs."""


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
        }
        return self.layers * rank * sum(sides[name] for name in targets)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("270m", 18, 640, 4, 1, 256, 2048, 262_144, True, "Gemma 3 270M, config.json"),
        Shape("7b", 32, 4096, 32, 32, 128, 11_008, 32_000, False, "Llama 2 7B, config.json"),
        Shape("8b", 32, 4096, 32, 8, 128, 14_336, 128_256, False, "Llama 3.1 8B, config.json"),
        Shape("13b", 40, 5120, 40, 40, 128, 13_824, 32_000, False, "Llama 2 13B, config.json"),
        Shape("32b", 64, 5120, 40, 8, 128, 27_648, 152_064, False, "Qwen2.5 32B, config.json"),
        Shape("65b", 80, 8192, 64, 64, 128, 22_016, 32_000, False, "LLaMA 65B (arXiv 2302.13971, table 2)"),
        Shape("70b", 80, 8192, 64, 8, 128, 28_672, 128_256, False, "Llama 3.1 70B, config.json"),
    )
}
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
