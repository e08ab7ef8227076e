"""The loss and its gradient, against autograd and transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from selfalign.model.dialogue import Encoded
from selfalign.training import forward
from selfalign.training.loss import CHUNK, LinearCrossEntropy

ROWS = [Encoded([2, *range(10, 20 + k), 1], [False] * 5 + [True] * (7 + k)) for k in range(6)]


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("n", [1, CHUNK + 3])
def test_loss_and_gradient_equal_autograd(n: int, cap: float | None) -> None:
    torch.manual_seed(0)
    head, hidden, target = torch.randn(500, 16) * 2, torch.randn(n, 16), torch.randint(0, 500, (n,))
    leaf = hidden.clone().requires_grad_(True)
    logits = F.linear(leaf, head)
    expected = F.cross_entropy(torch.tanh(logits / cap) * cap if cap else logits, target, reduction="none")
    expected.sum().backward()
    ours = LinearCrossEntropy(head, cap)
    losses, gradient = ours.losses_and_gradients(hidden, target)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-5)
    assert leaf.grad is not None
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.losses(hidden, target), expected.detach(), rtol=1e-5, atol=1e-5)


def test_unlikely_tokens_are_skipped_in_the_gradient_only() -> None:
    torch.manual_seed(0)
    head, hidden, target = torch.randn(50_000, 16), torch.randn(40, 16) * 2, torch.randint(0, 50_000, (40,))
    leaf = hidden.clone().requires_grad_(True)
    expected = F.cross_entropy(F.linear(leaf, head), target, reduction="sum")
    expected.backward()
    ours = LinearCrossEntropy(head, None)
    softmax = torch.softmax(head @ hidden.T, 0)
    likely = ours._likely_tokens(softmax.amax(1), target)
    assert likely is not None and len(likely) < 35_000 and set(target.tolist()) <= set(likely.tolist())
    losses, gradient = ours.losses_and_gradients(hidden, target)
    assert float(losses.sum()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert leaf.grad is not None
    assert float((gradient - leaf.grad).norm() / leaf.grad.norm()) < 1e-4


def test_token_losses_equal_transformers_with_masked_labels(tiny_gemma: Any) -> None:
    losses = forward.token_losses(tiny_gemma, ROWS, size=4)
    for row, mine in zip(ROWS, losses, strict=True):
        ids = torch.tensor([row.ids])
        labels = torch.where(torch.tensor([row.mask]), ids, -100)
        with torch.no_grad():
            expected = float(tiny_gemma(input_ids=ids, labels=labels).loss)
        assert sum(mine) / len(mine) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize(("n", "vocabulary", "scale"), [(1, 500, 1), (CHUNK + 3, 500, 1), (5, 50_000, 2)])
def test_kl_divergence_and_gradient_equal_autograd(n: int, vocabulary: int, scale: int, cap: float | None) -> None:
    torch.manual_seed(0)
    # Of the large vocabulary, only a few tokens are likely, and the gradient skips the others.
    head, hidden, reference = torch.randn(vocabulary, 16), torch.randn(n, 16) * scale, torch.randn(n, 16) * scale
    leaf = hidden.clone().requires_grad_(True)
    logits, wanted = F.linear(leaf, head), F.linear(reference, head)
    if cap:
        logits, wanted = torch.tanh(logits / cap) * cap, torch.tanh(wanted / cap) * cap
    expected = F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="none").sum(1)
    expected.sum().backward()
    values, gradient = LinearCrossEntropy(head, cap).kl_and_gradients(hidden, reference)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-4, atol=1e-5)
    assert leaf.grad is not None
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-3, atol=1e-4)
