"""Cross-entropy over a large vocabulary: exact loss and gradient, in chunks that share one buffer.

torch's autograd would keep logits, their softmax and its gradient: three tensors of N x V. Here a chunk's logits are
turned into its softmax in place and multiplied with the head's weight at once, so that N x V never exists and the
memory is not asked for again at every step (benchmarks/training.py).
"""

from __future__ import annotations

import torch

CHUNK = 256
"""Positions at once: 256 x 262,144 floats are 268 MB."""


class CrossEntropy:
    """Loss of hidden states under a frozen head.

    Args:
        head: (V, d), frozen.
        cap: logits are capped to cap * tanh(logits / cap), for models that do so.
    """

    def __init__(self, head: torch.Tensor, cap: float | None) -> None:
        self._head = head.detach()
        self._cap = cap
        self._buffer = torch.empty(0)

    def _softmax(
        self, hidden: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(losses (n,), softmax (n, V), derivative of the cap (n, V) or None) of one chunk."""
        n, vocabulary = len(hidden), len(self._head)
        if self._buffer.numel() < n * vocabulary:
            self._buffer = torch.empty(min(CHUNK, max(n, 1)), vocabulary)
        logits = self._buffer[:n]
        torch.mm(hidden, self._head.T, out=logits)
        slope = None
        if self._cap:
            logits.div_(self._cap).tanh_()
            slope = 1 - logits.square()
            logits.mul_(self._cap)
        picked = logits.gather(1, target[:, None])[:, 0]
        top = logits.amax(1, keepdim=True)
        logits.sub_(top).exp_()
        total = logits.sum(1, keepdim=True)
        losses = (total.log() + top)[:, 0] - picked
        return losses, logits.div_(total), slope

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
            rows = torch.arange(len(t))
            softmax[rows, t] -= 1
            if slope is not None:
                softmax.mul_(slope)
            torch.mm(softmax, self._head, out=gradient[at : at + len(t)])
            at += len(t)
        return loss, gradient
