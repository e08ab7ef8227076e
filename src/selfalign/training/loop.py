"""Train a LoRA adapter in one process on one device; a resumed run has the losses of an uninterrupted one.

AdamW without weight decay, warm-up and then linear or cosine decay to zero, clipped gradients (SELF-ALIGN, arXiv
2305.03047, appendix D). A step's loss is the mean over the loss tokens of its batch, in nats.

Begin with `train`; `Trainer.step` is one optimiser step. `loss` computes the loss, `forward` the forward pass;
`preference` trains on pairs.
"""

from __future__ import annotations

import hashlib
import math
import random
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
from selfalign.training.device import free_memory
from selfalign.training.forward import backward, causal_lm, cross_entropy, hidden_at_loss, loss_tokens
from selfalign.training.loss import LinearCrossEntropy
from selfalign.training.record import TrainingRecord
from selfalign.training.settings import ANCHOR_ROWS, TrainingSettings

Value = TypeVar("Value")
OnStep = Callable[[int, int, float, int], None]
TOLERANCE = 1e-3
"""Relative difference up to which a loss with a shared prefix counts as equal (float32 rounds to 1e-6)."""
_ANCHOR_TOKENS = 32
"""Tokens of a step's anchors that are compared: the output layer is most of their cost."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, as torch names it."""

_FUSED_ON = ("cuda",)
"""Devices on which AdamW updates all parameters in one kernel, instead of several for each."""


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
    kind: type[Trainer] | None = None,
    anchors: Sequence[Encoded] = (),
) -> TrainingRecord:
    """Train the model's adapter in place.

    Args:
        model: a PEFT model; only its adapter's parameters require gradients.
        seed: seed of the order of the rows and of dropout.
        validation: held-out rows to measure the loss on.
        checkpoint: file to resume from, if it exists, and to save the state to.
        on_step: called with (step, steps, loss, tokens so far) after each optimiser step.
        say: receives a message about anything unusual.
        kind: the class that computes the loss; by default `Trainer`.
        anchors: texts on which the model must stay close to the base (`TrainingSettings.anchor`).

    Raises:
        UserError: there are no rows, or the loss became infinite or NaN.
        Resumable: memory does not suffice for a single row, or the disk is full.
        Interrupted: a signal arrived; the state is saved.
    """
    if not rows:
        raise UserError("no training rows: every response was dropped; see `selfalign status`")
    trainer = (kind or Trainer)(model, rows, config, seed, validation, checkpoint, say)
    trainer.anchors = list(anchors)
    trainer.resume()
    trainer.validate()
    while not trainer.done:
        if STOP.is_set:
            trainer.save(True)
            STOP.check()
        loss = trainer.step()
        on_step(len(trainer.record.losses), len(trainer.batches), loss, trainer.record.tokens)
        trainer.validate()
        trainer.save(trainer.done)
    with torch.no_grad():  # restore the best adapter, if training may stop early (`patience`)
        for name, value in trainer.best.items():
            trainer.parameters[name].copy_(value)
    return trainer.record


def rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Return the learning rate of a step (counted from 0), as a fraction of its peak."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress


class Trainer:
    """The state of a training run between two optimiser steps. The arguments are those of `train`."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Encoded],
        config: TrainingSettings,
        seed: int,
        validation: Sequence[Encoded] = (),
        checkpoint: Checkpoint | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.config, self.seed, self.say = model, config, seed, say
        self.state: dict[str, torch.Tensor] = {}
        """Further tensors that checkpoints save and restore."""
        rows, self.validation = self.prepare(rows, validation)
        self.checkpoint = checkpoint
        self.batches = training_batches(rows, config.batch_size, config.epochs, seed)
        self.steps_per_epoch = math.ceil(len(rows) / config.batch_size)
        self.warmup = min(config.warmup_steps, len(self.batches) // 4)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.fused = all(p.device.type in _FUSED_ON for p in self.parameters.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), config.learning_rate, (0.9, 0.999), weight_decay=0.0, fused=self.fused or None
        )
        self.loss = self.output_loss()
        self.record = TrainingRecord(micro_batch_tokens=config.micro_batch_tokens)
        self.anchors: list[Encoded] = []
        """Texts on which the model must stay close to the base."""
        self.best: dict[str, torch.Tensor] = {}
        """With `patience`: the parameters with the lowest held-out loss so far."""
        self.stopped_early = False
        self._saved_at = time.monotonic()
        # Layers that are recomputed in the backward pass keep no keys and values that rows could share.
        self.share_prefixes = not config.gradient_checkpointing
        if config.gradient_checkpointing:
            model.enable_input_require_grads()
            lm = causal_lm(model)
            getattr(lm, "activation_checkpointing_enable", lm.gradient_checkpointing_enable)()
        else:
            self._check_prefix_sharing()

    def prepare(
        self, rows: Sequence[Encoded], validation: Sequence[Encoded]
    ) -> tuple[Sequence[Encoded], Sequence[Encoded]]:
        """Return the rows and the held-out rows as this class trains on them and measures them."""
        return rows, validation

    def output_loss(self) -> LinearCrossEntropy:
        """Return the loss under the model's output layer."""
        return cross_entropy(self.model)

    @property
    def done(self) -> bool:
        return self.stopped_early or len(self.record.losses) >= len(self.batches)

    def _check_prefix_sharing(self) -> None:
        """Turn prefix sharing off if it changes the loss or the gradient, as some models' caches do.

        Compares two rows of the micro-batch with the longest shared prefix.
        """
        candidates = (mb for batch in self.batches for mb in micro_batches(batch, self.config.micro_batch_tokens))
        shared = (mb for mb in candidates if mb.prefix and len(mb.rows) > 1)
        longest = max(shared, key=lambda mb: mb.prefix, default=None)
        if longest is None:
            return
        rows = longest.rows[:2]
        self.model.eval()
        try:
            (expected_loss, expected), (loss, gradient) = (
                self._loss_and_gradient(MicroBatch(rows, prefix)) for prefix in (0, longest.prefix)
            )
            is_float32 = next(iter(self.model.parameters())).dtype == torch.float32
            tolerance = TOLERANCE if is_float32 else 30 * TOLERANCE
            same_gradient = bool((gradient - expected).norm() <= 10 * tolerance * expected.norm())
            # Near 0, the rounding of bfloat16 is a large part of a loss.
            self.share_prefixes = same_gradient and abs(expected_loss - loss) <= tolerance * max(1, expected_loss)
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            # If memory ran out, nothing was compared: keep sharing, and let the steps use smaller micro-batches.
            self.share_prefixes = out_of_memory(error)
        self.optimizer.zero_grad(set_to_none=True)
        if not self.share_prefixes:
            self.say("this model's cache cannot be shared between rows: each row computes its whole prompt (slower)")

    def _loss_and_gradient(self, micro_batch: MicroBatch) -> tuple[float, torch.Tensor]:
        """Return a micro-batch's mean loss and the gradient of all parameters as one vector, in float64."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward(self.model, self.loss, micro_batch, loss_tokens(micro_batch.rows))
        gradients = [p.grad.flatten() for p in self.parameters.values() if p.grad is not None]
        return loss, torch.cat(gradients).double()

    # -- optimiser steps -----------------------------------------------------------------------------------------

    def step(self) -> float:
        """Make one optimiser step and return its loss.

        Raises:
            UserError: the loss or the gradient is infinite or NaN.
            Resumable: memory does not suffice for a single row.
        """
        number, start = len(self.record.losses), time.monotonic()
        batch = self.batches[number]
        learning_rate = self.config.learning_rate * rate(number, len(self.batches), self.warmup, self.config.schedule)
        self.model.train()
        loss = self._accumulate_gradients(batch, number)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            peak = self.config.learning_rate
            raise UserError(
                f"the loss became {loss} at step {number + 1} (gradient norm {norm}): lower the learning rate "
                f"({peak}), for example with --set engrave.learning_rate={peak / 4:g}; earlier stages are kept"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._within_memory((), lambda _: self.optimizer.step())
        self.optimizer.zero_grad(set_to_none=True)
        self.record.losses.append(loss)
        self.record.rates.append(learning_rate)
        texts = self.texts(batch)
        self.record.tokens += sum(len(r.ids) for r in texts)
        self.record.loss_tokens += loss_tokens(texts)
        self.record.seconds += time.monotonic() - start
        return loss

    def _accumulate_gradients(self, batch: Sequence[Encoded], number: int) -> float:
        """Compute the batch's mean loss, leaving its gradient on the parameters. Raises as `_within_memory`."""

        def compute(parts: list[MicroBatch]) -> float:
            self.optimizer.zero_grad(set_to_none=True)
            # Dropout depends on the step alone, so that a resumed run draws the same numbers.
            digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8]) >> 1)
            loss = self.backward(batch, parts)
            if self.anchors:
                self._backward_anchors(number)
            return loss

        return self._within_memory(batch, compute)

    def split(self, rows: Sequence[Encoded]) -> list[MicroBatch]:
        """Return the micro-batches of these rows."""
        return micro_batches(rows, self.record.micro_batch_tokens, self.share_prefixes)

    def backward(self, batch: Sequence[Encoded], parts: Sequence[MicroBatch]) -> float:
        """Run a batch, in micro-batches, forward and backward; return its loss."""
        total = loss_tokens(batch)
        return sum(backward(self.model, self.loss, part, total) for part in parts)

    def _backward_anchors(self, number: int) -> None:
        """Add the gradient of `anchor` times the mean KL(base, model) over random tokens of `ANCHOR_ROWS` anchors."""
        rng = random.Random(f"{self.seed} {number}")  # noqa: S311
        rows = rng.sample(self.anchors, min(ANCHOR_ROWS, len(self.anchors)))
        self.model.eval()
        with torch.no_grad(), self.model.disable_adapter():
            base, _ = hidden_at_loss(self.model, rows)
        self.model.train()
        picks = sorted(rng.sample(range(len(base)), min(_ANCHOR_TOKENS, len(base))))
        hidden = hidden_at_loss(self.model, rows)[0][picks]
        values, gradient = self.loss.kl_and_gradients(hidden.detach(), base[picks])
        hidden.backward(gradient * (self.config.anchor / len(picks)))
        self.record.divergences[number:] = [float(values.mean())]

    def texts(self, batch: Sequence[Encoded]) -> list[Encoded]:
        """Return all texts that the model reads for a batch."""
        return list(batch)

    def _within_memory(self, rows: Sequence[Encoded], compute: Callable[[list[MicroBatch]], Value]) -> Value:
        """Call `compute` on the rows' micro-batches; when memory runs out, halve their size and call it again.

        Raises:
            Resumable: memory does not suffice for a single row.
        """
        step = len(self.record.losses) + 1
        while True:
            parts = self.split(rows) if rows else []
            try:
                return compute(parts)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self.loss.free_buffer()
            free_memory()
            if all(len(part.rows) <= part.together for part in parts):
                raise Resumable(
                    f"out of memory at step {step} with one row at a time: lower engrave.max_length, set "
                    "engrave.gradient_checkpointing, or close other programs; then run the same command again"
                )
            self.record.micro_batch_tokens = max(1, self.record.micro_batch_tokens // 2)
            self.say(f"out of memory at step {step}: continuing with {self.record.micro_batch_tokens} tokens at once")

    # -- held-out loss and early stopping ------------------------------------------------------------------------

    def validate(self) -> None:
        """Measure the held-out loss if it is due, and decide whether to stop early.

        Raises:
            UserError: the held-out loss is infinite or NaN.
            Resumable: memory does not suffice for a single row; the state is saved.
            Interrupted: a signal arrived; the state is saved, and a resumed run repeats the measurement.
        """
        step = len(self.record.losses)
        every = self.config.validate_every or self.steps_per_epoch
        due = step and (step % every == 0 or step == len(self.batches))
        if not self.validation or not due or step in dict(self.record.validation):
            return
        try:
            mean = self._validation_loss()
        except (Interrupted, Resumable):
            self.save(True)
            raise
        if not math.isfinite(mean):
            raise UserError(f"the held-out loss became {mean} at step {step}: lower the learning rate")
        self.record.validation.append((step, mean))
        if self.config.patience is None:
            return
        if mean <= min(value for _, value in self.record.validation):
            self.record.best_step = step
            self.best = {n: p.detach().clone() for n, p in self.parameters.items()}
        measurements_since_best = sum(at > self.record.best_step for at, _ in self.record.validation)
        self.stopped_early = measurements_since_best >= self.config.patience

    def _validation_loss(self) -> float:
        """Return the mean loss per loss token of the held-out rows."""
        self.model.eval()

        def compute(parts: list[MicroBatch]) -> float:
            total = 0.0
            for part in parts:
                STOP.check()
                with torch.no_grad():
                    total += float(self.loss.losses(*hidden_at_loss(self.model, part.rows, part.prefix)).sum())
            return total / max(1, loss_tokens(self.validation))

        return self._within_memory(self.validation, compute)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, now: bool) -> None:
        """Save the state if `now`, or if the last save is at least `checkpoint_seconds` ago."""
        due = time.monotonic() - self._saved_at >= self.config.checkpoint_seconds
        if self.checkpoint is None or not self.record.losses or not (now or due):
            return
        tensors = dict(self.parameters)
        for name, parameter in self.parameters.items():
            state = self.optimizer.state[parameter]
            tensors |= {f"{key} {name}": state[key] for key in _MOMENTS if key in state}
        tensors |= {**{f"best {name}": value for name, value in self.best.items()}, **self.state}
        record = {  # keys as in the checkpoints of earlier versions
            "made": asdict(self.record),
            "dtype": str(next(iter(self.model.parameters())).dtype).removeprefix("torch."),
            "asked": self.config.micro_batch_tokens,
            "stopped": self.stopped_early,
        }
        self.checkpoint.save(tensors, record)
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the checkpoint, if there is a usable one."""
        if self.checkpoint is None:
            return
        try:
            if state := self.checkpoint.load(self.parameters):
                self._restore(*state)
        except UnusableCheckpoint as reason:
            self.say(f"{self.checkpoint.path} is not used ({reason}): training starts from the beginning")

    def _restore(self, tensors: dict[str, torch.Tensor], saved: dict[str, Any]) -> None:
        """Restore a saved state. Raises UnusableCheckpoint."""
        names = [f"{key} {name}" for name in self.parameters for key in _MOMENTS]
        try:
            record = saved["made"]
            self.record = TrainingRecord(
                **{**record, "validation": [(step, loss) for step, loss in record["validation"]]}
            )
            moments, self.stopped_early = {name: tensors[name] for name in names}, bool(saved["stopped"])
            for name, value in self.state.items():
                value.copy_(tensors[name])
            if saved["asked"] != self.config.micro_batch_tokens:  # the recipe has changed since
                self.record.micro_batch_tokens = self.config.micro_batch_tokens
        except (KeyError, TypeError, ValueError):
            raise UnusableCheckpoint("another version wrote it") from None
        self.record.resumed_at, self.record.seconds_before = len(self.record.losses), self.record.seconds
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
                state = {key: moments[f"{key} {name}"].to(parameter.device) for key in _MOMENTS}
                place = parameter.device if self.fused else None  # where AdamW keeps its count
                count = torch.tensor(float(self.record.resumed_at), device=place)
                self.optimizer.state[parameter] = {"step": count, **state}
        self.best = {n: tensors[f"best {n}"] for n in self.parameters if f"best {n}" in tensors}
        self.say(f"resuming after step {self.record.resumed_at} of {len(self.batches)}")


def out_of_memory(error: BaseException) -> bool:
    """Return whether a torch error means that memory ran out, on the CPU or an accelerator."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text
    )
