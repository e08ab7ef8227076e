"""Run rows through the model and compute their loss, at the loss positions only.

Shapes: B rows of at most T tokens, N loss positions, d hidden size. A loss position is a token whose *next* token
counts in the loss. The output layer is applied to loss positions only, and a shared prefix is computed once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from selfalign.errors import UserError
from selfalign.model.dialogue import Encoded
from selfalign.system.signals import STOP
from selfalign.training.batches import MicroBatch
from selfalign.training.loss import LinearCrossEntropy

Loss = TypeVar("Loss", bound=LinearCrossEntropy)


def causal_lm(model: Any) -> Any:
    """Return the transformers model inside a PEFT model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def cross_entropy(model: Any) -> LinearCrossEntropy:
    """Return the loss under the model's output layer, with its logit soft-capping. Raises as `check_output_layer`."""
    return output_loss(model, LinearCrossEntropy)


def output_loss(model: Any, kind: type[Loss]) -> Loss:
    """Return a loss of this class under the model's output layer. Raises as `check_output_layer`."""
    lm = causal_lm(model)
    check_output_layer(lm)
    return kind(lm.lm_head.weight, getattr(lm.config, "final_logit_softcapping", None))


def output_scale(config: Any) -> float:
    """Return the factor of the logits: Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`, or 1."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


@torch.no_grad()
def check_output_layer(lm: Any) -> None:
    """Check, on three tokens, that the model's logits are those of weights, scale and soft-capping.

    Raises:
        UserError: the output layer computes something else, which the loss would ignore.
    """
    ids = torch.arange(3, device=lm.lm_head.weight.device)[None]
    trains = lm.training
    lm.eval()  # with an adapter's dropout, two passes differ
    hidden = lm.model(input_ids=ids, use_cache=False).last_hidden_state
    expected = lm(input_ids=ids, use_cache=False).logits.float()
    lm.train(trains)
    logits = torch.nn.functional.linear(hidden * output_scale(lm.config), lm.lm_head.weight).float()
    if cap := getattr(lm.config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    if not torch.allclose(logits, expected, rtol=0.05, atol=0.05 * float(expected.abs().max())):
        raise UserError(
            f"the output layer of the model type {lm.config.model_type!r} is not supported here: train it elsewhere "
            "(engrave.elsewhere)"
        )


def loss_tokens(rows: Sequence[Encoded]) -> int:
    """Return the number of loss positions of the rows."""
    return sum(sum(r.mask[1:]) for r in rows)


def prefix_keys(model: Any, ids: Sequence[int], before: Any = None) -> Any:
    """Return the keys and values (a cache of transformers) of tokens that follow those in the cache `before`."""
    body = causal_lm(model).model
    tokens = torch.tensor([list(ids)], device=body.embed_tokens.weight.device)
    return body(input_ids=tokens, past_key_values=copy.deepcopy(before), use_cache=True).past_key_values


def hidden_at_loss(
    model: Any, rows: Sequence[Encoded], prefix: int = 0, keys: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden states at the loss positions, and the tokens to predict there.

    Args:
        prefix: number of leading tokens that are the same in all rows and have no loss. Their keys and values are
            computed once and precede the other tokens of each row; gradients flow through them as if each row had
            its own.
        keys: the prefix's keys and values, if they are known.

    Returns:
        (hidden states (N, d), target ids (N,)), row by row.
    """
    body = causal_lm(model).model
    device = body.embed_tokens.weight.device
    suffixes = [Encoded(r.ids[prefix:], r.mask[prefix:]) for r in rows] if prefix else rows
    columns = (
        [torch.tensor(r.ids) for r in suffixes],
        [torch.ones(len(r.ids), dtype=torch.long) for r in suffixes],
        [torch.tensor([*r.mask[1:], False]) for r in suffixes],
    )
    ids, attention, positions = (pad_sequence(column, batch_first=True).to(device) for column in columns)
    cache: dict[str, Any] = {"use_cache": False}
    if prefix:
        keys = copy.deepcopy(keys) if keys is not None else prefix_keys(model, rows[0].ids[:prefix])
        keys.batch_repeat_interleave(len(rows))
        attention = torch.cat([attention.new_ones(len(rows), prefix), attention], 1)
        cache = {"use_cache": True, "past_key_values": keys}
    hidden = body(input_ids=ids, attention_mask=attention, **cache).last_hidden_state[positions]
    if (scale := output_scale(causal_lm(model).config)) != 1.0:
        hidden = hidden * scale
    return hidden, torch.roll(ids, -1, 1)[positions]


def backward(model: Any, loss: LinearCrossEntropy, micro_batch: MicroBatch, total: int, weight: float = 1.0) -> float:
    """Run a micro-batch forward and backward, adding its gradient to the adapter's parameters.

    Args:
        total: number of loss positions of the whole batch; the micro-batches' results add up to the batch's mean.
        weight: factor of the gradient.

    Returns:
        The micro-batch's summed loss divided by `total`.
    """
    hidden, target = hidden_at_loss(model, micro_batch.rows, micro_batch.prefix)
    values, gradient = loss.losses_and_gradients(hidden.detach(), target)
    hidden.backward(gradient * (weight / total))
    return float(values.double().sum() / total)


@torch.no_grad()
def token_losses(model: Any, rows: Sequence[Encoded], size: int = 8) -> list[list[float]]:
    """Return the loss (nats) of each loss position, row by row. Sets the model to eval mode.

    Args:
        size: rows per forward pass; padding, and so the last digits of a loss, depend on it.

    Raises:
        Interrupted: a signal arrived between two forward passes.
    """
    model.eval()
    losses: list[list[float]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    loss = cross_entropy(model)
    for start in range(0, len(order), size):
        STOP.check()
        batch = order[start : start + size]
        hidden, target = hidden_at_loss(model, [rows[i] for i in batch])
        values = iter(loss.losses(hidden, target).tolist())
        for i in batch:
            losses[i] = [next(values) for _ in range(loss_tokens([rows[i]]))]
    return losses
