"""A PEFT adapter as a GGUF adapter that llama.cpp loads onto the base's GGUF."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from selfalign.errors import UserError
from selfalign.system import atomic

_ARCHITECTURES = {"gemma3_text": "gemma3", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model_type -> llama.cpp's architecture."""
_PERMUTED = {"llama"}
"""Architectures whose query and key rows llama.cpp reorders for its rotary embedding."""


def architecture(config: dict[str, Any]) -> str:
    """llama.cpp's name of a model's architecture, from its config.json.

    Raises:
        UserError: an adapter of it is not known to map one to one.
    """
    found = _ARCHITECTURES.get(config.get("model_type", ""))
    if found is None or "num_hidden_layers" not in config:
        raise UserError(
            f"a GGUF adapter for the model type {config.get('model_type')!r} is not supported yet; "
            f"known: {', '.join(_ARCHITECTURES)}"
        )
    return found


def scale(adapter: Path) -> tuple[float, int]:
    """(alpha, rank) of a PEFT folder's adapter: its weights are the base's plus alpha / rank * B @ A.

    Raises:
        UserError: the adapter is of a kind to which that does not apply.
    """
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    other = [k for k in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(k)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or other:
        raise UserError(f"{adapter} is not a plain LoRA adapter ({', '.join(other) or 'by its adapter_config.json'})")
    return float(config["lora_alpha"]), int(config["r"])


def tensors(adapter: Path, base: Path) -> dict[str, Any]:
    """`blk.0.attn_q.weight.lora_a` -> array, float32, for each tensor of a PEFT folder trained on the folder `base`.

    A is (rank, columns) and B is (rows, rank) of the base's tensor as llama.cpp orders its rows.

    Raises:
        UserError: the architecture is not known to map one to one, or the adapter changes something else.
    """
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((base / "config.json").read_text("utf-8"))
    name_of = architecture(config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == name_of)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    found: dict[str, Any] = {}
    for key, value in sorted(load_file(adapter / "adapter_model.safetensors").items()):
        match = re.fullmatch(r"(?:base_model\.model\.)?(model\.layers\..+)\.lora_([AB])\.weight", key)
        name = names.get_name(match[1]) if match else None
        if not match or not name:
            raise UserError(f"{adapter}: the tensor {key!r} has no place in a GGUF")
        module = match[1].rpartition(".")[2]
        if name_of in _PERMUTED and match[2] == "B" and module in heads:
            value = _permute(value, heads[module])
        found[f"{name}.weight.lora_{match[2].lower()}"] = np.ascontiguousarray(value, dtype=np.float32)
    return found


def write(adapter: Path, base: Path, target: Path, notice: str) -> None:
    """Write `adapter` (a PEFT folder), trained on the folder `base`, to `target`.

    Raises:
        UserError: as `tensors` and `scale`.
    """
    import gguf

    found, (alpha, _) = tensors(adapter, base), scale(adapter)
    handle, part = tempfile.mkstemp(suffix=".gguf")
    os.close(handle)
    try:
        writer = gguf.GGUFWriter(part, architecture(json.loads((base / "config.json").read_text("utf-8"))))
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        if notice:
            writer.add_string("general.license.name", notice[:2000])
        for name, value in found.items():
            writer.add_tensor(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        atomic.write_bytes(target, Path(part).read_bytes())
    finally:
        Path(part).unlink(missing_ok=True)


def _permute(weight: object, heads: int) -> object:
    """(heads * 2 * half, r) rows from transformers' order (halves) to llama.cpp's (pairs)."""
    rows, rank = weight.shape  # type: ignore[attr-defined]
    return weight.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank)  # type: ignore[attr-defined]
