"""From rows to the loss: what the head sees are the loss positions only, and what rows share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from selfalign.model.dialogue import Encoded
from selfalign.system.signals import STOP
from selfalign.training.batches import MicroBatch
from selfalign.training.loss import CrossEntropy


def causal_lm(model: Any) -> Any:
    """The causal_lm language model inside a PEFT model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def cross_entropy(model: Any) -> CrossEntropy:
    """The loss under the model's head."""
    inner = causal_lm(model)
    return CrossEntropy(inner.lm_head.weight, getattr(inner.config, "final_logit_softcapping", None))


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


def hidden_at_loss(model: Any, rows: Sequence[Encoded], prefix: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states (N, d), target ids (N,)) of the N loss positions of a batch.

    Args:
        prefix: so many first tokens are the same in all rows and have no loss: their keys and values are computed once
            and stand before each row's own tokens. Gradients flow through them as if every row had its own.
    """
    body = causal_lm(model).model
    device = body.embed_tokens.weight.device
    own = [Encoded(r.ids[prefix:], r.mask[prefix:]) for r in rows] if prefix else rows
    ids, attention, at = (t.to(device) for t in collate(own))
    before: dict[str, Any] = {"use_cache": False}
    if prefix:
        begun = body(input_ids=torch.tensor([rows[0].ids[:prefix]], device=device), use_cache=True).past_key_values
        begun.batch_repeat_interleave(len(rows))
        attention = torch.cat([attention.new_ones(len(rows), prefix), attention], 1)
        before = {"use_cache": True, "past_key_values": begun}
    hidden = body(input_ids=ids, attention_mask=attention, **before).last_hidden_state[at]
    return hidden, torch.roll(ids, -1, 1)[at]


def backward(model: Any, head: CrossEntropy, part: MicroBatch, total: int) -> float:
    """Forward and backward of one part of a batch.

    Args:
        total: loss positions of the whole batch.

    Returns:
        The part's summed loss divided by `total`.
    """
    hidden, target = hidden_at_loss(model, part.rows, part.prefix)
    loss, gradient = head.loss_and_gradient(hidden.detach(), target)
    hidden.backward(gradient / total)
    return float(loss / total)


@torch.no_grad()
def token_losses(model: Any, rows: Sequence[Encoded], size: int = 8) -> list[list[float]]:
    """Loss of each loss position, row by row in the given order; the model's mode is set to eval.

    Raises:
        Interrupted: a signal came between two batches.
    """
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
