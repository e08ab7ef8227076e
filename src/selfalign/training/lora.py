"""The base model in torch and its adapters: load, add, save."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from selfalign.errors import UserError
from selfalign.model.base_model import BASE_NOTE, Model
from selfalign.model.conversion import quiet_transformers
from selfalign.system import atomic
from selfalign.training.device import CPU, Placement
from selfalign.training.settings import TrainingSettings


def load_base(folder: Path, where: Placement = CPU) -> Any:
    """The base model, frozen.

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


def with_new_adapter(base: Any, config: TrainingSettings, seed: int) -> Any:
    """The base with a fresh LoRA adapter (r, alpha, dropout and targets of the recipe)."""
    import peft

    torch.manual_seed(seed)
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with _no_future_warnings():
        return peft.get_peft_model(base, lora)


@contextlib.contextmanager
def _no_future_warnings() -> Iterator[None]:
    """transformers announces renames that peft has to follow; a user cannot act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def add_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """The model, a base or one with adapters already, with a saved adapter more; for scoring."""
    import peft

    with _no_future_warnings():
        if not isinstance(model, peft.PeftModel):
            settings = {"adapter_name": name, "is_trainable": False, "use_safetensors": True}
            return peft.PeftModel.from_pretrained(model, str(folder), **settings).eval()
        model.load_adapter(str(folder), name, is_trainable=False, use_safetensors=True)
        return model.eval()


def save_adapter(model: Any, folder: Path, base: Model, card: str) -> None:
    """Publish the adapter in PEFT's format (safetensors), with the base's name, identity, licence notice and a card."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base.source  # not the path of this machine's cache
    with atomic.new_folder(folder) as building:
        # Embeddings are never trained; "auto" would ask the hub about the base.
        model.save_pretrained(str(building), safe_serialization=True, save_embedding_layers=False)
        (building / "README.md").write_text(card, "utf-8")
        (building / BASE_NOTE).write_text(base.base_json(), "utf-8")
        if base.notice:
            (building / "NOTICE").write_text(base.notice + "\n", "utf-8")
