"""Cross-entropy over a large vocabulary: exact loss and gradient, in chunks that share one buffer.

torch's autograd would keep logits, their softmax and its gradient: three tensors of N x V. Here a chunk's logits are
turned into its softmax in place and multiplied with the head's weight at once, so that N x V never exists and the
memory is not asked for again at every step (benchmarks/training.py).
"""

from __future__ import annotations

import torch

CHUNK = 512
"""Positions at once: 512 x 262,144 floats are 537 MB."""


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
            softmax[t, torch.arange(len(t), device=t.device)] -= 1
            if slope is not None:
                softmax.mul_(slope)
            gradient[at : at + len(t)] = softmax.T.to(self._head.dtype) @ self._head
            at += len(t)
        return loss, gradient
