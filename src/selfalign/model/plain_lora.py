"""Read the settings of a LoRA adapter in PEFT's format, and refuse by name those that are no plain LoRA.

A plain LoRA adds scale * B @ A to the weights of linear layers and changes nothing else. `LoraTerms` has the settings
that determine these terms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfalign.errors import UserError

CONFIG = "adapter_config.json"

_Rank = Annotated[int, Field(ge=1)]
_Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Names = list[str] | str | None


class LoraTerms(BaseModel):
    """The fields of PEFT's `LoraConfig` that determine where the terms are added, and their rank and scale."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    r: _Rank
    lora_alpha: _Alpha
    target_modules: Annotated[list[str], Field(min_length=1)] | Annotated[str, Field(min_length=1)]
    exclude_modules: _Names = None
    use_rslora: bool = False
    """scale = alpha / sqrt(rank) instead of alpha / rank."""
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: _Names = None


TERMS = frozenset(LoraTerms.model_fields)
NO_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config",
})  # fmt: skip
"""Fields without an effect on the outputs of a trained plain LoRA."""
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none",),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal"),
    "alora_invocation_tokens": (None,),
}
"""Field -> its values in a plain LoRA."""
UNSET = frozenset({
    "arrow_config", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "kasa_config",
    "layer_replication", "loftq_config", "lora_bias", "lora_ga_config", "megatron_config", "modules_to_save",
    "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
    "velora_config",
})  # fmt: skip
"""Fields that a plain LoRA does not set; so is every field that is not known here."""
SCALES = ("use_rslora", "rank_pattern", "alpha_pattern")
"""Fields that give layers another scale than alpha / rank, or different ranks."""

_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations after which the adapter belongs to other weights than those of the base."""


def read(folder: Path) -> dict[str, Any]:
    """Return the settings of the adapter in `folder`.

    Raises:
        UserError: they cannot be read, or are not those of a plain LoRA.
    """
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG}: give the folder that PEFT saved") from None
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not a JSON object: copy it again from the training script's output")
    if reason := reason_to_refuse(settings):
        raise UserError(f"{path}: {reason}")
    return settings


def terms(folder: Path) -> LoraTerms:
    """Return the settings that determine what the adapter adds. Raises as `read`, or if a value is not valid."""
    settings = read(folder)
    try:
        return LoraTerms.model_validate(settings)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise UserError(f"{folder / CONFIG}: {key} is {_shown(settings.get(key))}, which is not valid") from None


def uniform(folder: Path) -> tuple[float, int]:
    """Return (alpha, rank) of an adapter that adds alpha / rank * B @ A to each layer.

    Raises:
        UserError: its layers have different ranks or scales, or as `terms`.
    """
    values = terms(folder)
    if field := next((key for key in SCALES if getattr(values, key)), None):
        raise UserError(
            f"{folder / CONFIG}: {field} is set, but only one rank and alpha for all layers can be used here; "
            "`selfalign engrave RUN --adapter` publishes the same adapter in that form"
        )
    return values.lora_alpha, values.r


def reason_to_refuse(settings: Mapping[str, Any]) -> str:
    """Return why an adapter with these settings is no plain LoRA; empty if it is one."""
    for field, value in settings.items():
        if field in PLAIN:
            is_plain = any(type(value) is type(plain) and value == plain for plain in PLAIN[field])
        else:
            is_plain = field in TERMS or field in NO_EFFECT or not value
        if not is_plain:
            return f"{field} is {_shown(value)}{_advice(field, value)}"
    return "" if "peft_type" in settings else "peft_type is missing; only LORA is supported"


def _advice(field: str, value: Any) -> str:
    if field == "peft_type":
        return "; only LORA is supported"
    if field == "init_lora_weights" and str(value).lower().startswith(_CHANGED_BASE):
        return (
            ", which changes the base's weights; convert the adapter to a plain LoRA by save_pretrained with PEFT's "
            "path_initial_model_for_weight_conversion, or train with true"
        )
    known = field in PLAIN or field in UNSET
    return f", {'which' if known else 'an unknown setting that'} is no plain LoRA; train without it"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
