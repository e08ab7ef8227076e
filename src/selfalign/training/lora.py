"""Load the base model in torch, add LoRA adapters to it and save them in PEFT's format."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from selfalign.errors import UserError
from selfalign.model.base_model import BASE_NOTE, Model
from selfalign.model.conversion import quiet_transformers
from selfalign.system import atomic
from selfalign.training.device import CPU, Placement
from selfalign.training.settings import TrainingSettings

_NO_FUTURE_WARNINGS: Any = {"action": "ignore", "category": FutureWarning}
"""Hides transformers' warnings about renames, which concern PEFT and not the user."""


def load_base(folder: Path, where: Placement = CPU) -> Any:
    """Load the base model, frozen and in eval mode.

    Raises:
        UserError: torch cannot load it.
    """
    transformers = quiet_transformers()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, where.dtype), local_files_only=True, use_safetensors=True
        ).to(where.device)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"torch cannot load {folder}: {' '.join(str(error).split())[:200]}") from None
    model.requires_grad_(False)
    return model.eval()


def lora_config(config: TrainingSettings, **options: Any) -> Any:
    """Return PEFT's configuration of the recipe's LoRA settings."""
    import peft

    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
        task_type="CAUSAL_LM",
        **options,
    )


def with_new_adapter(base: Any, config: TrainingSettings, seed: int) -> Any:
    """Return the base with a new LoRA adapter: A is random, B is zero.

    Raises:
        UserError: the base lacks one of the layers that the settings name.
    """
    import peft

    linear = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    if missing := [name for name in config.targets if name not in linear]:
        known = ", ".join(sorted(linear - {"lm_head"}))
        raise UserError(f"engrave.targets: the base has no layer {missing[0]!r}; its linear layers are {known}")
    torch.manual_seed(seed)
    with warnings.catch_warnings(**_NO_FUTURE_WARNINGS):
        return peft.get_peft_model(base, lora_config(config))


def with_saved_adapter(base: Any, folder: Path, seed: int) -> Any:
    """Return the base with a saved LoRA adapter, to train it further."""
    import peft

    torch.manual_seed(seed)
    with warnings.catch_warnings(**_NO_FUTURE_WARNINGS):
        return peft.PeftModel.from_pretrained(base, str(folder), is_trainable=True, use_safetensors=True)


def add_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """Add a saved adapter, for inference, to a base model or to a model that already has adapters."""
    import peft

    with warnings.catch_warnings(**_NO_FUTURE_WARNINGS):
        if not isinstance(model, peft.PeftModel):
            options = {"adapter_name": name, "is_trainable": False, "use_safetensors": True}
            return peft.PeftModel.from_pretrained(model, str(folder), **options).eval()
        model.load_adapter(str(folder), name, is_trainable=False, use_safetensors=True)
        return model.eval()


def add_tensors(model: Any, tensors: Mapping[str, Any], config: TrainingSettings) -> None:
    """Add an adapter of these tensors, under PEFT's names, to a model that has adapters, and select it."""
    import peft

    name = "imported"
    with warnings.catch_warnings(**_NO_FUTURE_WARNINGS):
        model.add_adapter(name, lora_config(config, inference_mode=True))
        peft.set_peft_model_state_dict(model, dict(tensors), name)
    model.set_adapter(name)
    model.eval()


def save_adapter(model: Any, folder: Path, base: Model, card: str) -> None:
    """Publish the model's adapter in PEFT's format (safetensors), with a card and the files about its base."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base.repository or base.source  # not the path of this machine's cache
    with atomic.new_folder(folder) as building:
        # Embeddings are never trained; "auto" would query the hub about the base.
        model.save_pretrained(str(building), safe_serialization=True, save_embedding_layers=False)
        write_about(building, base, card)


def write_about(folder: Path, base: Model, card: str) -> None:
    """Write the files that accompany an adapter: its card, its base, and the base's licence notice."""
    (folder / "README.md").write_text(card, "utf-8")
    (folder / BASE_NOTE).write_text(base.base_json(), "utf-8")
    if base.notice:
        (folder / "NOTICE").write_text(base.notice + "\n", "utf-8")
