"""Write a folder that trains a stage on many GPUs with TRL and accelerate, with the run's rows and settings.

The rows are encoded here with the run's template, so the folder trains on exactly the tokens and the loss mask of
`training/`. `train.py` is copied unchanged from `assets/launch/`. The folder contains no path or name of this machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

from selfalign.errors import UserError
from selfalign.model import sources
from selfalign.pipeline import adapter_training
from selfalign.run.context import ADAPTER_STAGES, Context
from selfalign.system import atomic
from selfalign.training import adapter_import, preflight

STRATEGIES, QUANTIZATIONS = ("ddp", "fsdp", "deepspeed"), ("none", "4bit")
_MAX_PER_DEVICE = 8
"""Maximum rows that one process computes at a time."""
_CHECKPOINTS = 10
"""Checkpoints in a training."""
_EXTRA = {"4bit": "bitsandbytes>=0.46", "deepspeed": "deepspeed>=0.17"}
_FILES = (
    "train.py", "requirements.txt", "launch.sh", "train.slurm", "generate.slurm", "README.md", "accelerate.yaml",
)  # fmt: skip
_SETTINGS = (
    "rank", "alpha", "dropout", "targets", "learning_rate", "schedule", "warmup_steps", "max_grad_norm", "epochs",
    "max_length",
)  # fmt: skip
"""Settings of the recipe that train.py reads."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """The options of a launch folder.

    Raises:
        UserError: an option has an invalid value.
    """

    stage: str
    gpus: int
    """Processes on each node."""
    nodes: int
    strategy: str
    quantize: str

    def __post_init__(self) -> None:
        allowed = {"stage": ADAPTER_STAGES, "strategy": STRATEGIES, "quantize": QUANTIZATIONS}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UserError(f"--{name} {getattr(self, name)!r} is unknown; use one of {', '.join(values)}")


@dataclass(frozen=True, slots=True)
class Batch:
    """The division of an optimiser step's rows among the processes."""

    recipe_size: int
    """Rows per step in the recipe."""
    size: int
    """Rows per step in the folder: the recipe's, rounded up to a multiple of the processes."""
    per_device: int
    """Rows that each process computes at a time."""
    accumulation: int
    """Gradient accumulation steps."""
    processes: int

    def text(self) -> str:
        """Return the division in one sentence."""
        product = (
            f"{self.per_device} rows x {self.processes} processes x {self.accumulation} accumulation steps = "
            f"{self.size} rows per optimiser step"
        )
        if self.size == self.recipe_size:
            return f"{product}, the recipe's batch size."
        return (
            f"{product}: the recipe's batch size of {self.recipe_size} is rounded up to a multiple of the "
            f"{self.processes} processes. So there are fewer steps; the learning rate does not change."
        )


def divide(rows: int, processes: int) -> Batch:
    """Divide the recipe's batch among the processes."""
    each = -(-rows // processes)
    per_device = max(n for n in range(1, min(each, _MAX_PER_DEVICE) + 1) if each % n == 0)
    return Batch(rows, each * processes, per_device, each // per_device, processes)


def write(context: Context, out: Path, options: LaunchOptions) -> list[str]:
    """Write the folder `out` and return messages for the user.

    Raises:
        UserError: the stage has no examples yet, its examples fail the checks before training, or `out` exists.
    """
    context.model.check_weights("there is nothing to train")
    if out.exists():
        raise UserError(f"{out} exists: choose another --out")
    rows = _rows(context, options.stage)
    config, model = context.recipe.training(options.stage), context.model
    batch = divide(config.batch_size, options.gpus * options.nodes)
    # A hub id is valid on other machines; a path is not.
    hub_id = model.repository or None
    steps = -(-len(rows) // batch.size) * config.epochs
    recipe = config.model_dump(mode="json")
    training: dict[str, Any] = {
        "stage": options.stage,
        "base": hub_id,
        "identity": model.identity,
        "base_weights": sources.identity_of(sorted(model.folder().glob("*.safetensors"))),
        **{key: recipe[key] for key in _SETTINGS},
        "batch_size": batch.size,
        "per_device_batch_size": batch.per_device,
        "seed": context.recipe.seed,
        "strategy": options.strategy,
        "quantize": options.quantize,
        "gradient_checkpointing": True,
        "save_steps": max(1, steps // _CHECKPOINTS),
    }
    with atomic.new_folder(out) as folder:
        (folder / "rows.jsonl").write_text(adapter_import.rows_text(rows), "utf-8")
        (folder / "training.json").write_text(json.dumps(training, indent=1, ensure_ascii=False) + "\n", "utf-8")
        for name in _FILES:
            (folder / name).write_text(fill_in(name, options, batch, len(rows), hub_id), "utf-8")
        if model.notice:
            (folder / "NOTICE").write_text(model.notice + "\n", "utf-8")
    about = f"{options.strategy}, quantization: {options.quantize}"
    messages = [f"{out}: {len(rows):,} rows, {steps:,} steps, {about}", batch.text()]
    if hub_id is None:
        messages.append(f"copy the base model {model.folder()} to {out.name}/base before training")
    return [*messages, "GPUs, FSDP, DeepSpeed and 4-bit weights are not tested; see README.md in the folder"]


def _rows(context: Context, stage: str) -> list[Any]:
    """Return the encoded rows of the stage, after the same checks as a training in the run."""
    if context.recipe.training(stage).validation:
        raise UserError("a launch folder cannot measure a validation loss: set engrave.validation to 0")
    if context.recipe.training(stage).method == "on_policy":
        raise UserError(
            "a launch folder supports sft only, and engrave.method is on_policy, which generates during training: set "
            "engrave.method to sft"
        )
    if context.recipe.training(stage).method == "dpo":
        raise UserError(
            "a launch folder supports sft only, and engrave.method is dpo: train on the pairs of "
            f"`selfalign export {context.run.path} dataset --format preference`, or set engrave.method to sft"
        )
    if stage == "verbose_cloning" and context.recipe.verbose_cloning.start == "engraved":
        raise UserError(
            f"{context.run.path}: the recipe continues the engraved adapter (verbose_cloning.start), and a launch "
            "folder trains a new one: set verbose_cloning.start to base"
        )
    rows = adapter_training.rows(context, cast(Literal["engrave", "verbose_cloning"], stage))
    if not rows:
        raise UserError("no training rows: every response was dropped; see `selfalign status`")
    model, label = context.model, context.run.constitution.assistant.name
    report = preflight.inspect_rows(rows, model.tokenizer(), model.template, label)
    if report.errors and context.recipe.engrave.preflight == "refuse":
        raise UserError(f"training is refused, {report.errors[0].rule}: {report.errors[0].message} (docs/training.md)")
    return rows


def fill_in(name: str, options: LaunchOptions, batch: Batch, rows: int, hub_id: str | None) -> str:
    """Return a file of `assets/launch` with its @NAMES@ filled in."""
    name = f"accelerate-{options.strategy}.yaml" if name == "accelerate.yaml" else name
    text = (resources.files("selfalign") / "assets/launch" / name).read_text("utf-8")
    if name == "train.py":
        return text
    base = (
        f"The base model is `{hub_id}` (from the hub; `--base` takes a folder)."
        if hub_id
        else "Copy the base model's folder (config, tokenizer, safetensors) to `base` here, or pass it as `--base`."
    )
    values = {
        "STAGE": options.stage,
        "GPUS": str(options.gpus),
        "NODES": str(options.nodes),
        "PROCESSES": str(options.gpus * options.nodes),
        "STRATEGY": options.strategy,
        "ROWS": f"{rows:,}",
        "BATCH": batch.text(),
        "BASE": base,
        "EXTRA": "\n".join(_EXTRA[key] for key in (options.quantize, options.strategy) if key in _EXTRA),
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
