"""Compute the divergence between a model and a teacher per token, from the teacher's K most likely tokens and the rest.

Shapes: N loss positions, d hidden size, V vocabulary size, n positions of a chunk, P = K + 1 parts of a distribution:
the probabilities of the K tokens, and of all others together. Divergences are in nats. As in `loss`, the gradient is
computed in closed form, chunk by chunk, and no logits of a whole batch are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from selfalign.training.loss import CHUNK, LinearCrossEntropy, times_head
from selfalign.training.response_rows import TurnEnd

Kind = Literal["forward", "reverse", "js"]

_BLOCK = 64
"""Rows of a block in the search for the most likely tokens."""
_TINY = 1e-30
"""Replaces a probability of 0 in a logarithm."""


@dataclass(frozen=True, slots=True)
class TopTokens:
    """A teacher's distribution at N positions."""

    ids: torch.Tensor
    """The most likely tokens, (N, K)."""
    parts: torch.Tensor
    """Their probabilities, and that of all other tokens, (N, K + 1)."""


def divergence(teacher: torch.Tensor, model: torch.Tensor, kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the divergence of N distributions and its derivative with respect to the model's parts.

    Args:
        teacher: probabilities, (P, N).
        model: the same of the model, (P, N).

    Returns:
        (divergence (N,), derivative (P, N)).
    """
    teacher, model = teacher.clamp_min(_TINY), model.clamp_min(_TINY)
    if kind == "forward":
        return (teacher * (teacher / model).log()).sum(0), -teacher / model
    if kind == "reverse":
        ratio = (model / teacher).log()
        return (model * ratio).sum(0), ratio + 1
    mean = (teacher + model) / 2
    ratio = (model / mean).log()
    return ((teacher * (teacher / mean).log()).sum(0) + (model * ratio).sum(0)) / 2, ratio / 2


class LinearDivergence(LinearCrossEntropy):
    """Cross-entropy, and the divergence from a teacher, of hidden states under a frozen linear head."""

    @torch.no_grad()
    def top_tokens(
        self, hidden: torch.Tensor, target: torch.Tensor, lengths: list[int], count: int, end: TurnEnd
    ) -> TopTokens:
        """Return the teacher's most likely tokens at the positions of some responses, `end.response` among them.

        The probability of ending the turn counts as that of `end.response`. If the teacher would have written a joined
        token where the response has its plain one, it would end the turn at the next position.

        Args:
            hidden: the teacher's last hidden states, (N, d).
            target: the response's token at each position, (N,).
            lengths: the number of positions of each response.
            count: K.
        """
        ids, tops, ends = [], [], [hidden.new_zeros(1, dtype=torch.float32)]
        for h, t in zip(hidden.split(CHUNK), target.split(CHUNK), strict=True):
            _, softmax, _ = self._losses_and_softmax(h, t)
            ends.append(_move_ends(softmax, t, end))
            probability = softmax[end.response].clone()
            softmax[end.response] = 2  # the first of the most likely tokens
            values, indices = _largest(softmax, count)
            values[0] = probability
            ids.append(indices.T)
            softmax.scatter_(0, indices, 0)
            tops.append(torch.cat([values, softmax.sum(0, keepdim=True)]).T)
        ended = torch.cat(ends)[:-1, None]
        first = torch.tensor([0, *lengths[:-1]], device=hidden.device).cumsum(0)
        ended[first] = 0
        parts = torch.cat(tops) * (1 - ended)
        parts[:, :1] += ended
        return TopTokens(torch.cat(ids), parts)

    @torch.no_grad()
    def divergences_and_gradients(
        self, hidden: torch.Tensor, target: torch.Tensor, teacher: TopTokens, kind: Kind, clip: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each position's divergence (N,), at most `clip`, and the gradient with respect to `hidden` (N, d).

        A position with a larger divergence has a gradient of the weight clip / divergence.
        """
        gradient, values, start = torch.empty_like(hidden), torch.empty(len(hidden), device=hidden.device), 0
        for h, t in zip(hidden.split(CHUNK), target.split(CHUNK), strict=True):
            part = slice(start, start + len(h))
            ids = teacher.ids[part].T
            _, softmax, cap_slope = self._losses_and_softmax(h, t)
            top = softmax.gather(0, ids)
            softmax.scatter_(0, ids, 0)
            model = torch.cat([top, softmax.sum(0, keepdim=True)])
            value, slopes = divergence(teacher.parts[part].T, model, kind)
            slopes = (slopes - (model * slopes).sum(0)) * (clip / value.clamp_min(_TINY)).clamp(max=1)
            values[part] = value.clamp(max=clip)
            # A token's logit changes the parts by its probability times (its part's slope - their mean slope).
            softmax.mul_(slopes[-1]).scatter_(0, ids, top * slopes[:-1])
            if cap_slope is not None:
                softmax.mul_(cap_slope)
            low, high = softmax.aminmax(dim=1)
            gradient[part] = times_head(softmax, self._head, self._likely_tokens(torch.maximum(high, -low), ids))
            start += len(h)
        return values, gradient


def _move_ends(softmax: torch.Tensor, target: torch.Tensor, end: TurnEnd) -> torch.Tensor:
    """Move the probabilities of tokens that end the turn to those that the model has instead, (V, n), in place.

    Returns:
        The probability that the turn has ended after each target, (n,).
    """
    softmax[end.response] += softmax[end.turn]
    softmax[end.turn] = 0
    if not end.joined:
        return softmax.new_zeros(len(target))
    joined, plain = (torch.tensor(ids, device=softmax.device) for ids in (end.joined, end.plain))
    moved = softmax[joined]
    softmax[joined] = 0
    softmax.index_add_(0, plain, moved)
    at_target = (moved * (plain[:, None] == target)).sum(0)
    return at_target / softmax.gather(0, target[None])[0].clamp_min(_TINY)


def _largest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest values of each column, and their rows, as `topk` does, (K, n); seven times faster.

    They are in the blocks of rows with the largest maxima.
    """
    if len(values) % _BLOCK or len(values) <= _BLOCK * count:
        return tuple(values.topk(min(count, len(values)), 0))
    blocks = values.view(-1, _BLOCK, values.shape[1]).amax(1).topk(count, 0).indices
    rows = blocks[:, None] * _BLOCK + torch.arange(_BLOCK, device=values.device)[:, None]
    rows = rows.flatten(0, 1)
    top = values.gather(0, rows).topk(count, 0)
    return top.values, rows.gather(0, top.indices)
