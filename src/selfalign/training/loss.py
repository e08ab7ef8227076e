"""Cross-entropy over a large vocabulary, in chunks that share one buffer.

torch's autograd would keep logits, their softmax and its gradient: three tensors of N x V. Here a chunk's logits are
turned into its softmax in place and multiplied with the head's weight at once, so that N x V never exists and the
memory is not asked for again at every step (benchmarks/training.py).
"""

from __future__ import annotations

import torch

CHUNK = 512
"""Positions at once: 512 x 262,144 floats are 537 MB."""


NEGLIGIBLE = 2.0**-24
"""A token that is less likely than this at every position of a chunk is left out of the gradient (not of the loss)."""
_LARGE = 1 << 15
"""Size of a vocabulary from which that is worth it."""


class CrossEntropy:
    """Loss of hidden states under a frozen head.

    Args:
        head: (V, d), frozen.
        cap: logits are capped to cap * tanh(logits / cap), for models that do so.
    """

    def __init__(self, head: torch.Tensor, cap: float | None) -> None:
        self._head = head.detach()
        self._cap = cap
        self._buffer = torch.empty(0, device=head.device)

    def forget(self) -> None:
        """Give the buffer's memory back."""
        self._buffer = self._buffer.new_empty(0)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(V, n) in float32, in the buffer: the vocabulary first is a fifth faster than last."""
        size = len(hidden) * len(self._head)
        if self._buffer.numel() < size:
            self._buffer = self._buffer.new_empty(min(CHUNK, max(len(hidden), 1)) * len(self._head))
        logits = self._buffer[:size].view(len(self._head), len(hidden))
        if self._head.dtype == logits.dtype:
            return torch.mm(self._head, hidden.T, out=logits)
        return logits.copy_(self._head @ hidden.to(self._head.dtype).T)

    def _softmax(
        self, hidden: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(losses (n,), softmax (V, n), derivative of the cap (V, n) or None) of one chunk."""
        logits = self._logits(hidden)
        slope = None
        if self._cap:
            logits.div_(self._cap).tanh_()
            slope = 1 - logits.square()
            logits.mul_(self._cap)
        picked = logits.gather(0, target[None])[0]
        top = logits.amax(0)
        logits.sub_(top).exp_()
        total = logits.sum(0)
        losses = total.log() + top - picked
        return losses, logits.div_(total), slope

    def _likely(self, softmax: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
        """Tokens that enter the gradient of a chunk; None where leaving the others out saves nothing."""
        if len(softmax) < _LARGE:
            return None
        marked = softmax.amax(1) > NEGLIGIBLE
        marked[target] = True
        found = marked.nonzero()[:, 0]
        return found if len(found) < 0.7 * len(softmax) else None

    @torch.no_grad()
    def losses(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of each position: hidden (N, d), target (N,) -> (N,)."""
        parts = [self._softmax(h, t)[0] for h, t in zip(hidden.split(CHUNK), target.split(CHUNK), strict=True)]
        return torch.cat(parts) if parts else hidden.new_zeros(0)

    @torch.no_grad()
    def loss_and_gradient(self, hidden: torch.Tensor, target: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Summed loss and its gradient by the hidden states: (N, d), (N,) -> float, (N, d)."""
        gradient = torch.empty_like(hidden)
        loss, at = 0.0, 0
        for h, t in zip(hidden.split(CHUNK), target.split(CHUNK), strict=True):
            losses, softmax, slope = self._softmax(h, t)
            loss += float(losses.sum())
            likely = self._likely(softmax, t)
            softmax[t, torch.arange(len(t), device=t.device)] -= 1
            if slope is not None:
                softmax.mul_(slope)
            gradient[at : at + len(t)] = _weighted(softmax, self._head, likely)
            at += len(t)
        return loss, gradient


def _weighted(softmax: torch.Tensor, head: torch.Tensor, likely: torch.Tensor | None) -> torch.Tensor:
    """The head's rows summed by weight: (V, n), (V, d) -> (n, d)."""
    if likely is None:
        return softmax.T.to(head.dtype) @ head
    found = head.new_zeros(softmax.shape[1], head.shape[1])
    for rows in likely.split(_LARGE):  # some at a time: each is copied
        found.addmm_(softmax.index_select(0, rows).T.to(head.dtype), head.index_select(0, rows))
    return found
