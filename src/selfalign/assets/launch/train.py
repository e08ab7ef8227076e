"""Train this folder's LoRA adapter with TRL, in one or many processes: `sh launch.sh` (see README.md)."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import snapshot_download
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).resolve().parent


def order(lengths: list[int], batch: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the rows of every optimiser step: rows of similar length grouped, steps shuffled within an epoch."""
    rng, steps = random.Random(seed), []  # noqa: S311
    for _ in range(epochs):
        rows = sorted(range(len(lengths)), key=lambda i: (lengths[i], rng.random()))
        groups = [rows[at : at + batch] for at in range(0, len(rows), batch)]
        rng.shuffle(groups)
        steps += groups
    return steps


def rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Return the learning rate of a step (from 0) as a fraction of its peak: linear warm-up, then decay to zero."""
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(steps - warmup, 1))
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress


def in_order(rows: list[dict[str, Any]], steps: list[list[int]], batch: int) -> Dataset:
    """Return the rows of all steps in order; short steps are padded with rows without loss."""
    ids = [row["input_ids"] for row in rows]
    labels = [[t if counts else -100 for t, counts in zip(r["input_ids"], r["completion_mask"])] for r in rows]  # noqa: B905
    filler = min(ids, key=len)
    data = Dataset.from_dict({"input_ids": [*ids, filler], "labels": [*labels, [-100] * len(filler)]})
    return data.select([at for step in steps for at in step + [len(rows)] * (batch - len(step))])


def fingerprint(folder: Path) -> str:
    """Return a hash of the size and 64 evenly spaced chunks of each file of weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 18))
    return digest.hexdigest()[:16]


def base_folder(argument: str | None, config: dict[str, Any]) -> Path:
    """Return the folder of the base model. Exits if its weights differ from those of the run."""
    base = argument or config["base"] or str(HERE / "base")
    folder = Path(base)
    if not folder.is_dir():
        folder = Path(snapshot_download(base, allow_patterns=["*.safetensors", "*.json"]))
    if (weights := fingerprint(folder)) != config["base_weights"]:
        raise SystemExit(
            f"{folder} contains other weights than the run's base: {weights}, not {config['base_weights']}"
        )
    return folder


class Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the schedule above. It stops if the loss is not finite."""

    schedule = "linear"

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        warmup = int(self.args.warmup_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: rate(step, num_training_steps, warmup, self.schedule)
        )
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if not math.isfinite(logs.get("loss", 0.0)):
            raise SystemExit(f"the loss became {logs['loss']}: lower the learning rate in training.json")


def arguments(config: dict[str, Any], out: Path) -> SFTConfig:
    """Return the recipe's hyper-parameters, with the batch divided among the processes."""
    world, cpu = int(os.environ.get("WORLD_SIZE", "1")), not torch.cuda.is_available()
    accumulation, remainder = divmod(config["batch_size"], world * config["per_device_batch_size"])
    if remainder or not accumulation:
        rows = config["per_device_batch_size"]
        raise SystemExit(f"batch_size {config['batch_size']} is not a multiple of {world} processes x {rows} rows")
    return SFTConfig(
        output_dir=str(out), seed=config["seed"], use_cpu=cpu, bf16=not cpu, report_to="none",
        per_device_train_batch_size=config["per_device_batch_size"], gradient_accumulation_steps=accumulation,
        # The rows are already encoded, masked and ordered, and must not be tokenised, truncated or shuffled.
        max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
        num_train_epochs=1, train_sampling_strategy="sequential",
        learning_rate=config["learning_rate"], warmup_steps=config["warmup_steps"],
        optim="adamw_torch", weight_decay=0.0, max_grad_norm=config["max_grad_norm"],
        # The loss is the mean over the loss tokens of the whole batch, whichever process computes them.
        average_tokens_across_devices=True, ddp_find_unused_parameters=False,
        activation_checkpointing=config["gradient_checkpointing"] and config["strategy"] != "fsdp",  # FSDP has its own
        logging_steps=1, logging_nan_inf_filter=False, save_steps=config["save_steps"], save_total_limit=2,
    )  # fmt: skip


def load(base: Path, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """Load the base model, in 4 bits if training.json sets it (QLoRA)."""
    if config["quantize"] == "none":
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_storage=dtype,
    )  # fmt: skip
    device = {"": int(os.environ.get("LOCAL_RANK", "0"))} if config["strategy"] == "ddp" else None
    return AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, use_safetensors=True, quantization_config=quantization, device_map=device
    )


def publish(trainer: Trainer, out: Path, config: dict[str, Any], record: dict[str, Any]) -> None:
    """Publish the adapter and its training record as out/adapter, atomically."""
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    record["steps"], record["processes"] = len(losses), trainer.args.world_size
    record["loss_first"], record["loss_last"] = losses[0]["loss"], losses[-1]["loss"]
    record |= {key: config[key] for key in ("stage", "strategy", "quantize", "batch_size", "epochs", "learning_rate")}
    part = out / "adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(out / "last" / name, part / name)
    (part / "base.json").write_text(json.dumps({"identity": config["identity"]}) + "\n", "utf-8")
    (part / "trained.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    (part / "losses.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in losses), "utf-8")
    shutil.rmtree(out / "adapter", ignore_errors=True)
    part.rename(out / "adapter")


def main() -> None:
    """Train, or resume from the last checkpoint, and write the adapter to out/adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="the base model, a folder or a hub id (default: from training.json)")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder for checkpoints and the adapter")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint, if there is one")
    options = parser.parse_args()
    last = get_last_checkpoint(str(options.out)) if options.out.is_dir() else None
    if last and not options.resume:
        raise SystemExit(f"{options.out} contains checkpoints: use --resume, or another --out to start again")
    config, text = json.loads((HERE / "training.json").read_text("utf-8")), (HERE / "rows.jsonl").read_bytes()
    rows = [json.loads(line) for line in text.splitlines()]
    lengths, batch = [len(row["input_ids"]) for row in rows], config["batch_size"]
    settings, base = (
        arguments(config, options.out),
        base_folder(options.base, config),
    )  # DeepSpeed needs the settings before the model
    trainer = Trainer(
        model=load(base, config, torch.bfloat16 if settings.bf16 else torch.float32),
        args=settings,
        train_dataset=in_order(rows, order(lengths, batch, config["epochs"], config["seed"]), batch),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=config["rank"], lora_alpha=config["alpha"], lora_dropout=config["dropout"],
            target_modules=config["targets"], bias="none", task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    trainer.schedule = config["schedule"]
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(options.out / "last"))  # in every process: the weights may be sharded
    if trainer.is_world_process_zero():
        tokens = sum(lengths) * config["epochs"]
        publish(
            trainer, options.out, config, {"rows_sha256": hashlib.sha256(text).hexdigest(), "training_tokens": tokens}
        )


if __name__ == "__main__":
    main()
