"""Write a GGUF of the base with the adapter added to its weights, and with tokenizer and chat template inside.

Each tensor is read, converted to float32 in chunks of rows, increased by the adapter's alpha / rank * B @ A, and
written in the requested type. Peak memory: the adapter, the largest tensor in its new type (usually the embeddings),
one chunk, and the vocabulary. The base is memory-mapped.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from selfalign.errors import UserError
from selfalign.model import gguf_adapter, plain_lora
from selfalign.system import atomic
from selfalign.system.environment import expand_home
from selfalign.system.signals import STOP

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
WeightType = Literal["q8_0", "f16"]
_CHUNK = 1 << 24
"""Weights that are converted to float32 at a time."""
_DROPPED = (
    "GGUF.", "split.", "quantize.imatrix.", "tokenizer.chat_template", "general.architecture", "general.alignment",
    "general.file_type", "general.quantization_version", "general.name", "general.license.name", "general.finetune",
)  # fmt: skip
"""Prefixes of the base's metadata that are replaced or no longer true."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Metadata of the new file."""

    name: str
    chat_template: str
    end: int
    """Id of the token that ends a response."""
    licence: str


def write(
    base: Path, adapter: Path | None, folder: Path, target: Path, weight_type: WeightType, metadata: Metadata
) -> None:
    """Write the GGUF `base` plus the PEFT adapter in the folder `adapter` to `target`.

    Args:
        adapter: None rewrites the base without an adapter.
        folder: the base's folder for transformers, which determines the names and row order of the adapter's tensors.
        weight_type: the type of the weight matrices; one-dimensional tensors stay float32.

    Raises:
        UserError: the base is split, has another byte order or an unsupported type, or lacks a tensor that the adapter
            changes.
    """
    reader = gguf.GGUFReader(str(base))
    if reader.endianess != gguf.GGUFEndian.LITTLE:
        raise UserError(f"{base} has a different byte order from this machine: convert it with llama.cpp first")
    if (split := reader.fields.get("split.count")) is not None and split.contents() > 1:
        raise UserError(
            f"{base} is one of several parts of a model: join them with llama.cpp's llama-gguf-split --merge first"
        )
    deltas = _Deltas(adapter, folder)
    if missing := deltas.names - {t.name for t in reader.tensors}:
        raise UserError(f"{base} has no tensor {sorted(missing)[0]!r}, which the adapter changes")
    writer = gguf.GGUFWriter(str(target), str(reader.fields["general.architecture"].contents()))
    try:
        if "general.alignment" in reader.fields:
            writer.add_custom_alignment(int(reader.alignment))
        _write_metadata(reader, writer, weight_type, metadata)
        types = {t.name: _new_type(t, weight_type, _keeps_float32(reader)) for t in reader.tensors}
        for tensor in reader.tensors:
            shape = [int(n) for n in reversed(tensor.shape)]
            writer.add_tensor_info(tensor.name, shape, *_stored(shape, types[tensor.name]), types[tensor.name])
        atomic.check_space(target, sum(ti.nbytes for ti in writer.tensors[0].values()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            STOP.check()
            writer.write_tensor_data(_converted(tensor, types[tensor.name], deltas.of(tensor.name), base))
    finally:
        writer.close()


class _Deltas:
    """The terms that the adapter adds to the tensors of the base."""

    def __init__(self, adapter: Path | None, folder: Path) -> None:
        alpha, rank = plain_lora.uniform(adapter) if adapter else (0.0, 1)
        self._scale = alpha / rank
        self._tensors = gguf_adapter.tensors(adapter, folder) if adapter else {}
        self.names = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in self._tensors}

    def of(self, name: str) -> Callable[[int, int], Any] | None:
        """Return a function (first row, end row) -> terms to add to these rows; None if the tensor does not change."""
        if name not in self.names:
            return None
        a, b = self._tensors[f"{name}.lora_a"], self._tensors[f"{name}.lora_b"]
        return lambda first, last: self._scale * (b[first:last] @ a)


def _write_metadata(reader: Any, writer: Any, weight_type: WeightType, metadata: Metadata) -> None:
    for key, field in reader.fields.items():
        if key.startswith(_DROPPED):
            continue
        value = field.contents()
        if field.types[0] != gguf.GGUFValueType.ARRAY:
            writer.add_key_value(key, value, field.types[0])
        elif len(field.types) == 2 and value:
            writer.add_key_value(key, value, field.types[0], field.types[1])
    writer.add_name(metadata.name)
    writer.add_file_type({"q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "f16": gguf.LlamaFileType.MOSTLY_F16}[weight_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string("general.license.name", metadata.licence[:2000])
    writer.add_chat_template(metadata.chat_template)
    ends = reader.fields.get(gguf.Keys.Tokenizer.EOS_ID)
    if ends is None or int(ends.contents()) != metadata.end:
        # The end token of the base still ends a turn.
        if ends is not None and gguf.Keys.Tokenizer.EOT_ID not in reader.fields:
            writer.add_eot_token_id(int(ends.contents()))
        writer.kv_data[0].pop(gguf.Keys.Tokenizer.EOS_ID, None)
        writer.add_eos_token_id(metadata.end)


def _keeps_float32(reader: Any) -> bool:
    """Return whether float32 matrices stay float32: only if the embeddings have another type, so it is deliberate."""
    float32 = gguf.GGMLQuantizationType.F32
    return not any(t.name == "token_embd.weight" and t.tensor_type == float32 for t in reader.tensors)


def _new_type(tensor: Any, weight_type: WeightType, keeps_float32: bool) -> Any:
    types = gguf.GGMLQuantizationType
    if len(tensor.shape) < 2 or (tensor.tensor_type == types.F32 and keeps_float32):
        return types.F32
    block = gguf.GGML_QUANT_SIZES[types.Q8_0][0]
    return types.Q8_0 if weight_type == "q8_0" and int(tensor.shape[0]) % block == 0 else types.F16


def _stored(shape: list[int], ggml_type: Any) -> tuple[Any, int]:
    """Return the numpy type and the size in bytes of a tensor of this shape."""
    block, size = gguf.GGML_QUANT_SIZES[ggml_type]
    # For these types `add_tensor_info` takes the shape in elements; only for uint8 it takes bytes.
    dtype = np.dtype(np.float32 if ggml_type == gguf.GGMLQuantizationType.F32 else np.float16)
    return dtype, math.prod(shape) // block * size


def _converted(tensor: Any, ggml_type: Any, delta: Callable[[int, int], Any] | None, base: Path) -> Any:
    """Return the tensor in its new type, with the adapter's terms added."""
    if tensor.tensor_type == ggml_type and delta is None:
        return tensor.data
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    out: Any = None
    step = max(1, _CHUNK // int(tensor.shape[0]))
    for first in range(0, len(rows), step):
        end = min(first + step, len(rows))
        try:
            part = gguf.quants.dequantize(rows[first:end], tensor.tensor_type)
        except (NotImplementedError, KeyError):
            raise UserError(f"{base} has weights of the unsupported type {tensor.tensor_type.name}") from None
        if delta is not None:
            part = part + delta(first, end)
        with np.errstate(over="ignore"):
            quantized = gguf.quants.quantize(part, ggml_type)
        if quantized.dtype != np.uint8 and not np.isfinite(quantized).all():
            raise UserError(f"{tensor.name} has values that {ggml_type.name} cannot represent: use --type q8_0")
        out = np.empty((len(rows), quantized.shape[-1]), quantized.dtype) if out is None else out
        out[first:end] = quantized
    return out


# -- llama.cpp's own converter, for a base that has no GGUF ------------------------------------------------------------


def find_converter(source: str, folder: Path) -> Path:
    """Return the path of llama.cpp's conversion script. $LLAMA_CPP names the script or its folder; otherwise use PATH.

    Args:
        source: the name of the base model, for the error message.
        folder: the folder of the base model, for the error message.

    Raises:
        UserError: the script is not installed.
    """
    setting = os.environ.get(VARIABLE, "")
    path = expand_home(setting)
    candidates = [path, path / SCRIPT] if setting else [Path(p) for p in [shutil.which(SCRIPT)] if p]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.absolute()
    where = f"it is not in ${VARIABLE}={setting}" if setting else f"${VARIABLE} is not set"
    raise UserError(
        f"model {source!r} has no GGUF, and llama.cpp's {SCRIPT} was not found ({where}): set {VARIABLE} to the "
        f"folder of llama.cpp's source, or put a GGUF of the base into {folder}"
    )


def convert(script: Path, folder: Path, target: Path, weight_type: str, name: str) -> None:
    """Convert a model folder in safetensors to the GGUF `target`, with `name` as the model's name in the file.

    Raises:
        UserError: the converter fails.
    """
    command = [sys.executable, str(script), str(folder), "--outtype", weight_type, "--outfile", str(target)]
    command += ["--model-name", name]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode or not target.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{script} failed ({done.returncode}): {last[:200]}")
