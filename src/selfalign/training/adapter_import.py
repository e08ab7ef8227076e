"""Import an adapter that was trained elsewhere: check that it fits the run, then publish it like one trained here.

`export/launch.py` writes the rows and a training script. The script leaves a folder with the adapter in PEFT's format,
`base.json` (its base model), `trained.json` (its rows and training settings) and `losses.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast, get_args

from pydantic import ValidationError

from selfalign.data.records import json_lines
from selfalign.errors import UserError
from selfalign.model import plain_lora
from selfalign.model.base_model import BASE_NOTE, Model
from selfalign.model.conversion import quiet_transformers
from selfalign.model.dialogue import Encoded
from selfalign.system import atomic
from selfalign.training.record import thin_curve
from selfalign.training.settings import TrainingSettings

WEIGHTS, RECORD, LOSSES = "adapter_model.safetensors", "trained.json", "losses.jsonl"
_LORA_KEYS = ("rank", "alpha", "dropout", "targets")
_TARGETS = get_args(get_args(TrainingSettings.model_fields["targets"].annotation)[0])
_NOTE_KEYS = ("strategy", "processes", "quantize", "batch_size", "epochs", "learning_rate", "training_tokens", "steps")
"""Entries of `trained.json` that the ledger records."""
_MAX_NUMBER = 1e12


@dataclass(frozen=True, slots=True)
class ImportedAdapter:
    """An adapter that passed all checks."""

    tensors: Mapping[str, Any]
    """PEFT's names -> float32 tensors."""
    lora: TrainingSettings
    """The recipe's settings with the rank, alpha, dropout and targets that the adapter is published with."""
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
    if not (folder / WEIGHTS).is_file() or not (folder / plain_lora.CONFIG).is_file():
        raise UserError(
            f"{folder} has no {WEIGHTS} and {plain_lora.CONFIG}: give the folder that PEFT saved (safetensors only)"
        )
    if not (folder / BASE_NOTE).is_file():
        say(f"  {folder} has no {BASE_NOTE}: cannot check that the adapter was trained on this base")
    model.check_adapter(folder)
    record = _check_record(folder, stage, rows, say)
    layers = _peft_layers(folder, model.folder())
    tensors = _read_tensors(folder / WEIGHTS, layers)
    lora = _uniform_settings(folder, layers, config)
    if changed := _convert(tensors, layers, lora, model.folder()):
        say(f"  {changed} tensors are rescaled or padded, so that one rank and alpha hold for all layers")
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
        config = lora_config(
            adapter.lora, base_model_name_or_path=model.repository or model.source, inference_mode=True
        )
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


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of the base that the adapter changes, as PEFT reads the adapter's settings."""

    rank: int
    scale: float
    shapes: dict[str, tuple[int, ...]]
    """The name of each tensor -> its shape."""


def _peft_layers(folder: Path, base: Path) -> dict[str, _Layer]:
    """Return the layers that the adapter changes, from a model of PEFT without weights."""
    import peft

    terms = plain_lora.terms(folder)
    try:
        with warnings.catch_warnings(action="ignore"):
            options = terms.model_dump(exclude_none=True)
            config = peft.LoraConfig(**options, task_type="CAUSAL_LM", bias="none")
            adapted = peft.get_peft_model(_empty_model(base), config)
    except (ValueError, TypeError, KeyError, AttributeError, re.error) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder / plain_lora.CONFIG}: PEFT cannot apply it to this base ({reason})") from None
    layers = {}
    for name, module in adapted.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            if name.rpartition(".")[2] not in _TARGETS:
                path = folder / plain_lora.CONFIG
                raise UserError(f"{path}: target_modules selects {name!r}; only {', '.join(_TARGETS)} are supported")
            shapes = {f"{name}.lora_{x}.weight": tuple(getattr(module, f"lora_{x}").default.weight.shape) for x in "AB"}
            layers[name] = _Layer(module.r["default"], float(module.scaling["default"]), shapes)
    return layers


def _empty_model(base: Path) -> Any:
    """Return the model in `base` without weights."""
    import torch

    transformers = quiet_transformers()
    config = transformers.AutoConfig.from_pretrained(str(base), local_files_only=True)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def _uniform_settings(folder: Path, layers: Mapping[str, _Layer], config: TrainingSettings) -> TrainingSettings:
    """Return the recipe's settings with one rank, alpha, dropout and targets for all of the adapter's layers."""
    path, largest = folder / plain_lora.CONFIG, max(layers.values(), key=lambda layer: layer.rank)
    selected = {name.rpartition(".")[2] for name in layers}
    values = {
        "rank": largest.rank,
        "alpha": max(1, round(largest.scale * largest.rank)),
        "dropout": plain_lora.read(folder).get("lora_dropout", 0.0),
        # PEFT stores targets as a set: use the recipe's order if they are the same.
        "targets": config.targets if selected == set(config.targets) else sorted(selected, key=_TARGETS.index),
    }
    try:
        return TrainingSettings.model_validate({**config.model_dump(), **values})
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{path}: {key} is {str(values.get(key))[:40]}, which is not valid") from None


def _read_tensors(path: Path, layers: Mapping[str, _Layer]) -> dict[str, Any]:
    """Return the weights in float32, after checking their names, shapes and values against the layers."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({' '.join(str(error).split())[:120]})") from None
    shapes = {name: shape for layer in layers.values() for name, shape in layer.shapes.items()}
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


def _convert(tensors: dict[str, Any], layers: Mapping[str, _Layer], lora: TrainingSettings, base: Path) -> int:
    """Give all layers the rank and scale of `lora`, in place; return the number of tensors that changed.

    Zeros fill up a lower rank and the layers of a target that the adapter does not change. They stay zero if the
    adapter is trained further.
    """
    import peft
    import torch

    from selfalign.training.lora import with_new_adapter

    state = peft.get_peft_model_state_dict(with_new_adapter(_empty_model(base), lora, 0), save_embedding_layers=False)
    changed = 0
    for name, expected in state.items():
        layer = layers.get(name.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight"))
        scale = layer.scale * lora.rank / lora.alpha if layer and ".lora_B." in name else 1.0
        old = tensors.get(name)
        if old is not None and old.shape == expected.shape and math.isclose(scale, 1.0, rel_tol=1e-9):
            continue
        new = tensors[name] = torch.zeros(expected.shape)
        if old is not None:
            new[tuple(slice(size) for size in old.shape)] = old * scale
        changed += 1
    return changed


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
