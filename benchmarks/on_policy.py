"""Compare a step of on-policy distillation with an SFT step on the same tokens, on the embedded model: seconds, tokens.

    python benchmarks/on_policy.py runs/quick            # 3 minutes on one free core; needs a run with stage 2

Both train on responses of a run's stage 2, 4 rows per step, in turns, with dropout 0 and the dtype that the machine
chooses. The figures are processor seconds, so that other work on the machine matters less. Distillation includes the
teacher's pass over all rows, with the constitution's prefixes. Generation is not included: a round generates each
response once, and SFT's were generated in stage 2.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

from selfalign import constitution
from selfalign.data.prompt_text import Turn
from selfalign.data.records import Prompt, Response, read_jsonl
from selfalign.generation import guided
from selfalign.generation.engines.base import Sampling
from selfalign.model import sources
from selfalign.run import recipe
from selfalign.training import device, loop, lora
from selfalign.training.distillation import DistillationTrainer
from selfalign.training.response_rows import ResponseRow, TurnEnd, response_row

ROWS, BATCH = 64, 4
QUICK = recipe.load("quick")
CONFIG = QUICK.engrave.model_copy(update={"dropout": 0.0, "batch_size": BATCH, "epochs": 1, "method": "on_policy"})


def response_rows(run: Path) -> list[ResponseRow]:
    """Return rows of the run's responses to training prompts, as if the model had written them without constitution."""
    model, texts = sources.resolve("embedded"), constitution.load(str(run / "constitution.yaml"))
    tokenizer, template, name = model.tokenizer(), model.template, texts.assistant.name
    form = guided.Form(texts, QUICK.align, Sampling(0.5, 0.95, 128))
    types = {p.id: p.exemplar_type for p in read_jsonl(run / "1_prompts/prompts.jsonl", Prompt)}
    end = TurnEnd(tokenizer.ids(template.end, special=True)[0], tokenizer.first("\n\nUser:"))
    rows = []
    for r in read_jsonl(run / "2_self_align/responses.jsonl", Response):
        if r.split == "train" and len(rows) < ROWS:
            prompt = template.prompt(texts.system_prompt("standard"), [Turn("user", r.message)], name)
            before = form.answered(r.message, r.thoughts, types.get(r.id, ""))
            response = tokenizer.ids(f" {r.response}")
            rows.append(
                response_row(tokenizer.encode(prompt), response, tokenizer.encode(before), response, end, complete=True)
            )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = response_rows(Path(sys.argv[1]))
    placement = device.choose(CONFIG)
    trainers = {}
    for name, kind in (("sft", loop.Trainer), ("on_policy", DistillationTrainer)):
        base = lora.load_base(sources.resolve("embedded").folder(), placement)
        trainers[name] = kind(lora.with_new_adapter(base, CONFIG, 0), rows, CONFIG, 0, say=print)
    distill = trainers["on_policy"]
    assert isinstance(distill, DistillationTrainer)
    start = time.process_time()
    distill.ask_teacher()
    teacher = time.process_time() - start
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in distill.batches:
        for name, trainer in trainers.items():
            start = time.process_time()
            trainer.step()
            seconds[name].append(time.process_time() - start)
    tokens, read = (sum(len(t.ids) for t in texts) for texts in (rows, [row.teacher for row in rows]))
    print(f"{placement.dtype}, {len(rows)} rows of {tokens:,} tokens; {read:,} with the teacher's prompts")
    steps = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(f"{BATCH} rows: sft {steps['sft']:.2f} s, on_policy {steps['on_policy']:.2f} s; the teacher {teacher:.1f} s")
    totals = {name: sum(values) for name, values in seconds.items()}
    print(f"on_policy.cost {(totals['on_policy'] + teacher) / totals['sft']:.2f} times sft on the same tokens")


if __name__ == "__main__":
    main()
