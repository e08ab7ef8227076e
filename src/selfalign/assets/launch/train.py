"""Trains this folder's LoRA adapter with TRL, in one process or in many: `sh launch.sh`. README.md says more."""

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
    """The rows of every optimiser step: rows of similar length together, an epoch's steps in random order."""
    rng, steps = random.Random(seed), []  # noqa: S311
    for _ in range(epochs):
        rows = sorted(range(len(lengths)), key=lambda i: (lengths[i], rng.random()))
        groups = [rows[at : at + batch] for at in range(0, len(rows), batch)]
        rng.shuffle(groups)
        steps += groups
    return steps


def rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate of a step (from 0), as a share of its peak: linear warm-up, then a decay to zero."""
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(steps - warmup, 1))
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress


def in_order(rows: list[dict[str, Any]], steps: list[list[int]], batch: int) -> Dataset:
    """All steps' rows, one after the other. A step that is short is filled up with rows that have no loss."""
    ids = [row["input_ids"] for row in rows]
    labels = [[t if counts else -100 for t, counts in zip(r["input_ids"], r["completion_mask"])] for r in rows]  # noqa: B905
    filler = min(ids, key=len)
    data = Dataset.from_dict({"input_ids": [*ids, filler], "labels": [*labels, [-100] * len(filler)]})
    return data.select([at for step in steps for at in step + [len(rows)] * (batch - len(step))])


def fingerprint(folder: Path) -> str:
    """A hash of size and 64 evenly spaced stretches of each file of weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 18))
    return digest.hexdigest()[:16]


def base_folder(given: str | None, config: dict[str, Any]) -> Path:
    """Where the base's weights are; they must be those that the rows were encoded for."""
    base = given or config["base"] or str(HERE / "base")
    found = Path(base)
    if not found.is_dir():
        found = Path(snapshot_download(base, allow_patterns=["*.safetensors", "*.json"]))
    if (weights := fingerprint(found)) != config["base_weights"]:
        raise SystemExit(f"{found} holds other weights than this run's base: {weights}, not {config['base_weights']}")
    return found


class Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the schedule above, and an end where the loss is no number."""

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
    """The recipe's hyper-parameters, with the batch divided among the processes."""
    world, cpu = int(os.environ.get("WORLD_SIZE", "1")), not torch.cuda.is_available()
    accumulation, rest = divmod(config["batch_size"], world * config["per_device_batch_size"])
    if rest or not accumulation:
        rows = config["per_device_batch_size"]
        raise SystemExit(f"batch_size {config['batch_size']} is no multiple of {world} processes x {rows} rows")
    return SFTConfig(
        output_dir=str(out), seed=config["seed"], use_cpu=cpu, bf16=not cpu, report_to="none",
        per_device_train_batch_size=config["per_device_batch_size"], gradient_accumulation_steps=accumulation,
        # The rows are encoded, masked and in order already: nothing is tokenised, cut or shuffled here.
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
    """The base model, in 4 bits where the settings say so (QLoRA)."""
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


def publish(trainer: Trainer, out: Path, config: dict[str, Any], known: dict[str, Any]) -> None:
    """Put the adapter and what is known about it into out/adapter, whole or not at all."""
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    known["steps"], known["processes"] = len(losses), trainer.args.world_size
    known["loss_first"], known["loss_last"] = losses[0]["loss"], losses[-1]["loss"]
    known |= {key: config[key] for key in ("stage", "strategy", "quantize", "batch_size", "epochs", "learning_rate")}
    part = out / "adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(out / "last" / name, part / name)
    (part / "base.json").write_text(json.dumps({"identity": config["identity"]}) + "\n", "utf-8")
    (part / "trained.json").write_text(json.dumps(known, indent=1) + "\n", "utf-8")
    (part / "losses.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in losses), "utf-8")
    shutil.rmtree(out / "adapter", ignore_errors=True)
    part.rename(out / "adapter")


def main() -> None:
    """Train, or go on from the last checkpoint, and leave the adapter in out/adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="the base model, a folder or a hub id; as in training.json unless given")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="for checkpoints and the adapter")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint where there is one")
    given = parser.parse_args()
    last = get_last_checkpoint(str(given.out)) if given.out.is_dir() else None
    if last and not given.resume:
        raise SystemExit(f"{given.out} holds checkpoints: --resume goes on from there, another --out begins anew")
    config, text = json.loads((HERE / "training.json").read_text("utf-8")), (HERE / "rows.jsonl").read_bytes()
    rows = [json.loads(line) for line in text.splitlines()]
    lengths, batch = [len(row["input_ids"]) for row in rows], config["batch_size"]
    settings, base = arguments(config, given.out), base_folder(given.base, config)  # DeepSpeed wants this order
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
    trainer.save_model(str(given.out / "last"))  # by every process: the weights may be spread over them
    if trainer.is_world_process_zero():
        tokens = sum(lengths) * config["epochs"]
        publish(
            trainer, given.out, config, {"rows_sha256": hashlib.sha256(text).hexdigest(), "training_tokens": tokens}
        )


if __name__ == "__main__":
    main()
