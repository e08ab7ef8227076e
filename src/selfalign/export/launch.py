"""A stage's training as a folder for many GPUs: the same rows and settings, through TRL and accelerate.

The rows are encoded here, by the run's own template, so that exactly the tokens and the mask of `training/` are trained
on. `train.py` is copied as it stands in `assets/launch/`; no path and no name of this machine goes into the folder.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from selfalign.errors import UserError
from selfalign.model import sources
from selfalign.pipeline import adapter_training
from selfalign.run.context import ADAPTER_STAGES, Context
from selfalign.system import atomic
from selfalign.training import adapter_import, preflight

STRATEGIES, QUANTIZATIONS = ("ddp", "fsdp", "deepspeed"), ("none", "4bit")
_AT_ONCE = 8
"""Rows that one process computes at once, at most."""
_CHECKPOINTS = 10
"""Of a whole training."""
VERSIONS = {
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "peft": "0.21.2",
    "safetensors": "0.8.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
}
"""What the tests run the folder with."""
_EXTRA = {"4bit": "bitsandbytes>=0.46", "deepspeed": "deepspeed>=0.17"}
_SETTINGS = (
    "rank",
    "alpha",
    "dropout",
    "targets",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "max_grad_norm",
    "epochs",
    "max_length",
)
"""Of the recipe, as train.py reads them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the folder is for.

    Raises:
        UserError: one of them is not known.
    """

    stage: str
    gpus: int
    """Processes on each node."""
    nodes: int
    strategy: str
    quantize: str

    def __post_init__(self) -> None:
        known = {"stage": ADAPTER_STAGES, "strategy": STRATEGIES, "quantize": QUANTIZATIONS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UserError(f"--{name} {getattr(self, name)!r}: {', '.join(values)}")


@dataclass(frozen=True, slots=True)
class Batch:
    """How an optimiser step's rows are divided."""

    recipe: int
    """Rows of a step, as the recipe says."""
    size: int
    """Rows of a step here: the recipe's, rounded up to a multiple of the processes."""
    per_device: int
    """Rows that a process computes at once."""
    accumulation: int
    """How often, for one step."""
    processes: int

    def text(self) -> str:
        """One sentence about it."""
        said = f"{self.per_device} rows x {self.processes} processes x {self.accumulation} times = {self.size} a step"
        if self.size == self.recipe:
            return f"{said}, the recipe's batch."
        return (
            f"{said}: the recipe's batch of {self.recipe} is rounded up to a multiple of the {self.processes} "
            "processes, so there are fewer steps; the learning rate is left as it is."
        )


def divide(rows: int, processes: int) -> Batch:
    """The recipe's batch among the processes."""
    each = -(-rows // processes)
    per_device = max(n for n in range(1, min(each, _AT_ONCE) + 1) if each % n == 0)
    return Batch(rows, each * processes, per_device, each // per_device, processes)


def write(context: Context, out: Path, wanted: Wanted) -> list[str]:
    """Publish the folder `out`; returns what the user should know.

    Raises:
        UserError: the stage has no examples yet, they cannot be trained on, or `out` is there already.
    """
    if not context.has_weights:
        raise UserError("this run's engine is the fake one, which has no weights: there is nothing to train")
    if out.exists():
        raise UserError(f"{out} exists: name another --out")
    rows = _rows(context, wanted.stage)
    config, model = context.recipe.training(wanted.stage), context.model
    batch = divide(config.batch_size, wanted.gpus * wanted.nodes)
    text = adapter_import.rows_text(rows)
    # A hub id means the same elsewhere; a path does not.
    hub = model.source if re.fullmatch(r"[\w.-]+/[\w.-]+", model.source) and not Path(model.source).exists() else None
    steps = -(-len(rows) // batch.size) * config.epochs
    recipe = config.model_dump(mode="json")
    training: dict[str, Any] = {
        "stage": wanted.stage,
        "base": hub,
        "identity": model.identity,
        "base_weights": sources.identity_of(sorted(model.folder().glob("*.safetensors"))),
        **{key: recipe[key] for key in _SETTINGS},
        "batch_size": batch.size,
        "per_device_batch_size": batch.per_device,
        "seed": context.recipe.seed,
        "strategy": wanted.strategy,
        "quantize": wanted.quantize,
        "gradient_checkpointing": True,
        "save_steps": max(1, steps // _CHECKPOINTS),
    }
    with atomic.new_folder(out) as folder:
        (folder / "rows.jsonl").write_text(text, "utf-8")
        (folder / "training.json").write_text(json.dumps(training, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (folder / "accelerate.yaml").write_text(yaml.safe_dump(accelerate(wanted), sort_keys=False), "utf-8")
        (folder / "requirements.txt").write_text(requirements(wanted), "utf-8")
        for name in ("train.py", "launch.sh", "train.slurm", "generate.slurm", "README.md"):
            (folder / name).write_text(_filled(name, wanted, batch, len(rows), hub), "utf-8")
        if model.notice:
            (folder / "NOTICE").write_text(model.notice + "\n", "utf-8")
    return _said(out, wanted, batch, len(rows), steps, str(model.folder()) if hub is None else "")


def _rows(context: Context, stage: str) -> list[Any]:
    """The stage's rows, looked at as before a training here."""
    if context.recipe.training(stage).validation:
        raise UserError("the folder measures no loss on rows that are kept out: set engrave.validation to 0")
    found = adapter_training.rows(context, cast(Literal["engrave", "verbose_cloning"], stage))
    if not found:
        raise UserError("no training rows: every response was dropped; see `selfalign status`")
    model, label = context.model, context.run.constitution.assistant.name
    looked = preflight.inspect_rows(found, model.tokenizer(), model.template, label)
    if looked.errors and context.recipe.engrave.preflight == "refuse":
        raise UserError(f"training is refused, {looked.errors[0].rule}: {looked.errors[0].message} (docs/training.md)")
    return found


def accelerate(wanted: Wanted) -> dict[str, Any]:
    """The configuration for `accelerate launch`. The type to compute in is decided in train.py."""
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kinds[wanted.strategy],
        "mixed_precision": "no",
        "num_machines": wanted.nodes,
        "num_processes": wanted.gpus * wanted.nodes,
        "machine_rank": 0,
        "same_network": False,  # the nodes meet at an address that is given, whichever way they meet
        "rdzv_backend": "static",
        "use_cpu": False,
    }
    if wanted.strategy == "fsdp":
        found["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_activation_checkpointing": True,
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_offload_params": False,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        }
    if wanted.strategy == "deepspeed":
        found["deepspeed_config"] = {
            "zero_stage": 3,
            "zero3_init_flag": True,
            "zero3_save_16bit_model": True,
            "offload_optimizer_device": "none",
            "offload_param_device": "none",
            "deepspeed_multinode_launcher": "standard",
        }
    return found


def requirements(wanted: Wanted) -> str:
    """requirements.txt: what the tests run the folder with; torch as the machine needs it."""
    lines = [f"{name}=={version}" for name, version in VERSIONS.items()]
    lines += ["torch>=2.10", *(_EXTRA[key] for key in (wanted.quantize, wanted.strategy) if key in _EXTRA)]
    return "".join(f"{line}\n" for line in lines)


def _filled(name: str, wanted: Wanted, batch: Batch, rows: int, hub: str | None) -> str:
    """A file of `assets/launch`; @NAMES@ in the two that people read are filled in."""
    text = (resources.files("selfalign") / "assets/launch" / name).read_text("utf-8")
    if name == "train.py":
        return text
    base = (
        f"The base is `{hub}` (from the hub; `--base` takes a folder)."
        if hub
        else "Put the base's folder (config, tokenizer, safetensors) here as `base`, or name it with `--base`."
    )
    values = {
        "STAGE": wanted.stage,
        "GPUS": str(wanted.gpus),
        "NODES": str(wanted.nodes),
        "STRATEGY": wanted.strategy,
        "ROWS": f"{rows:,}",
        "BATCH": batch.text(),
        "BASE": base,
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _said(out: Path, wanted: Wanted, batch: Batch, rows: int, steps: int, base: str) -> list[str]:
    lines = [f"{out}: {rows:,} rows, {steps:,} steps, {wanted.strategy}, {wanted.quantize} quantized", batch.text()]
    if base:
        lines.append(f"the base model goes with it: copy {base} to base in that folder")
    lines.append("not run by our tests: GPUs, FSDP, DeepSpeed, 4 bits; README.md there says what was")
    return lines
