"""One LoRA step with our loss against torch's cross-entropy in chunks, on the embedded model.

    python benchmarks/training.py          # about 3 minutes

Sample: batches of 8 rows of 90 tokens, half of them with loss; both losses take turns on the same rows; medians of 4.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from selfalign import models, recipe
from selfalign.dialogue import Encoded
from selfalign.training import lora


def autograd_step(model: Any, rows: list[Encoded], total: int) -> None:
    """Logits at the loss positions, in chunks of 256, through autograd."""
    hidden, target = lora.hidden_at_loss(model, rows)
    head = lora.causal(model).lm_head.weight
    leaf = hidden.detach().requires_grad_(True)
    for at in range(0, len(target), 256):
        logits = F.linear(leaf[at : at + 256], head)
        (F.cross_entropy(logits, target[at : at + 256], reduction="sum") / total).backward()
    hidden.backward(leaf.grad)


def main() -> None:
    base = lora.load_base(models.resolve("embedded").folder(print))
    model = lora.with_new_adapter(base, recipe.load("quick").engrave, 0).train()
    rng = random.Random(0)
    rows = [Encoded([rng.randrange(1000, 200_000) for _ in range(90)], [False] * 45 + [True] * 45) for _ in range(8)]
    total = sum(sum(r.mask[1:]) for r in rows)
    head = lora.cross_entropy(model)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: lora.step_loss(model, head, rows, total),
        "autograd": lambda: autograd_step(model, rows, total),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(5):
        for name, step in ways.items():
            start = time.monotonic()
            step()
            if turn:
                seconds[name].append(time.monotonic() - start)
    for name, values in seconds.items():
        print(f"{name:>8}: {8 * 90 / statistics.median(values):5.0f} tokens/s")
    print(f"training.ratio_autograd {statistics.median(seconds['autograd']) / statistics.median(seconds['ours']):.2f}")


if __name__ == "__main__":
    main()
