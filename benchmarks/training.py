"""Compare training with TRL's SFTTrainer on the embedded model: tokens/s, losses, memory, overhead.

    python benchmarks/training.py runs/quick            # about 13 minutes; needs trl, a run with stage 3 and 10 GB

Three lanes train on the rows of a real stage 3 in the same order, 4 rows per step, in a process each: TRL with its
defaults (except float32 on the CPU), TRL with the best settings we found (gradient checkpointing off), and selfalign.
The model is in float32, with rank 16 and dropout 0. The lanes take turns for 20 steps, so that other work on the
machine affects all of them equally; figures are medians. Padding tokens are not counted. Then: each lane's peak memory
in one step of 8 rows of 512 tokens, and the seconds of stage 3 in addition to its steps.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from selfalign import constitution
from selfalign.data.records import Example, read_jsonl
from selfalign.model import sources
from selfalign.model.dialogue import Encoded, encode_example
from selfalign.run import recipe
from selfalign.system.environment import share_processor
from selfalign.training.settings import TrainingSettings

STEPS, BATCH = 20, 4
CONFIG: TrainingSettings = recipe.load("quick").engrave.model_copy(
    update={"dropout": 0.0, "batch_size": BATCH, "epochs": 1, "warmup_steps": 0, "validation": 0.0}
)


def ours(rows: list[Encoded], batch: int, steps: int, before: Callable[[], None], after: Callable[..., None]) -> None:
    """Train with selfalign on `rows`, which are in the order of the steps."""
    from selfalign.training import loop, lora

    model = lora.with_new_adapter(lora.load_base(sources.resolve("embedded").folder()), CONFIG, 0)
    trainer = loop.Trainer(model, rows, CONFIG.model_copy(update={"batch_size": batch}), 0, say=print)
    trainer.batches = [rows[start : start + batch] for start in range(0, len(rows), batch)][:steps]
    for _ in trainer.batches:
        before()
        after(trainer.step())


def trl(rows: list[Encoded], batch: int, steps: int, before: Any, after: Any, **settings: Any) -> None:
    """Train with TRL's SFTTrainer on the same rows in the same order."""
    import datasets
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    from selfalign.training import lora

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            before()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
            if "loss" in logs:
                after(logs["loss"])

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def log(self, logs: dict[str, float], *rest: Any) -> None:
            super().log(logs, *rest)

    folder = sources.resolve("embedded").folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model = lora.with_new_adapter(lora.load_base(folder), CONFIG, 0)
    data = datasets.Dataset.from_list([{"input_ids": r.ids, "completion_mask": [int(m) for m in r.mask]} for r in rows])
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out, use_cpu=True, bf16=False, per_device_train_batch_size=batch, max_steps=steps,
            learning_rate=CONFIG.learning_rate, weight_decay=0.0, lr_scheduler_type="linear", warmup_steps=0,
            max_grad_norm=1.0, logging_steps=1, logging_nan_inf_filter=False, save_strategy="no", report_to="none",
            disable_tqdm=True, max_length=None, completion_only_loss=True, seed=0, **settings,
        )  # fmt: skip
        trainer = InOrder(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Turns()])
        trainer.train()


LANES: dict[str, Callable[..., None]] = {
    "TRL, its defaults": trl,
    "TRL, best settings": lambda *args: trl(*args, gradient_checkpointing=False),
    "ours": ours,
}


def work(name: str, rows: list[Encoded], batch: int, steps: int, pipe: Connection) -> None:
    """Run a lane in this process: wait for each turn, then send the step's seconds and loss."""
    share_processor()
    sys.stdout = sys.stderr
    start = 0.0

    def before() -> None:
        nonlocal start
        pipe.recv()
        start = time.monotonic()

    LANES[name](rows, batch, steps, before, lambda loss: pipe.send((time.monotonic() - start, float(loss))))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def start(name: str, rows: list[Encoded], batch: int, steps: int) -> Connection:
    here, there = multiprocessing.get_context("spawn").Pipe()
    multiprocessing.get_context("spawn").Process(target=work, args=(name, rows, batch, steps, there)).start()
    return here


def stage_rows(run: Path) -> list[Encoded]:
    """Return the encoded rows of a run's stage 3, in the order of its steps."""
    from selfalign.training.batches import training_batches

    model, texts = sources.resolve("embedded"), constitution.load(str(run / "constitution.yaml"))
    tokenizer = model.tokenizer()
    rows = [
        encode_example(
            tokenizer, model.template, texts.system_prompt(e.prompt), e.user, e.assistant, texts.assistant.name
        )
        for e in read_jsonl(run / "3_engrave/examples.jsonl", Example)
    ]
    return [row for batch in training_batches(rows, BATCH, 1, 0) for row in batch]


def speed(rows: list[Encoded]) -> None:
    rows = rows[: STEPS * BATCH]
    pipes = {name: start(name, rows, BATCH, STEPS) for name in LANES}
    seconds: dict[str, list[float]] = {name: [] for name in LANES}
    losses: dict[str, list[float]] = {name: [] for name in LANES}
    for step in range(STEPS):
        for name, pipe in pipes.items():
            pipe.send("go")
            taken, loss = pipe.recv()
            seconds[name].append(taken)
            losses[name].append(loss)
        print(f"step {step + 1:2}: " + ", ".join(f"{n} {v[-1]:.5f} {seconds[n][-1]:.1f} s" for n, v in losses.items()))
    tokens = [sum(len(r.ids) for r in rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
    rates = {
        name: statistics.median(t / s for t, s in zip(tokens[1:], taken[1:], strict=True))
        for name, taken in seconds.items()
    }
    for name, rate in rates.items():
        other = max(abs(a - b) for a, b in zip(losses[name], losses["ours"], strict=True))
        print(f"{name:<20} {rate:5.0f} tokens/s; losses differ from ours by at most {other:.1e} over {STEPS} steps")
    for figure, lane in (("defaults", "TRL, its defaults"), ("best", "TRL, best settings")):
        pairs = [a / b for a, b in zip(seconds[lane][1:], seconds["ours"][1:], strict=True)]
        print(f"training.ratio_trl_{figure} {statistics.median(pairs):.2f} (median of {len(pairs)} steps)")


def memory() -> None:
    rng = random.Random(0)
    rows = [Encoded([rng.randrange(1000, 200_000) for _ in range(512)], [False] * 256 + [True] * 256) for _ in range(8)]
    for name in LANES:
        pipe = start(name, rows, 8, 1)
        pipe.send("go")
        taken, _ = pipe.recv()
        print(f"training.memory: {name:<20} {pipe.recv():.2f} GB at 8 x 512 tokens, {taken:.0f} s a step", flush=True)


def overhead(run: Path) -> None:
    """Measure stage 3 in a copy of the run, one epoch: its seconds without those of the steps."""
    from selfalign import api

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy)
        text = (copy / "recipe.yaml").read_text("utf-8")
        (copy / "recipe.yaml").write_text(text.replace("  epochs: 2\n", "  epochs: 1\n"), "utf-8")
        start_time = time.monotonic()
        with api.open_run(copy, force=True) as opened:
            opened.run_stage("engrave")
            taken = time.monotonic() - start_time
            steps = opened.context.journal.counts("engrave").notes["training_seconds"]
    print(
        f"training.overhead {taken - steps:.1f} s beyond {steps:.0f} s of steps (includes comparing torch and engine)"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--only", choices=("speed", "memory", "overhead"))
    args = parser.parse_args()
    parts = {
        "overhead": lambda: overhead(args.run),
        "speed": lambda: speed(stage_rows(args.run)),
        "memory": memory,
    }
    for name, part in parts.items():
        if args.only in (None, name):
            part()


if __name__ == "__main__":
    main()
