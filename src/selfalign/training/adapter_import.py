"""Training that happens elsewhere: the rows that leave, and the adapter that comes back, looked at before it is taken.

`export/launch.py` writes the rows and a script; the script leaves a folder with the adapter (PEFT, safetensors),
`base.json` (which base it is for), `trained.json` (which rows it was trained on, and how it went) and `losses.jsonl`.
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

WEIGHTS, CONFIG, RECORD, LOSSES = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "trained.json",
    "losses.jsonl",
)
_LORA = ("rank", "alpha", "dropout", "targets")
_SCALED = ("use_rslora", "alpha_pattern")
"""Settings of PEFT that change what the same tensors compute; llama.cpp has none of them."""
_KEPT = ("strategy", "processes", "quantize", "batch_size", "epochs", "learning_rate", "training_tokens", "steps")
"""Of `trained.json`, for the ledger."""
_HUGE = 1e12


def rows_text(rows: Sequence[Encoded]) -> str:
    """The rows as a file: one JSON object a line, `input_ids` and `completion_mask` (1 where the loss counts)."""
    lines = (json.dumps({"input_ids": row.ids, "completion_mask": [int(m) for m in row.mask]}) for row in rows)
    return "".join(f"{text}\n" for text in lines)


def rows_hash(rows: Sequence[Encoded]) -> str:
    """SHA-256 of that file."""
    return hashlib.sha256(rows_text(rows).encode("utf-8")).hexdigest()


def next_steps(run: Path, stage: str) -> str:
    """What a user does where the recipe says that training happens elsewhere."""
    return (
        f"{stage}: the examples are written, and engrave.elsewhere leaves the training to you: `selfalign export {run} "
        f"launch --stage {stage} --out DIR`, train there, then `selfalign {stage} {run} --adapter DIR/out/adapter` and "
        "this command again"
    )


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that was looked at and fits."""

    tensors: Mapping[str, Any]
    """PEFT's names -> float32 tensors."""
    lora: TrainingSettings
    """The recipe's settings with the adapter's own rank, alpha, dropout and targets."""
    notes: dict[str, object]
    """For the ledger."""


def read_adapter(
    folder: Path,
    stage: str,
    model: Model,
    rows: Sequence[Encoded],
    config: TrainingSettings,
    say: Callable[[str], None],
) -> Adapter:
    """The adapter in that folder, if it is one for this base, this stage and these rows.

    Args:
        config: what the recipe says; the adapter may differ, which is said.
        say: gets a line about what is doubtful.

    Raises:
        UserError: a file is missing or not what it should be, or the adapter is for something else.
    """
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {WEIGHTS} and {CONFIG}: give the folder that PEFT saved (safetensors only)")
    _check_base(folder, model, say)
    record = _check_record(folder, stage, rows, say)
    lora = _lora(folder, config)
    tensors = _tensors(folder, model.folder(), lora)
    for key in _LORA:
        if (own := getattr(lora, key)) != (wanted := getattr(config, key)):
            say(f"  {key}: the adapter has {own}, the recipe says {wanted}")
    notes: dict[str, object] = {"trained": "elsewhere", **{key: getattr(lora, key) for key in _LORA}}
    notes |= {k: v for k in _KEPT if _plain(v := record.get(k))}
    return Adapter(tensors, lora, {**notes, **_curve(folder)})


def _object(path: Path) -> dict[str, Any] | None:
    """A JSON file's object; None where there is no file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: it is not what training wrote")
    return value


def _check_base(folder: Path, model: Model, say: Callable[[str], None]) -> None:
    if not (folder / BASE_NOTE).is_file():
        say(f"  {folder} has no {BASE_NOTE}: that it was trained on this base is not known")
    model.check_adapter(folder)


def _check_record(folder: Path, stage: str, rows: Sequence[Encoded], say: Callable[[str], None]) -> dict[str, Any]:
    """What training wrote down, if it did."""
    found = _object(folder / RECORD)
    if found is None:
        say(f"  {folder} has no {RECORD}: that it was trained on this run's examples is not known")
        return {}
    if found.get("stage") != stage:
        raise UserError(f"{folder} was trained for the stage {str(found.get('stage'))[:40]!r}, not {stage!r}")
    if found.get("rows_sha256") != rows_hash(rows):
        raise UserError(
            f"{folder} was trained on other rows than the {len(rows):,} of this run's stage {stage!r}: export and "
            f"train again, or delete {RECORD} there to take it even so"
        )
    return found


def _lora(folder: Path, config: TrainingSettings) -> TrainingSettings:
    """The adapter's own settings."""
    found = _object(folder / CONFIG) or {}
    if found.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG}: peft_type is {str(found.get('peft_type'))[:40]!r}; only LORA can be taken")
    if wrong := next((key for key in _SCALED if found.get(key)), None):
        raise UserError(f"{folder / CONFIG}: {wrong} is set, which llama.cpp's adapters do not have: train without it")
    targets = found.get("target_modules")
    known = get_args(TrainingSettings.model_fields["targets"].annotation)[0]
    order = list(get_args(known))
    own = {"rank": found.get("r"), "alpha": found.get("lora_alpha"), "dropout": found.get("lora_dropout", 0.0)}
    if not isinstance(targets, list) or not all(t in order for t in targets):
        raise UserError(f"{folder / CONFIG}: target_modules must be a list of {', '.join(order)}")
    if isinstance(own["alpha"], float) and own["alpha"].is_integer():
        own["alpha"] = int(own["alpha"])
    # In the recipe's order where they are the same: PEFT keeps them as a set.
    own["targets"] = config.targets if set(targets) == set(config.targets) else sorted(targets, key=order.index)
    try:
        return TrainingSettings.model_validate({**config.model_dump(), **own})
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{folder / CONFIG}: {place} is {str(own.get(place))[:40]}, which is not possible") from None


def _tensors(folder: Path, base: Path, lora: TrainingSettings) -> dict[str, Any]:
    """The weights in float32, checked against what this base's layers need."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        found = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({' '.join(str(error).split())[:120]})") from None
    wanted = shapes(base, lora)
    if missing := sorted(wanted.keys() - found.keys()):
        raise UserError(f"{path} lacks {missing[0]} and {len(missing) - 1} more tensors: it is not for this base")
    if more := sorted(found.keys() - wanted.keys()):
        raise UserError(
            f"{path} has {more[0]!r:.120} and {len(more) - 1} more tensors that a LoRA adapter of this base with "
            "these targets does not have"
        )
    for name, tensor in found.items():
        if tuple(tensor.shape) != wanted[name]:
            raise UserError(f"{path}: {name} has the shape {tuple(tensor.shape)}, this base needs {wanted[name]}")
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {name} holds values that are no finite numbers: the training went wrong")
    if not any(bool(tensor.any()) for name, tensor in found.items() if ".lora_B." in name):
        raise UserError(f"{path}: all lora_B are zero, so the adapter changes nothing: it was not trained")
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def shapes(base: Path, lora: TrainingSettings) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a LoRA adapter of the model in the folder `base`; no weights are loaded."""
    import peft
    import torch

    from selfalign.training.lora import with_new_adapter

    transformers = quiet_transformers()
    config = transformers.AutoConfig.from_pretrained(str(base), local_files_only=True)
    with torch.device("meta"):
        adapted = with_new_adapter(transformers.AutoModelForCausalLM.from_config(config), lora, 0)
    state = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _curve(folder: Path) -> dict[str, object]:
    """The loss of the training's steps, where it was kept."""
    if not (folder / LOSSES).is_file():
        return {}
    found: list[tuple[int, float, float]] = []
    for number, value in json_lines(folder / LOSSES):
        step, loss, rate = (value.get(key) for key in ("step", "loss", "learning_rate"))
        if type(step) is not int or not _finite(loss) or not _finite(rate):
            raise UserError(f"{folder / LOSSES}:{number}: step, loss and learning_rate must be numbers")
        found.append((step, round(float(loss), 5), float(rate)))
    if not found:
        return {}
    return {"loss_first": round(found[0][1], 4), "loss_last": round(found[-1][1], 4), "curve": thin_curve(found)}


def _finite(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and -_HUGE < cast(float, value) < _HUGE


def _plain(value: object) -> bool:
    return _finite(value) or (isinstance(value, str) and len(value) <= 40)


def publish(adapter: Adapter, target: Path, model: Model, card: str) -> None:
    """Publish the adapter in PEFT's format, as one that was trained here: nothing else of its folder is taken."""
    from safetensors.torch import save_file

    with atomic.new_folder(target) as building:
        save_file(dict(adapter.tensors), str(building / WEIGHTS), metadata={"format": "pt"})
        _config(adapter.lora, model.source).save_pretrained(str(building))
        (building / BASE_NOTE).write_text(model.base_json(), "utf-8")
        (building / "README.md").write_text(card, "utf-8")
        if model.notice:
            (building / "NOTICE").write_text(model.notice + "\n", "utf-8")


def _config(lora: TrainingSettings, base: str) -> Any:
    """PEFT's configuration, as a training here writes it."""
    import peft

    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
