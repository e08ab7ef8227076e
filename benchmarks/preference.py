"""Compare a DPO step with TRL's DPOTrainer on the embedded model: seconds per step, losses.

    python benchmarks/preference.py runs/dpo        # about 5 minutes; needs trl and a run with 3_engrave/pairs.jsonl

Both train on the pairs of a run in the same order, 2 pairs per step, with an SFT term, in float32 with dropout 0, in a
process each, in turns. TRL runs without gradient checkpointing, which is faster. Figures are medians over the steps
after the first.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import training as sft
from selfalign import constitution
from selfalign.data.records import PreferencePair, read_jsonl
from selfalign.model import sources
from selfalign.model.dialogue import encode_example
from selfalign.training.batches import PairRow

STEPS, BATCH = 6, 2
CONFIG = sft.CONFIG.model_copy(update={"method": "dpo", "beta": 0.1, "sft_weight": 1.0, "batch_size": BATCH})


def ours(rows: list[PairRow], batch: int, steps: int, before: Callable[[], None], after: Callable[..., None]) -> None:
    """Train with selfalign on `rows`, which are in the order of the steps."""
    from selfalign.training import lora
    from selfalign.training.preference import PreferenceTrainer

    model = lora.with_new_adapter(lora.load_base(sources.resolve("embedded").folder()), CONFIG, 0)
    trainer = PreferenceTrainer(model, rows, CONFIG, 0, say=print)
    numbered = sorted((row for part in trainer.batches for row in part), key=lambda row: row.number)
    trainer.batches = [numbered[start : start + batch] for start in range(0, len(numbered), batch)][:steps]
    for _ in trainer.batches:
        before()
        after(trainer.step())


def trl(rows: list[PairRow], batch: int, steps: int, before: Any, after: Any) -> None:
    """Train with TRL's DPOTrainer on the same pairs in the same order."""
    import datasets
    import torch
    import transformers
    from trl import DPOConfig, DPOTrainer

    from selfalign.training import lora

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            before()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
            if "loss" in logs:
                after(logs["loss"])

    class InOrder(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(dataset if dataset is not None else self.train_dataset)

    folder = sources.resolve("embedded").folder()
    starts = [row.mask.index(True) for row in rows]
    data = datasets.Dataset.from_list(
        [
            {"prompt_ids": row.ids[:n], "chosen_ids": row.ids[n:], "rejected_ids": row.rejected.ids[n:]}
            for row, n in zip(rows, starts, strict=True)
        ]
    )
    with tempfile.TemporaryDirectory() as out:
        config = DPOConfig(
            output_dir=out, use_cpu=True, bf16=False, per_device_train_batch_size=batch, max_steps=steps,
            learning_rate=CONFIG.learning_rate, weight_decay=0.0, lr_scheduler_type="linear", warmup_steps=0,
            max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            max_length=None, seed=0, gradient_checkpointing=False, remove_unused_columns=False, beta=CONFIG.beta,
            loss_type=["sigmoid", "sft"], loss_weights=[1.0, CONFIG.sft_weight],
        )  # fmt: skip
        model = lora.with_new_adapter(lora.load_base(folder), CONFIG, 0)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        InOrder(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Turns()]).train()


sft.LANES |= {"TRL": trl, "ours": ours}


def pair_rows(run: Path) -> list[PairRow]:
    """Return the encoded pairs of a run, in the order of its file."""
    model, texts = sources.resolve("embedded"), constitution.load(str(run / "constitution.yaml"))
    rows = []
    for pair in read_jsonl(run / "3_engrave/pairs.jsonl", PreferencePair):
        system, name = texts.system_prompt(pair.prompt), texts.assistant.name
        chosen, rejected = (
            encode_example(model.tokenizer(), model.template, system, pair.user, text, name)
            for text in (pair.chosen, pair.rejected)
        )
        rows.append(PairRow(chosen.ids, chosen.mask, rejected))
    return rows


def main() -> None:
    rows = pair_rows(Path(sys.argv[1]))[: STEPS * BATCH]
    pipes: dict[str, Connection] = {name: sft.start(name, rows, BATCH, STEPS) for name in ("TRL", "ours")}
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    losses: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(STEPS):
        for name, pipe in pipes.items():
            pipe.send(None)
            spent, loss = pipe.recv()
            seconds[name].append(spent)
            losses[name].append(loss)
    for name, pipe in pipes.items():
        pipe.recv()  # the lane's memory
        print(f"{name}: {statistics.median(seconds[name][1:]):.2f} s per step; losses {losses[name]}")
    print(f"ratio {statistics.median(seconds['TRL'][1:]) / statistics.median(seconds['ours'][1:]):.2f}")
    print(f"largest difference in loss {max(abs(a - b) for a, b in zip(losses['TRL'], losses['ours'], strict=True))}")


if __name__ == "__main__":
    main()
