"""The LoRA loop: one process, one device; it goes on after a stop with the losses of an undisturbed run.

AdamW without weight decay, warm-up and then linear or cosine decay to zero, clipped gradients, the loss as the mean
over the batch's loss tokens (SELF-ALIGN, arXiv 2305.03047, appendix D).
"""

from __future__ import annotations

import gc
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from selfalign.errors import Interrupted, Resumable, UserError
from selfalign.model.dialogue import Encoded
from selfalign.system.signals import STOP
from selfalign.training.batches import MicroBatch, micro_batches, training_batches
from selfalign.training.checkpoint import Checkpoint, UnusableCheckpoint
from selfalign.training.forward import backward, causal_lm, cross_entropy, hidden_at_loss
from selfalign.training.record import TrainingRecord
from selfalign.training.settings import TrainingSettings

Value = TypeVar("Value")
OnStep = Callable[[int, int, float, int], None]
_SAME = 1e-3
"""Relative difference of a part's loss up to which sharing a prefix is taken for exact (float32 rounds to 1e-6)."""


def rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate of a step (from 0), as a share of its peak."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress


def train(
    model: Any,
    rows: Sequence[Encoded],
    config: TrainingSettings,
    seed: int,
    *,
    validation: Sequence[Encoded] = (),
    checkpoint: Checkpoint | None = None,
    on_step: OnStep = lambda step, steps, loss, tokens: None,
    say: Callable[[str], None] = lambda text: None,
) -> TrainingRecord:
    """Train the model's adapter in place.

    Args:
        validation: rows to measure the loss on, none of which is among `rows`.
        checkpoint: where the state is kept, and gone on from where there is one.
        on_step: gets (step, steps, loss, tokens seen) after each optimiser step.
        say: gets a line where something is out of the ordinary.

    Raises:
        UserError: there is nothing to train on, or the loss is no number any more.
        Resumable: one row alone is too much for the memory, or the disk is full.
        Interrupted: a signal came; the state is saved.
    """
    if not rows:
        raise UserError("no training rows: every response was dropped; see `selfalign status`")
    loop = Trainer(model, rows, config, seed, validation, checkpoint, say)
    loop.resume()
    loop.validate()
    while not loop.done:
        loop.stop_if_asked()
        loss = loop.step()
        on_step(len(loop.made.losses), len(loop.order), loss, loop.made.tokens)
        loop.validate()
        loop.save(loop.done)
    return loop.finish()


class Trainer:
    """The state between two steps. Takes the same as `train`."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Encoded],
        config: TrainingSettings,
        seed: int,
        validation: Sequence[Encoded],
        checkpoint: Checkpoint | None,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.config, self.seed, self.say = model, config, seed, say
        self.validation, self.checkpoint = validation, checkpoint
        self.order = training_batches(rows, config.batch_size, config.epochs, seed)
        self.per_epoch = math.ceil(len(rows) / config.batch_size)
        self.warmup = min(config.warmup_steps, len(self.order) // 4)
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=0.0
        )
        self.head = cross_entropy(model)
        self.made = TrainingRecord(micro_batch_tokens=config.micro_batch_tokens)
        self.best: dict[str, torch.Tensor] = {}
        self.stopped = False
        self._saved = time.monotonic()
        # Recomputed layers keep no keys and values that rows could share.
        self.share = not config.gradient_checkpointing
        if config.gradient_checkpointing:
            model.enable_input_require_grads()
            inner = causal_lm(model)
            getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)()
        else:
            self._check_sharing()

    @property
    def done(self) -> bool:
        return self.stopped or len(self.made.losses) >= len(self.order)

    def _check_sharing(self) -> None:
        """Sharing a prefix must change nothing; a model whose cache does otherwise is trained without.

        Compared on two rows of the part that shares the most tokens: the loss, and the gradient.
        """
        cut = (part for batch in self.order for part in micro_batches(batch, self.config.micro_batch_tokens))
        shared = (part for part in cut if part.prefix and len(part.rows) > 1)
        part = max(shared, key=lambda p: p.prefix, default=None)
        if part is None:
            return
        rows = part.rows[:2]
        self.model.eval()
        try:
            (plain, expected), (loss, gradient) = (self._probe(MicroBatch(rows, n)) for n in (0, part.prefix))
            tolerance = _SAME if next(iter(self.model.parameters())).dtype == torch.float32 else 30 * _SAME
            same = bool((gradient - expected).norm() <= 10 * tolerance * expected.norm())
            self.share = same and abs(plain - loss) <= tolerance * abs(plain)
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            self.share = out_of_memory(error)  # then nothing was compared: the steps go on with less at once
        self.optimizer.zero_grad(set_to_none=True)
        if not self.share:
            self.say("this model's cache cannot be shared between rows: each computes its prompt (slower)")

    def _probe(self, part: MicroBatch) -> tuple[float, torch.Tensor]:
        """(loss, all gradients as one vector) of a part."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward(self.model, self.head, part, _loss_tokens(part.rows))
        grads = [p.grad.flatten() for p in self.trained.values() if p.grad is not None]
        return loss, torch.cat(grads).double()

    # -- a step --------------------------------------------------------------------------------------------------

    def step(self) -> float:
        """One optimiser step; returns its loss.

        Raises:
            UserError: the loss is no number.
        """
        number, start = len(self.made.losses), time.monotonic()
        batch = self.order[number]
        share = self.config.learning_rate * rate(number, len(self.order), self.warmup, self.config.schedule)
        self.model.train()
        loss = self._gradients(batch, number)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            peak = self.config.learning_rate
            raise UserError(
                f"the loss became {loss} at step {number + 1} (gradient norm {norm}): lower the learning rate "
                f"({peak}), as with --set engrave.learning_rate={peak / 4:g}; what the stages before made is kept"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = share
        self._within_memory(self.optimizer.step, lambda: 1)
        self.optimizer.zero_grad(set_to_none=True)
        self.made.losses.append(loss)
        self.made.rates.append(share)
        self.made.tokens += sum(len(r.ids) for r in batch)
        self.made.loss_tokens += _loss_tokens(batch)
        self.made.seconds += time.monotonic() - start
        return loss

    def _gradients(self, batch: Sequence[Encoded], number: int) -> float:
        """The batch's loss, its gradient left on the parameters; in smaller parts where memory runs out.

        Raises:
            Resumable: one row alone is too much.
        """
        total, cut = _loss_tokens(batch), [MicroBatch([], 0)]

        def compute() -> float:
            nonlocal cut
            self.optimizer.zero_grad(set_to_none=True)
            # So dropout follows from the step alone: a resumed run draws the same.
            torch.manual_seed(_step_seed(self.seed, number))
            cut = micro_batches(batch, self.made.micro_batch_tokens, self.share)
            return sum(backward(self.model, self.head, part, total) for part in cut)

        return self._within_memory(compute, lambda: max(len(part.rows) for part in cut))

    def _within_memory(self, compute: Callable[[], Value], rows_at_once: Callable[[], int]) -> Value:
        """Compute, again with half of the tokens at once where memory runs out.

        Args:
            rows_at_once: how many rows the last try computed at once.

        Raises:
            Resumable: one row alone is too much.
        """
        step = len(self.made.losses) + 1
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self.head.forget()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if rows_at_once() <= 1:
                raise Resumable(
                    f"out of memory at step {step} with one row at a time: lower engrave.max_length, set "
                    "engrave.gradient_checkpointing, or close other programs; then run the same command again"
                )
            self.made.micro_batch_tokens = max(1, self.made.micro_batch_tokens // 2)
            self.say(f"out of memory at step {step}: going on with {self.made.micro_batch_tokens} tokens at once")

    # -- the loss on other rows ----------------------------------------------------------------------------------

    def validate(self) -> None:
        """Measure the loss on the rows that are not trained on, where it is due; see whether training should end.

        Raises:
            Interrupted: a signal came; the state is saved, and the measurement made when training goes on.
        """
        step = len(self.made.losses)
        every = self.config.validate_every or self.per_epoch
        due = step and (step % every == 0 or step == len(self.order))
        if not self.validation or not due or step in dict(self.made.validation):
            return
        try:
            mean = self._validation_loss()
        except (Interrupted, Resumable):
            self.save(True)
            raise
        if not math.isfinite(mean):
            raise UserError(f"the held-out loss became {mean} at step {step}: lower the learning rate")
        self.made.validation.append((step, mean))
        if self.config.patience is None:
            return
        if mean <= min(value for _, value in self.made.validation):
            self.made.best_step = step
            self.best = {n: p.detach().clone() for n, p in self.trained.items()}
        since = sum(at > self.made.best_step for at, _ in self.made.validation)
        self.stopped = since >= self.config.patience

    def _validation_loss(self) -> float:
        """Mean loss per token of the rows that are not trained on. Raises as `validate` and `_within_memory`."""
        self.model.eval()
        cut = [MicroBatch([], 0)]

        def compute() -> float:
            nonlocal cut
            cut, total = micro_batches(self.validation, self.made.micro_batch_tokens, self.share), 0.0
            for part in cut:
                STOP.check()
                with torch.no_grad():
                    total += float(self.head.losses(*hidden_at_loss(self.model, part.rows, part.prefix)).sum())
            return total / max(1, _loss_tokens(self.validation))

        return self._within_memory(compute, lambda: max(len(part.rows) for part in cut))

    def finish(self) -> TrainingRecord:
        """The record; the adapter is the best one where training may stop early."""
        if self.best:
            with torch.no_grad():
                for name, value in self.best.items():
                    self.trained[name].copy_(value)
        return self.made

    # -- stop and go on ------------------------------------------------------------------------------------------

    def stop_if_asked(self) -> None:
        """Raises Interrupted once a signal came, with the state saved."""
        if STOP.is_set:
            self.save(True)
            STOP.check()

    def save(self, now: bool) -> None:
        """Keep the state, now or if the last time is long enough ago."""
        due = time.monotonic() - self._saved >= self.config.checkpoint_seconds
        if self.checkpoint is None or not self.made.losses or not (now or due):
            return
        tensors = dict(self.trained)
        for name, parameter in self.trained.items():
            state = self.optimizer.state[parameter]
            tensors |= {f"{key} {name}": state[key] for key in _MOMENTS if key in state}
        tensors |= {f"best {name}": value for name, value in self.best.items()}
        dtype = str(next(iter(self.model.parameters())).dtype).removeprefix("torch.")
        asked = {"dtype": dtype, "asked": self.config.micro_batch_tokens, "stopped": self.stopped}
        self.checkpoint.save(tensors, {"made": asdict(self.made), **asked})
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one that can be used."""
        if self.checkpoint is None:
            return
        try:
            if found := self.checkpoint.load(self.trained):
                self._take(*found)
        except UnusableCheckpoint as why:
            self.say(f"{self.checkpoint.path} is not used ({why}): training begins anew")

    def _take(self, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        """Put a saved state in place. Raises UnusableCheckpoint."""
        names = [f"{key} {name}" for name in self.trained for key in _MOMENTS]
        try:
            made = record["made"]
            self.made = TrainingRecord(**{**made, "validation": [(step, loss) for step, loss in made["validation"]]})
            moments, self.stopped = {name: tensors[name] for name in names}, bool(record["stopped"])
            if (
                record["asked"] != self.config.micro_batch_tokens
            ):  # the recipe's word counts again where it is another one
                self.made.micro_batch_tokens = self.config.micro_batch_tokens
        except (KeyError, TypeError, ValueError):
            raise UnusableCheckpoint("another version wrote it") from None
        self.made.resumed_at, self.made.seconds_before = len(self.made.losses), self.made.seconds
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[name])
                own = {key: moments[f"{key} {name}"].to(parameter.device) for key in _MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(self.made.resumed_at)), **own}
        self.best = {n: tensors[f"best {n}"] for n in self.trained if f"best {n}" in tensors}
        self.say(f"going on after step {self.made.resumed_at} of {len(self.order)}")


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _loss_tokens(batch: Sequence[Encoded]) -> int:
    return sum(sum(r.mask[1:]) for r in batch)


def _step_seed(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:8]) >> 1


def out_of_memory(error: BaseException) -> bool:
    """Whether torch says that memory ran out, on a processor or an accelerator."""
    words = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in words or "not enough memory" in words or "out of memory" in words
    )
