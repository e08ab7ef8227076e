"""Write the base and the adapter as one model in safetensors, with tokenizer, chat template and end tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from selfalign.errors import UserError
from selfalign.model.base_model import Model
from selfalign.system import atomic

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
CHAT_TEMPLATE = "chat_template.jinja"

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt",
)  # fmt: skip
_REPLACED = ("chat_template", "is_local", "local_files_only", "name_or_path")
"""Settings of the base's tokenizer that are replaced, or that contain a path."""


def write(adapted: Any, model: Model, folder: Path, weight_type: str, chat_template: str) -> None:
    """Merge the PEFT model in float32, in place, and save it with tokenizer and chat template.

    Raises:
        UserError: the type cannot represent the weights.
        Resumable: the disk is full.
    """
    merged = adapted.merge_and_unload(safe_merge=True).to(DTYPES[weight_type])
    for name, value in merged.named_parameters():
        if not torch.isfinite(value).all():
            raise UserError(f"{name} has values that {weight_type} cannot represent: use --type bf16 or f32")
    atomic.check_space(folder, sum(p.numel() * p.element_size() for p in merged.parameters()))
    merged.config._name_or_path = ""
    merged.save_pretrained(str(folder), safe_serialization=True, max_shard_size="4GB")
    describe(model, folder, chat_template)


def describe(model: Model, folder: Path, chat_template: str) -> None:
    """Write the tokenizer, the chat template and the end tokens next to the weights in `folder`."""
    base = model.folder()
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    tokenizer, end = model.tokenizer(), model.template.end
    ends = [i for token in model.end_tokens() for i in tokenizer.ids(token, special=True)]
    settings = {k: v for k, v in _read(folder / "tokenizer_config.json").items() if k not in _REPLACED}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that older versions know
    _write(folder / "tokenizer_config.json", {**settings, "eos_token": end, "chat_template": chat_template})
    if (folder / "special_tokens_map.json").is_file():
        known = _read(folder / "special_tokens_map.json")
        _write(folder / "special_tokens_map.json", {**known, "eos_token": end})
    (folder / CHAT_TEMPLATE).write_text(chat_template, "utf-8")
    for name in ("config.json", "generation_config.json"):
        settings = _read(folder / name)
        settings.pop("_from_model_config", None)  # otherwise transformers rebuilds the file from config.json
        _write(folder / name, {**settings, "eos_token_id": ends[0] if len(ends) == 1 else ends})


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def tied(model: Any) -> bool:
    """Return whether the output head is the embedding matrix itself."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def chat_ids(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    """Encode a dialogue with transformers, using the tokenizer and the chat template in the folder."""
    from selfalign.model.conversion import quiet_transformers

    tokenizer = quiet_transformers().AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
