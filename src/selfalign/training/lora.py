"""The LoRA loop: logits only where there is loss, batches of similar length, one process, one device."""

from __future__ import annotations

import contextlib
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfalign import atomic
from selfalign.dialogue import Encoded
from selfalign.errors import UserError
from selfalign.models import quiet_transformers
from selfalign.recipe import Engrave
from selfalign.signals import STOP
from selfalign.training.loss import CrossEntropy


@dataclass(frozen=True, slots=True)
class Training:
    """What a training run did."""

    losses: list[float]
    """Mean loss per token of each optimiser step."""
    tokens: int
    loss_tokens: int


def load_base(folder: Path) -> Any:
    """The base model in float32 (this loop is for the CPU; other dtypes are slower there or not exact)."""
    transformers = quiet_transformers()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"torch cannot load {folder}: {' '.join(str(error).split())[:200]}") from None
    model.requires_grad_(False)
    return model.eval()


def with_new_adapter(base: Any, config: Engrave, seed: int) -> Any:
    """The base with a fresh LoRA adapter (r, alpha, dropout and targets of the recipe)."""
    import peft

    torch.manual_seed(seed)
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with _no_future_warnings():
        return peft.get_peft_model(base, lora)


@contextlib.contextmanager
def _no_future_warnings() -> Iterator[None]:
    """transformers announces renames that peft has to follow; a user cannot act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def add_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """The model, a base or one with adapters already, with a saved adapter more; for scoring."""
    import peft

    with _no_future_warnings():
        if not isinstance(model, peft.PeftModel):
            settings = {"adapter_name": name, "is_trainable": False, "use_safetensors": True}
            return peft.PeftModel.from_pretrained(model, str(folder), **settings).eval()
        model.load_adapter(str(folder), name, is_trainable=False, use_safetensors=True)
        return model.eval()


def causal(model: Any) -> Any:
    """The causal language model inside a PEFT model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def cross_entropy(model: Any) -> CrossEntropy:
    """The loss under the model's head."""
    inner = causal(model)
    return CrossEntropy(inner.lm_head.weight, getattr(inner.config, "final_logit_softcapping", None))


def batches(rows: Sequence[Encoded], size: int, rng: random.Random) -> list[list[Encoded]]:
    """Batches of rows of similar length, in random order: little padding, no order by length."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), rng.random()))
    groups = [[rows[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    rng.shuffle(groups)
    return groups


def collate(rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, attention, at) of shape (B, T), padded on the right; `at` marks positions whose *next* token has loss."""
    width = max(len(r.ids) for r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    at = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        attention[i, :n] = 1
        at[i, : n - 1] = torch.tensor(row.mask[1:])
    return ids, attention, at


def hidden_at_loss(model: Any, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states (N, d), target ids (N,)) of the N loss positions of a batch: the head sees only these."""
    ids, attention, at = collate(rows)
    hidden = causal(model).model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state[at]
    return hidden, torch.roll(ids, -1, 1)[at]


def step_loss(model: Any, head: CrossEntropy, rows: Sequence[Encoded], total: int) -> float:
    """Forward and backward of one batch; returns the summed loss divided by `total` loss positions."""
    hidden, target = hidden_at_loss(model, rows)
    loss, gradient = head.loss_and_gradient(hidden.detach(), target)
    hidden.backward(gradient / total)
    return float(loss) / total


@torch.no_grad()
def token_losses(model: Any, rows: Sequence[Encoded], size: int = 8) -> list[list[float]]:
    """Loss of each loss position, row by row in the given order; the model's mode is set to eval."""
    model.eval()
    found: list[list[float]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    head = cross_entropy(model)
    for at in range(0, len(order), size):
        STOP.check()
        part = order[at : at + size]
        hidden, target = hidden_at_loss(model, [rows[i] for i in part])
        values = iter(head.losses(hidden, target).tolist())
        for i in part:
            found[i] = [next(values) for _ in range(sum(rows[i].mask[1:]))]
    return found


def train(
    model: Any,
    rows: Sequence[Encoded],
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    warmup_steps: int,
    seed: int,
    micro_batch: int = 8,
    on_step: Callable[[int, int, float, int], None] = lambda step, steps, loss, tokens: None,
) -> Training:
    """Train the adapter: AdamW (no weight decay), linear warm-up, linear decay to zero, gradient norm at most 1.

    Args:
        batch_size: rows per optimiser step; computed in parts of `micro_batch` rows.
        on_step: gets (step, steps, loss, tokens seen) after each optimiser step.

    Raises:
        UserError: there is nothing to train on.
        Interrupted: a signal came between two steps.
    """
    if not rows:
        raise UserError("no training rows: every response was dropped; see `selfalign status`")
    rng = random.Random(seed)  # noqa: S311
    torch.manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.0)
    steps = math.ceil(len(rows) / batch_size) * epochs
    warmup = min(warmup_steps, steps // 4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / (warmup + 1), max(steps - s, 0) / max(steps - warmup, 1))
    )
    model.train()
    head = cross_entropy(model)
    losses: list[float] = []
    tokens = loss_tokens = 0
    for _ in range(epochs):
        for batch in batches(rows, batch_size, rng):
            STOP.check()
            total = sum(sum(r.mask[1:]) for r in batch)
            loss = sum(
                step_loss(model, head, batch[at : at + micro_batch], total) for at in range(0, len(batch), micro_batch)
            )
            if not math.isfinite(loss):
                raise UserError(f"the loss became {loss} at step {len(losses) + 1}: lower the learning rate")
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            losses.append(loss)
            tokens += sum(len(r.ids) for r in batch)
            loss_tokens += total
            on_step(len(losses), steps, loss, tokens)
    return Training(losses, tokens, loss_tokens)


def save_adapter(model: Any, folder: Path, source: str, notice: str, card: str) -> None:
    """Publish the adapter in PEFT's format (safetensors), with the base's name, its licence notice and a card."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = source  # not the path of this machine's cache
    with atomic.new_folder(folder) as building:
        # Embeddings are never trained; "auto" would ask the hub about the base.
        model.save_pretrained(str(building), safe_serialization=True, save_embedding_layers=False)
        (building / "README.md").write_text(card, "utf-8")
        if notice:
            (building / "NOTICE").write_text(notice + "\n", "utf-8")
