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

_ARCHITECTURES = {"gemma3_text": "gemma3", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model_type -> llama.cpp's architecture."""
_PERMUTED = {"llama"}
"""Architectures whose query and key rows llama.cpp reorders for its rotary embedding."""


def architecture(config: dict[str, Any]) -> str:
    """Return llama.cpp's name of an architecture.

    Args:
        config: the model's config.json.

    Raises:
        UserError: adapters of this architecture are not supported.
    """
    name = _ARCHITECTURES.get(config.get("model_type", ""))
    if name is None or "num_hidden_layers" not in config:
        raise UserError(
            f"a GGUF adapter for the model type {config.get('model_type')!r} is not supported yet; "
            f"known: {', '.join(_ARCHITECTURES)}"
        )
    return name


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
        if name_of in _PERMUTED and match[2] == "B" and module in heads:
            value = _permute(value, heads[module])
        arrays[f"{name}.weight.lora_{match[2].lower()}"] = np.ascontiguousarray(value, dtype=np.float32)
    return arrays


def write(adapter: Path, base: Path, target: Path, notice: str) -> None:
    """Write `adapter` (a PEFT folder), trained on the folder `base`, to the GGUF file `target`.

    Args:
        notice: the base's licence notice, to store in the file's metadata.

    Raises:
        UserError: as `tensors` and `plain_lora.uniform`.
    """
    import gguf

    arrays, (alpha, _) = tensors(adapter, base), plain_lora.uniform(adapter)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "adapter.gguf"
        writer = gguf.GGUFWriter(part, architecture(json.loads((base / "config.json").read_text("utf-8"))))
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        if notice:
            writer.add_string("general.license.name", notice[:2000])
        for name, value in arrays.items():
            writer.add_tensor(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        atomic.write_bytes(target, part.read_bytes())


def _permute(weight: Any, heads: int) -> Any:
    """Reorder rows, (heads * 2 * half, rank), from transformers' order (halves) to llama.cpp's (pairs)."""
    rows, rank = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank)
