"""Train on the model's own responses: its distribution at each token approaches that of a teacher with a longer prompt.

The teacher is the base: the same weights with the adapter off. It reads the response after a prompt of its own, which
begins with the constitution. Its most likely tokens at every position are computed once, before the first step. The
loss of a step is the mean `divergence` over the loss tokens of its rows (GKD, arXiv 2306.13649).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from selfalign.model.dialogue import Encoded
from selfalign.system.signals import STOP
from selfalign.training.batches import MicroBatch, common_prefix_length, micro_batches
from selfalign.training.divergence import LinearDivergence, TopTokens
from selfalign.training.forward import hidden_at_loss, loss_tokens, output_loss, prefix_keys
from selfalign.training.loop import TOLERANCE, Trainer, out_of_memory
from selfalign.training.response_rows import ResponseRow, TeacherRow

TOP = 64
"""The teacher's most likely tokens that are kept at each position."""
_EXEMPLARS = 24
"""Rows with as many common tokens after the principles have the same exemplars."""


class DistillationTrainer(Trainer):
    """A `Trainer` of `ResponseRow`s. The held-out loss is the SFT loss of the validation rows."""

    loss: LinearDivergence

    def prepare(
        self, rows: Sequence[Encoded], validation: Sequence[Encoded]
    ) -> tuple[Sequence[Encoded], Sequence[Encoded]]:
        """Number the responses."""
        self._tops: dict[int, TopTokens] = {}
        """The teacher's distributions for the rows of the remaining steps."""
        return [replace(r, teacher=replace(r.teacher, number=n)) for n, r in enumerate(_responses(rows))], validation

    def output_loss(self) -> LinearDivergence:
        """Return the loss, which also computes the divergence from the teacher."""
        return output_loss(self.model, LinearDivergence)

    def split(self, rows: Sequence[Encoded]) -> list[MicroBatch]:
        if not isinstance(rows[0], TeacherRow):
            return super().split(rows)
        # Rows with the same exemplars; without gradients, four times the tokens need no more memory.
        groups: list[list[Encoded]] = []
        for row in sorted(rows, key=lambda row: row.ids):
            if not groups or common_prefix_length(groups[-1][-1].ids, row.ids) < _EXEMPLARS:
                groups.append([])
            groups[-1].append(row)
        return [part for group in groups for part in micro_batches(group, 4 * self.record.micro_batch_tokens)]

    def step(self) -> float:
        if not self._tops:
            start = time.monotonic()
            self.ask_teacher()
            self.record.seconds += time.monotonic() - start
        return super().step()

    def backward(self, batch: Sequence[Encoded], parts: Sequence[MicroBatch]) -> float:
        total, loss, config = loss_tokens(batch), 0.0, self.config.on_policy
        for part in parts:
            hidden, target = hidden_at_loss(self.model, part.rows, part.prefix)
            tops = [self._tops[row.teacher.number] for row in _responses(part.rows)]
            teacher = TopTokens(torch.cat([top.ids for top in tops]), torch.cat([top.parts for top in tops]))
            values, gradient = self.loss.divergences_and_gradients(
                hidden.detach(), target, teacher, config.divergence, config.clip
            )
            hidden.backward(gradient / total)
            loss += float(values.double().sum() / total)
        return loss

    @torch.no_grad()
    def ask_teacher(self) -> None:
        """Compute the teacher's distributions for the rows of the remaining steps. Raises as `_within_memory`."""
        rows = {
            row.teacher.number: row for batch in self.batches[len(self.record.losses) :] for row in _responses(batch)
        }
        teachers = [row.teacher for row in rows.values()]
        self.model.eval()
        with self.model.disable_adapter():
            keys = _PrefixKeys(self.model, teachers)
            if not keys.usable:
                self.say("this model's cache cannot be shared between rows: each computes the whole constitution")

            def compute(parts: list[MicroBatch]) -> None:
                for part in parts:
                    STOP.check()
                    hidden, target = keys.hidden(part)
                    texts = [row for row in part.rows if isinstance(row, TeacherRow)]
                    lengths = [loss_tokens([row]) for row in texts]
                    top = self.loss.top_tokens(hidden, target, lengths, TOP, texts[0].end)
                    for row, ids, shares in zip(texts, top.ids.split(lengths), top.parts.split(lengths), strict=True):
                        kept = torch.tensor(rows[row.number].mask[-len(ids) :], device=ids.device)
                        self._tops[row.number] = TopTokens(ids[kept], shares[kept])

            self._within_memory([keys.without_common(row) for row in teachers], compute)


class _PrefixKeys:
    """Computes hidden states of rows; the keys and values of what many rows begin with are computed once.

    All rows begin with the principles, and the rows of a micro-batch then have the same exemplars.
    """

    def __init__(self, model: Any, rows: Sequence[TeacherRow]) -> None:
        self._model = model
        first, last = min(row.ids for row in rows), max(row.ids for row in rows)
        # The token before a row's first loss token belongs to the row.
        limit = min(row.mask.index(True) - 1 for row in rows)
        self._common = first[: min(common_prefix_length(first, last), limit)]
        self._keys = prefix_keys(model, self._common) if self._common else None
        self._prefix, self._prefix_keys = list[int](), self._keys
        self.usable = bool(self._common) and self._agrees(rows[0])

    def _agrees(self, row: Encoded) -> bool:
        """Return whether the model's hidden states are the same with kept keys and values."""
        try:
            plain, _ = hidden_at_loss(self._model, [row])
            kept, _ = hidden_at_loss(self._model, [row], len(self._common), self._keys)
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            return out_of_memory(error)
        tolerance = TOLERANCE if plain.dtype == torch.float32 else 30 * TOLERANCE
        return bool((plain - kept).norm() <= tolerance * plain.norm())

    def without_common(self, row: TeacherRow) -> TeacherRow:
        """Return what follows the tokens that all rows begin with."""
        return replace(row, ids=row.ids[len(self._common) :], mask=row.mask[len(self._common) :])

    def hidden(self, part: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `hidden_at_loss` does, for rows without their common tokens."""
        common = self._common
        rows = [Encoded([*common, *row.ids], [False] * len(common) + row.mask) for row in part.rows]
        if not self.usable:
            return hidden_at_loss(self._model, rows)
        prefix = part.rows[0].ids[: part.prefix]
        if prefix != self._prefix:
            keys = prefix_keys(self._model, prefix, self._keys) if prefix else self._keys
            self._prefix, self._prefix_keys = prefix, keys
        return hidden_at_loss(self._model, rows, len(common) + len(prefix), self._prefix_keys)


def _responses(rows: Sequence[Encoded]) -> list[ResponseRow]:
    return [row for row in rows if isinstance(row, ResponseRow)]
