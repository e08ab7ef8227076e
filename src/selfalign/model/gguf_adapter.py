"""Convert a PEFT adapter to a GGUF adapter, which llama.cpp applies to the base model's GGUF."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from selfalign.errors import UserError
from selfalign.model import plain_lora
from selfalign.system import atomic

_ARCHITECTURES = {
    "arcee": "arcee", "cohere": "command-r", "cohere2": "cohere2", "ernie4_5": "ernie4_5", "exaone4": "exaone4",
    "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "glm4": "glm4", "granite": "granite",
    "hunyuan_v1_dense": "hunyuan-dense", "llama": "llama", "ministral3": "mistral3", "mistral": "llama",
    "nemotron": "nemotron", "olmo": "olmo", "olmo2": "olmo2", "olmo3": "olmo2", "phi3": "phi3", "qwen2": "qwen2",
    "qwen3": "qwen3", "seed_oss": "seed_oss", "smollm3": "smollm3", "stablelm": "stablelm", "starcoder2": "starcoder2",
}  # fmt: skip
"""transformers' model_type -> llama.cpp's architecture. tests/model/test_families.py compares each in both."""
_PERMUTED = frozenset({"arcee", "granite", "llama", "ministral3", "mistral", "olmo", "smollm3"})
"""Model types whose query and key rows llama.cpp reorders for its rotary embedding."""


def path_of(adapter: Path) -> Path:
    """Return the GGUF file of a PEFT folder, next to it. A dot in the folder's name begins no suffix."""
    return adapter.with_name(f"{adapter.name}.gguf")


def is_current(adapter: Path) -> bool:
    """Return whether an adapter has a GGUF that is not older than its weights."""
    file = path_of(adapter)
    return file.exists() and file.stat().st_mtime_ns >= (adapter / "adapter_model.safetensors").stat().st_mtime_ns


def is_supported(config: dict[str, Any]) -> bool:
    """Return whether llama.cpp can apply adapters of this architecture. `config` is the model's config.json."""
    return config.get("model_type") in _ARCHITECTURES and "num_hidden_layers" in config


def architecture(config: dict[str, Any]) -> str:
    """Return llama.cpp's name of an architecture.

    Args:
        config: the model's config.json.

    Raises:
        UserError: adapters of this architecture are not supported.
    """
    if not is_supported(config):
        raise UserError(
            f"a GGUF adapter for the model type {config.get('model_type')!r} is not supported: use the engine vllm, or "
            f"a model of the types {', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[config["model_type"]]


def tensors(adapter: Path, base: Path) -> dict[str, Any]:
    """Return the adapter's tensors under llama.cpp's names, such as `blk.0.attn_q.weight.lora_a`.

    Args:
        adapter: a PEFT folder.
        base: the Hugging Face folder of its base model.

    Returns:
        name -> float32 array: A (rank, columns) and B (rows, rank), for rows in llama.cpp's order.

    Raises:
        UserError: the architecture is not supported, or a tensor has no counterpart in a GGUF.
    """
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((base / "config.json").read_text("utf-8"))
    name_of = architecture(config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == name_of)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    arrays: dict[str, Any] = {}
    for key, value in sorted(load_file(adapter / "adapter_model.safetensors").items()):
        match = re.fullmatch(r"(?:base_model\.model\.)?(model\.layers\..+)\.lora_([AB])\.weight", key)
        name = names.get_name(match[1]) if match else None
        if not match or not name:
            raise UserError(f"{adapter}: the tensor {key!r} has no counterpart in a GGUF")
        module = match[1].rpartition(".")[2]
        if config["model_type"] in _PERMUTED and match[2] == "B" and module in heads:
            value = _permute(value, heads[module])
        arrays[f"{name}.weight.lora_{match[2].lower()}"] = np.ascontiguousarray(value, dtype=np.float32)
    return arrays


def write(adapter: Path, base: Path, target: Path, notice: str, required: bool = True) -> None:
    """Write `adapter` (a PEFT folder), trained on the folder `base`, to the GGUF file `target`.

    Args:
        notice: the base's licence notice, to store in the file's metadata.
        required: whether llama.cpp must be able to load the file. Otherwise, an adapter of another architecture is
            stored under PEFT's names; the file then only identifies it.

    Raises:
        UserError: as `tensors` and `plain_lora.uniform`.
    """
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((base / "config.json").read_text("utf-8"))
    if required or is_supported(config):
        name, arrays = architecture(config), tensors(adapter, base)
    else:
        name, arrays = str(config.get("model_type")), load_file(adapter / "adapter_model.safetensors")
    target.parent.mkdir(parents=True, exist_ok=True)
    alpha, _ = plain_lora.uniform(adapter)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".incomplete") as folder:
        part = Path(folder) / "adapter.gguf"
        writer = gguf.GGUFWriter(part, name)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        if notice:
            writer.add_string("general.license.name", notice[:2000])
        for key, value in arrays.items():
            writer.add_tensor(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        atomic.write_bytes(target, part.read_bytes())


def _permute(weight: Any, heads: int) -> Any:
    """Reorder rows, (heads * 2 * half, rank), from transformers' order (halves) to llama.cpp's (pairs)."""
    rows, rank = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank)
