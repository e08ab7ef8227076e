"""Compute the training loss: cross-entropy over a large vocabulary, without storing the logits of a whole batch.

Shapes: N loss positions, d hidden size, V vocabulary size, n <= `CHUNK` positions of a chunk. Losses are in nats.

With autograd, torch would keep three tensors of shape (N, V): logits, softmax and its gradient. Here the gradient is
computed in closed form, softmax - one_hot(target), chunk by chunk: a chunk's logits become its softmax in place, in a
buffer that all chunks share, and are at once multiplied by the head's weight (benchmarks/training.py).

To change the loss, change `LinearCrossEntropy._losses_and_softmax` (the values) and `losses_and_gradients`
(their gradient); tests/training/test_loss.py compares both with autograd. The class also computes the held-out losses
of training and evaluation (`forward.token_losses`). Folders made by `selfalign export RUN launch` train with TRL's
loss.
"""

from __future__ import annotations

import torch

CHUNK = 512
"""Positions of a chunk: 512 x 262,144 logits in float32 take 537 MB."""
NEGLIGIBLE = 2.0**-24
"""A token whose probability is below this at every position of a chunk is skipped in the gradient, not in the loss."""
_TINY = 1e-30
"""Replaces a probability of 0 in a logarithm."""
_LARGE_VOCABULARY = 1 << 15
"""Vocabulary size from which skipping these tokens saves time."""


class LinearCrossEntropy:
    """Cross-entropy of hidden states under a frozen linear head.

    Args:
        head: weight of the output layer, (V, d).
        cap: bound of the final logit soft-capping, logits = cap * tanh(logits / cap); None if the model has none.
    """

    def __init__(self, head: torch.Tensor, cap: float | None) -> None:
        self._head = head.detach()
        self._cap = cap
        self._buffer = torch.empty(0, device=head.device)

    def free_buffer(self) -> None:
        """Free the buffer's memory; the next call allocates it again."""
        self._buffer = self._buffer.new_empty(0)

    @torch.no_grad()
    def losses(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of each position, (N,) in float32.

        Args:
            hidden: last hidden states, (N, d).
            target: id of the next token at each position, (N,).
        """
        chunks = zip(hidden.split(CHUNK), target.split(CHUNK), strict=True)
        parts = [self._losses_and_softmax(h, t)[0] for h, t in chunks]
        return torch.cat(parts) if parts else hidden.new_zeros(0)

    @torch.no_grad()
    def losses_and_gradients(self, hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each position (N,), and its gradient with respect to `hidden` (N, d); see `losses`."""
        gradient = torch.empty_like(hidden)
        loss, start = torch.empty(len(target), device=hidden.device), 0
        for h, t in zip(hidden.split(CHUNK), target.split(CHUNK), strict=True):
            losses, softmax, cap_slope = self._losses_and_softmax(h, t)
            loss[start : start + len(t)] = losses
            likely = self._likely_tokens(softmax.amax(1), t)
            softmax[t, torch.arange(len(t), device=t.device)] -= 1  # now the gradient with respect to the logits
            if cap_slope is not None:
                softmax.mul_(cap_slope)
            gradient[start : start + len(t)] = times_head(softmax, self._head, likely)
            start += len(t)
        return loss, gradient

    @torch.no_grad()
    def kl_and_gradients(self, hidden: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return KL(reference, model) of each position (N,), and its gradient with respect to `hidden` (N, d).

        Args:
            hidden: last hidden states, (N, d).
            reference: last hidden states of the reference, (N, d).
        """
        gradient = torch.empty_like(hidden)
        values, start = torch.empty(len(hidden), device=hidden.device), 0
        for h, r in zip(hidden.split(CHUNK // 2), reference.split(CHUNK // 2), strict=True):
            unused = torch.zeros(len(h), dtype=torch.long, device=h.device)
            expected = self._losses_and_softmax(r, unused)[1].clone()
            _, softmax, cap_slope = self._losses_and_softmax(h, unused)
            ratio = expected.clamp_min(_TINY).log_().sub_(softmax.clamp_min(_TINY).log_())
            values[start : start + len(h)] = ratio.mul_(expected).sum(0)
            softmax.sub_(expected)  # now the gradient with respect to the logits
            if cap_slope is not None:
                softmax.mul_(cap_slope)
            low, high = softmax.aminmax(dim=1)
            likely = self._likely_tokens(torch.maximum(high, -low), unused)
            gradient[start : start + len(h)] = times_head(softmax, self._head, likely)
            start += len(h)
        return values, gradient

    def _losses_and_softmax(
        self, hidden: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Compute a chunk: hidden (n, d), target (n,).

        Returns:
            (losses (n,), softmax (V, n) in the buffer, derivative of the soft-capping (V, n) or None).
        """
        logits = self._logits(hidden)
        cap_slope = None
        if self._cap:
            logits.div_(self._cap).tanh_()
            cap_slope = 1 - logits.square()
            logits.mul_(self._cap)
        target_logits = logits.gather(0, target[None])[0]
        maximum = logits.amax(0)
        logits.sub_(maximum).exp_()
        total = logits.sum(0)
        losses = total.log() + maximum - target_logits
        return losses, logits.div_(total), cap_slope

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (V, n) of hidden states (n, d) in float32, in the buffer.

        The vocabulary is the first dimension because that is a fifth faster.
        """
        size = len(hidden) * len(self._head)
        if self._buffer.numel() < size:
            self._buffer = self._buffer.new_empty(min(CHUNK, max(len(hidden), 1)) * len(self._head))
        logits = self._buffer[:size].view(len(self._head), len(hidden))
        if self._head.dtype == logits.dtype:
            return torch.mm(self._head, hidden.T, out=logits)
        return logits.copy_(self._head @ hidden.to(self._head.dtype).T)

    def _likely_tokens(self, largest: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """Return the ids of the tokens that count in a chunk's gradient; None if skipping the others saves nothing.

        Args:
            largest: the largest value of each token in the chunk, (V,).
            targets: tokens that count in any case.
        """
        if len(largest) < _LARGE_VOCABULARY:
            return None
        is_likely = largest > NEGLIGIBLE
        is_likely[targets] = True
        likely = is_likely.nonzero()[:, 0]
        return likely if len(likely) < 0.7 * len(largest) else None


def times_head(weights: torch.Tensor, head: torch.Tensor, likely: torch.Tensor | None) -> torch.Tensor:
    """Return weights.T @ head, over the `likely` rows only: weights (V, n), head (V, d) -> (n, d)."""
    if likely is None:
        return weights.T.to(head.dtype) @ head
    result = head.new_zeros(weights.shape[1], head.shape[1])
    for rows in likely.split(_LARGE_VOCABULARY):  # in parts, because index_select copies the rows
        result.addmm_(weights.index_select(0, rows).T.to(head.dtype), head.index_select(0, rows))
    return result
