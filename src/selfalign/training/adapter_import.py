"""Import an adapter that was trained elsewhere: check that it fits the run, then publish it like one trained here.

`export/launch.py` writes the rows and a training script. The script leaves a folder with the adapter in PEFT's format,
`base.json` (its base model), `trained.json` (its rows and training settings) and `losses.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast, get_args

from pydantic import ValidationError

from selfalign.data.records import json_lines
from selfalign.errors import UserError
from selfalign.model.base_model import BASE_NOTE, Model
from selfalign.model.conversion import quiet_transformers
from selfalign.model.dialogue import Encoded
from selfalign.system import atomic
from selfalign.training.record import thin_curve
from selfalign.training.settings import TrainingSettings

WEIGHTS, CONFIG, RECORD, LOSSES = "adapter_model.safetensors", "adapter_config.json", "trained.json", "losses.jsonl"
_LORA_KEYS = ("rank", "alpha", "dropout", "targets")
_SCALING_KEYS = ("use_rslora", "alpha_pattern")
"""PEFT settings that change the effect of the same tensors; llama.cpp supports none of them."""
_NOTE_KEYS = ("strategy", "processes", "quantize", "batch_size", "epochs", "learning_rate", "training_tokens", "steps")
"""Entries of `trained.json` that the ledger records."""
_MAX_NUMBER = 1e12


@dataclass(frozen=True, slots=True)
class ImportedAdapter:
    """An adapter that passed all checks."""

    tensors: Mapping[str, Any]
    """PEFT's names -> float32 tensors."""
    lora: TrainingSettings
    """The recipe's settings with the adapter's own rank, alpha, dropout and targets."""
    notes: dict[str, object]
    """Entries for the ledger."""


def verb_of(stage: str) -> str:
    """Return the command of stage 3 or 4: `selfalign engrave` or `selfalign clone`."""
    return "clone" if stage == "verbose_cloning" else stage


def next_steps(run: Path, stage: str) -> str:
    """Return instructions for the user who trains elsewhere (`engrave.elsewhere`), once the examples are written."""
    return (
        f"{stage}: the examples are written, and engrave.elsewhere leaves the training to you: `selfalign export {run} "
        f"launch --stage {stage} --out DIR`, train there, then `selfalign {verb_of(stage)} {run} --adapter "
        "DIR/out/adapter` and this command again"
    )


def rows_text(rows: Sequence[Encoded]) -> str:
    """Return the rows as JSON lines with `input_ids` and `completion_mask` (1 for tokens that count in the loss)."""
    lines = (json.dumps({"input_ids": row.ids, "completion_mask": [int(m) for m in row.mask]}) for row in rows)
    return "".join(f"{text}\n" for text in lines)


def rows_hash(rows: Sequence[Encoded]) -> str:
    """Return the SHA-256 of `rows_text`."""
    return hashlib.sha256(rows_text(rows).encode("utf-8")).hexdigest()


def read_adapter(
    folder: Path,
    stage: str,
    model: Model,
    rows: Sequence[Encoded],
    config: TrainingSettings,
    say: Callable[[str], None],
) -> ImportedAdapter:
    """Read an adapter and check that it was trained on this base, for this stage and on these rows.

    Args:
        config: the recipe's settings; a different rank, alpha, dropout or targets is reported and accepted.
        say: receives a message about each difference, and about each check that is not possible.

    Raises:
        UserError: a file is missing or malformed, or the adapter does not fit.
    """
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {WEIGHTS} and {CONFIG}: give the folder that PEFT saved (safetensors only)")
    if not (folder / BASE_NOTE).is_file():
        say(f"  {folder} has no {BASE_NOTE}: cannot check that the adapter was trained on this base")
    model.check_adapter(folder)
    record = _check_record(folder, stage, rows, say)
    lora = _read_lora_settings(folder, config)
    tensors = _read_tensors(folder, model.folder(), lora)
    for key in _LORA_KEYS:
        if (actual := getattr(lora, key)) != (expected := getattr(config, key)):
            say(f"  {key}: the adapter has {actual}, the recipe says {expected}")
    notes: dict[str, object] = {"trained": "elsewhere", **{key: getattr(lora, key) for key in _LORA_KEYS}}
    notes |= {k: v for k in _NOTE_KEYS if _is_plain(v := record.get(k))}
    return ImportedAdapter(tensors, lora, {**notes, **_read_curve(folder)})


def publish(adapter: ImportedAdapter, target: Path, model: Model, card: str) -> None:
    """Publish the adapter in PEFT's format. No file is copied from its folder, so nothing unchecked is published."""
    from safetensors.torch import save_file

    from selfalign.training.lora import lora_config, write_about

    with atomic.new_folder(target) as building:
        save_file(dict(adapter.tensors), str(building / WEIGHTS), metadata={"format": "pt"})
        config = lora_config(adapter.lora, base_model_name_or_path=model.source, inference_mode=True)
        config.save_pretrained(str(building))
        write_about(building, model, card)


def _read_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if there is no file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: copy it again from the training script's output")
    return value


def _check_record(folder: Path, stage: str, rows: Sequence[Encoded], say: Callable[[str], None]) -> dict[str, Any]:
    """Return `trained.json`, after checking its stage and rows; an empty object if there is no file."""
    record = _read_object(folder / RECORD)
    if record is None:
        say(f"  {folder} has no {RECORD}: cannot check that the adapter was trained on this run's examples")
        return {}
    if record.get("stage") != stage:
        raise UserError(f"{folder} was trained for the stage {str(record.get('stage'))[:40]!r}, not {stage!r}")
    if record.get("rows_sha256") != rows_hash(rows):
        raise UserError(
            f"{folder} was trained on other rows than the {len(rows):,} of this run's stage {stage!r}: export and "
            f"train again, or delete {RECORD} there to skip this check"
        )
    return record


def _read_lora_settings(folder: Path, config: TrainingSettings) -> TrainingSettings:
    """Return the recipe's settings with rank, alpha, dropout and targets of the adapter's configuration."""
    path = folder / CONFIG
    saved = _read_object(path) or {}
    if saved.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {str(saved.get('peft_type'))[:40]!r}; only LORA is supported")
    if unsupported := next((key for key in _SCALING_KEYS if saved.get(key)), None):
        raise UserError(f"{path}: {unsupported} is set, which llama.cpp's adapters do not support: train without it")
    targets = saved.get("target_modules")
    known = list(get_args(get_args(TrainingSettings.model_fields["targets"].annotation)[0]))
    if not isinstance(targets, list) or not all(t in known for t in targets):
        raise UserError(f"{path}: target_modules must be a list of {', '.join(known)}")
    values = {"rank": saved.get("r"), "alpha": saved.get("lora_alpha"), "dropout": saved.get("lora_dropout", 0.0)}
    if isinstance(values["alpha"], float) and values["alpha"].is_integer():
        values["alpha"] = int(values["alpha"])
    # PEFT stores targets as a set: use the recipe's order if they are the same.
    values["targets"] = config.targets if set(targets) == set(config.targets) else sorted(targets, key=known.index)
    try:
        return TrainingSettings.model_validate({**config.model_dump(), **values})
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{path}: {key} is {str(values.get(key))[:40]}, which is not valid") from None


def _read_tensors(folder: Path, base: Path, lora: TrainingSettings) -> dict[str, Any]:
    """Return the weights in float32, after checking their names, shapes and values against the base's layers."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({' '.join(str(error).split())[:120]})") from None
    shapes = _expected_shapes(base, lora)
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise UserError(
            f"{path} lacks {missing[0]} and {len(missing) - 1} more tensors: it was not trained on this base"
        )
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise UserError(
            f"{path} has {unknown[0]!r:.120} and {len(unknown) - 1} more tensors that a LoRA adapter of this base "
            "with these targets does not have"
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(f"{path}: {name} has the shape {tuple(tensor.shape)}, this base needs {shapes[name]}")
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {name} holds values that are infinite or NaN: the training failed")
    if not any(bool(tensor.any()) for name, tensor in tensors.items() if ".lora_B." in name):
        raise UserError(f"{path}: all lora_B are zero: the adapter was not trained")
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def _expected_shapes(base: Path, lora: TrainingSettings) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of each tensor of a LoRA adapter of the model in `base`, without loading its weights."""
    import peft
    import torch

    from selfalign.training.lora import with_new_adapter

    transformers = quiet_transformers()
    config = transformers.AutoConfig.from_pretrained(str(base), local_files_only=True)
    with torch.device("meta"):
        adapted = with_new_adapter(transformers.AutoModelForCausalLM.from_config(config), lora, 0)
    state = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _read_curve(folder: Path) -> dict[str, object]:
    """Return ledger notes about the loss of each step; none if there is no `losses.jsonl`."""
    path = folder / LOSSES
    if not path.is_file():
        return {}
    curve: list[tuple[int, float, float]] = []
    for number, entry in json_lines(path):
        step, loss, rate = (entry.get(key) for key in ("step", "loss", "learning_rate"))
        if type(step) is not int or not _is_finite(loss) or not _is_finite(rate):
            raise UserError(f"{path}:{number}: step, loss and learning_rate must be numbers")
        curve.append((step, round(float(loss), 5), float(rate)))
    if not curve:
        return {}
    return {"loss_first": round(curve[0][1], 4), "loss_last": round(curve[-1][1], 4), "curve": thin_curve(curve)}


def _is_finite(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and -_MAX_NUMBER < cast(float, value) < _MAX_NUMBER


def _is_plain(value: object) -> bool:
    return _is_finite(value) or (isinstance(value, str) and len(value) <= 40)
