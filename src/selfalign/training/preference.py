"""Train on preference pairs: DPO (arXiv 2305.18290) with an SFT term, the base with the adapter off as the reference.

The loss of a step, over its pairs (x, chosen, rejected) and the loss tokens of all its chosen responses:

    mean over pairs of -log sigmoid(m) + sft_weight * mean over tokens of -log p(token)
    m = beta * ((log p(chosen | x) - log r(chosen | x)) - (log p(rejected | x) - log r(rejected | x)))

where p is the model and r the reference. Rows without a rejected response have the second term only. The reference's
log-probabilities are computed in the first epoch, just before the step of their batch, and kept in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.functional import logsigmoid

from selfalign.model.dialogue import Encoded
from selfalign.training.batches import MicroBatch, PairRow, pair_micro_batches
from selfalign.training.forward import backward, hidden_at_loss, loss_tokens
from selfalign.training.loop import Trainer


def preference_loss(
    sums: torch.Tensor, reference: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loss, margin m and the derivative of the loss with respect to `sums`, of K pairs.

    Args:
        sums: negative log-probability of chosen and rejected response under the model, (K, 2).
        reference: the same under the reference, (K, 2).

    Returns:
        (loss (K,), margin (K,), derivative (K, 2)).
    """
    ratios = reference - sums
    margin = beta * (ratios[:, 0] - ratios[:, 1])
    slope = beta * torch.sigmoid(-margin)
    return -logsigmoid(margin), margin, torch.stack([slope, -slope], 1)


class PreferenceTrainer(Trainer):
    """A `Trainer` whose rows may be pairs. The held-out loss is the SFT loss on chosen responses, as with sft."""

    def prepare(
        self, rows: Sequence[Encoded], validation: Sequence[Encoded]
    ) -> tuple[Sequence[Encoded], Sequence[Encoded]]:
        """Number the pairs, and keep the chosen responses of the held-out rows."""
        self.state["reference"] = torch.zeros(len(rows), 2, dtype=torch.float64)
        numbered = [replace(row, number=n) if isinstance(row, PairRow) else row for n, row in enumerate(rows)]
        return numbered, [Encoded(row.ids, row.mask) for row in validation]

    def split(self, rows: Sequence[Encoded]) -> list[MicroBatch]:
        return pair_micro_batches(rows, self.record.micro_batch_tokens, self.share_prefixes)

    def texts(self, batch: Sequence[Encoded]) -> list[Encoded]:
        return [*batch, *(row.rejected for row in batch if isinstance(row, PairRow))]

    def step(self) -> float:
        number = len(self.record.losses)
        if number < self.steps_per_epoch:
            self._compute_reference([row for row in self.batches[number] if isinstance(row, PairRow)])
        return super().step()

    def backward(self, batch: Sequence[Encoded], parts: Sequence[MicroBatch]) -> float:
        total, pairs = loss_tokens(batch), sum(isinstance(row, PairRow) for row in batch)
        weight, loss, margins = self.config.sft_weight, 0.0, list[torch.Tensor]()
        for part in parts:
            if part.together == 1:
                loss += weight * backward(self.model, self.loss, part, total, weight)
                continue
            hidden, target = hidden_at_loss(self.model, part.rows, part.prefix)
            losses, gradient = self.loss.losses_and_gradients(hidden.detach(), target)
            sums, lengths = _sums(losses, part)
            values, margin, slopes = preference_loss(sums, self._reference(part).to(sums.device), self.config.beta)
            slopes = slopes / pairs
            slopes[:, 0] += weight / total
            scale = slopes.flatten().repeat_interleave(lengths)
            hidden.backward(gradient * scale[:, None].to(gradient.dtype))
            loss += float(values.sum() / pairs + weight * sums[:, 0].sum() / total)
            margins.append(margin)
        joined = torch.cat(margins) if margins else None
        # A step that ran out of memory is computed again, and replaces its numbers.
        step = len(self.record.losses)
        self.record.margins[step:] = [None if joined is None else float(joined.mean())]
        self.record.accuracies[step:] = [None if joined is None else float((joined > 0).double().mean())]
        return loss

    def _reference(self, part: MicroBatch) -> torch.Tensor:
        return self.state["reference"][_numbers(part)]

    @torch.no_grad()
    def _compute_reference(self, pairs: Sequence[PairRow]) -> None:
        """Compute the reference's log-probabilities of these pairs. Raises as `_within_memory`."""

        def compute(parts: list[MicroBatch]) -> None:
            for part in parts:
                losses = self.loss.losses(*hidden_at_loss(self.model, part.rows, part.prefix))
                self.state["reference"][_numbers(part)] = _sums(losses, part)[0].cpu()

        self.model.eval()
        with self.model.disable_adapter():
            self._within_memory(pairs, compute)


def _numbers(part: MicroBatch) -> list[int]:
    return [row.number for row in part.rows if isinstance(row, PairRow)]


def _sums(losses: torch.Tensor, part: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed losses of a micro-batch of pairs, (pairs, 2) in float64, and the loss tokens of each row."""
    lengths = [loss_tokens([row]) for row in part.rows]
    sums = torch.stack([values.sum() for values in losses.double().split(lengths)])
    return sums.view(-1, 2), torch.tensor(lengths, device=losses.device)
