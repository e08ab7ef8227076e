"""The training loop: shared prefixes, resuming, memory, NaN, early stopping."""

from __future__ import annotations

import copy
import math
import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfalign.errors import Interrupted, Resumable, UserError
from selfalign.model.dialogue import Encoded
from selfalign.system.signals import STOP
from selfalign.training import forward, loop, lora
from selfalign.training.batches import held_out_ids, length_grouped_batches, micro_batches, training_batches
from selfalign.training.checkpoint import Checkpoint, UnusableCheckpoint, saved_dtype
from selfalign.training.record import TrainingRecord
from selfalign.training.settings import TrainingSettings

CONFIG = TrainingSettings(  # type: ignore[call-arg]
    rank=4, alpha=8, dropout=0.1, learning_rate=0.02, epochs=2, batch_size=4, warmup_steps=2, checkpoint_seconds=0
)


def row(kind: int, own: int, answer: int) -> Encoded:
    """A row of one of two system prompts of 40 tokens, a message, and an answer with loss."""
    prompt = [2, 3, 4, *range(10 + 40 * kind, 47 + 40 * kind)]
    rng = random.Random(own * 1000 + answer)
    ids = [*prompt, *(rng.randrange(100, 290) for _ in range(own + answer)), 1]
    return Encoded(ids, [False] * (40 + own) + [True] * (answer + 1))


PLAIN = [Encoded(list(range(20 + n, 50 + n)), [False] + [True] * 29) for n in range(6)]
"""Anchors: texts without turns."""
ROWS = [row(n // 10, 2 + n % 5, 3 + n) for n in range(20)]


def trained(base: Any, **more: Any) -> tuple[TrainingRecord, dict[str, torch.Tensor]]:
    config = CONFIG.model_copy(update=more.pop("config", {}))
    model = lora.with_new_adapter(copy.deepcopy(base), config, seed=0)
    record = loop.train(model, more.pop("rows", ROWS), config, seed=0, **more)
    return record, {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


# -- batches and micro-batches ------------------------------------------------------------------------------------

tokens = st.lists(st.integers(0, 3), min_size=2, max_size=30)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_and_share_common_prefixes(texts: list[Any], budget: int) -> None:
    rows = [Encoded([*a, *b], [False] * len(a) + [True] * len(b)) for a, b in texts]
    parts = micro_batches(rows, budget)
    assert sorted(id(r) for p in parts for r in p.rows) == sorted(map(id, rows))
    for part in parts:
        assert len({tuple(r.ids[: part.prefix]) for r in part.rows}) == 1
        # A row's first token with loss and the one before it are its own.
        assert all(r.mask.index(True) > part.prefix for r in part.rows if part.prefix)
        width = max(len(r.ids) for r in part.rows) - part.prefix
        assert len(part.rows) == 1 or width * len(part.rows) + part.prefix <= budget


def test_rows_of_one_system_prompt_share_it() -> None:
    parts = micro_batches(ROWS, 10_000)
    assert sorted((len(p.rows), p.prefix) for p in parts) == [(10, 40), (10, 40)]
    assert all(p.prefix == 0 for p in micro_batches(ROWS, 10_000, share=False))


def test_batches_hold_every_row_once_per_epoch() -> None:
    grouped = length_grouped_batches(ROWS, 3, random.Random(1))
    assert sorted(id(r) for b in grouped for r in b) == sorted(map(id, ROWS))
    assert [len(b) for b in grouped].count(3) == 6 and len(training_batches(ROWS, 3, 2, 5)) == 14
    assert training_batches(ROWS, 3, 2, 5) == training_batches(ROWS, 3, 2, 5) != training_batches(ROWS, 3, 2, 6)


# -- shared prefixes -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny_gemma", "tiny_llama"])
def test_shared_prefix_changes_neither_loss_nor_gradient(family: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(family)
    config = CONFIG.model_copy(update={"dropout": 0.0, "targets": ["q_proj", "k_proj", "v_proj", "down_proj"]})
    model = lora.with_new_adapter(base, config, seed=0)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    head, seen = forward.cross_entropy(model), {}
    for share in (False, True):
        model.zero_grad(set_to_none=True)
        cut = micro_batches(ROWS, 400, share)
        assert any(p.prefix for p in cut) == share
        loss = sum(forward.backward(model, head, part, 100) for part in cut)
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        seen[share] = loss, gradients
    assert seen[True][0] == pytest.approx(seen[False][0], rel=1e-5)
    assert seen[True][1].keys() == seen[False][1].keys() and len(seen[True][1]) == 16
    for name, gradient in seen[True][1].items():
        torch.testing.assert_close(gradient, seen[False][1][name], rtol=1e-3, atol=1e-6)


def test_model_with_unshareable_cache_trains_without_sharing(tiny_gemma: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = trained(tiny_gemma, config={"dropout": 0.0})
    from transformers import DynamicCache

    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", lambda self, n: self.crop(1))
    messages: list[str] = []
    record, _ = trained(tiny_gemma, config={"dropout": 0.0}, say=messages.append)
    assert "cannot be shared" in messages[0] and record.losses == pytest.approx(expected.losses, rel=1e-4)


# -- stop and resume ------------------------------------------------------------------------------------------------


def test_run_stopped_at_any_step_resumes_with_equal_losses(
    tiny_gemma: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal stops the run after each step in turn; dropout, moments, schedule, order and anchors are restored."""
    more: dict[str, Any] = {"validation": [row(0, 3, 7), row(1, 4, 5)], "anchors": PLAIN}
    expected, weights = trained(tiny_gemma, **more, config={"anchor": 1.0})
    assert len(expected.losses) == 10
    for stop in range(1, 10):
        checkpoint = Checkpoint(tmp_path / f"{stop}.safetensors", "key")

        def stopped(step: int, *_: object, stop: int = stop) -> None:
            monkeypatch.setattr(STOP, "_signum", 15 if step == stop else None)

        with pytest.raises(Interrupted):
            trained(
                tiny_gemma, **more, checkpoint=checkpoint, on_step=stopped,
                config={"anchor": 1.0, "checkpoint_seconds": 1e9},
            )  # fmt: skip
        monkeypatch.setattr(STOP, "_signum", None)
        record, again = trained(tiny_gemma, **more, checkpoint=checkpoint, config={"anchor": 1.0})
        assert record.resumed_at == stop and record.divergences == pytest.approx(expected.divergences, abs=1e-6)
        assert record.losses == pytest.approx(expected.losses, abs=1e-6) and record.rates == expected.rates
        assert (
            sum(record.validation, ()) == pytest.approx(sum(expected.validation, ()))
            and record.tokens == expected.tokens
        )
        for name, value in weights.items():
            torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_fused_optimiser_resumes_with_equal_losses(
    tiny_gemma: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = trained(tiny_gemma)
    monkeypatch.setattr(loop, "_FUSED_ON", ("cpu",))
    checkpoint = Checkpoint(tmp_path / "state", "key")

    def stop(step: int, *_: object) -> None:
        if step == 4:
            monkeypatch.setattr(STOP, "_signum", signal.SIGTERM)

    with pytest.raises(Interrupted):
        trained(tiny_gemma, checkpoint=checkpoint, on_step=stop)
    monkeypatch.setattr(STOP, "_signum", None)
    record, _ = trained(tiny_gemma, checkpoint=checkpoint)
    assert record.resumed_at == 4 and record.losses == pytest.approx(expected.losses, rel=1e-5)


def test_run_killed_at_random_instants_ends_with_equal_losses(tiny_gemma: Any, tmp_path: Path) -> None:
    expected, weights = trained(tiny_gemma)
    checkpoint, rng, kills = Checkpoint(tmp_path / "c.safetensors", "key"), random.Random(0), 0
    for _ in range(60):
        child = os.fork()
        if child == 0:
            trained(tiny_gemma, checkpoint=checkpoint)
            os._exit(0)
        time.sleep(rng.uniform(0, 1.5 * expected.seconds))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if kills >= 8 and checkpoint.path.exists():
            break
    record, again = trained(tiny_gemma, checkpoint=checkpoint)
    assert kills >= 5 and record.resumed_at > 0
    assert record.losses == pytest.approx(expected.losses, abs=1e-6)
    assert all(torch.allclose(again[n], weights[n], rtol=0, atol=1e-6) for n in weights)


def test_finished_run_makes_no_steps(tiny_gemma: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", "key")
    expected, weights = trained(tiny_gemma, checkpoint=checkpoint)
    steps: list[int] = []
    record, again = trained(tiny_gemma, checkpoint=checkpoint, on_step=lambda step, *_: steps.append(step))
    assert not steps and record.losses == expected.losses
    assert all(torch.equal(again[n], weights[n]) for n in weights)


def test_damaged_or_foreign_checkpoint_is_reported_and_not_used(tiny_gemma: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", "key")
    expected, _ = trained(tiny_gemma, checkpoint=checkpoint)
    whole = checkpoint.path.read_bytes()
    rng = random.Random(0)
    like: dict[str, torch.Tensor] = {}
    assert checkpoint.load(like) is not None
    with pytest.raises(UnusableCheckpoint, match="have changed"):
        Checkpoint(checkpoint.path, "another").load(like)
    with pytest.raises(UnusableCheckpoint, match="no x of the shape"):
        checkpoint.load({"x": torch.zeros(2)})
    for _ in range(100):
        checkpoint.path.write_bytes(whole[: rng.randrange(len(whole))])
        with pytest.raises(UnusableCheckpoint):
            checkpoint.load(like)
        at = rng.randrange(len(whole))
        checkpoint.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            checkpoint.load(like)
        except UnusableCheckpoint:
            continue
        # The only bits that may change are blanks in the header.
        assert 0 < at < 8 + int.from_bytes(whole[:8], "little") and whole[at : at + 1] == b" "
    checkpoint.path.write_bytes(whole[:100])
    messages: list[str] = []
    record, _ = trained(tiny_gemma, checkpoint=checkpoint, say=messages.append)
    assert "is not used (the file is incomplete)" in messages[0] and record.losses == expected.losses


# -- errors -----------------------------------------------------------------------------------------------


def test_micro_batches_are_halved_when_memory_runs_out(tiny_gemma: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = trained(tiny_gemma, config={"dropout": 0.0})
    real = forward.hidden_at_loss

    def small(model: Any, rows: list[Encoded], prefix: int = 0) -> Any:
        if len(rows) * max(len(r.ids) for r in rows) > 130:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
        return real(model, rows, prefix)

    monkeypatch.setattr(forward, "hidden_at_loss", small)
    messages: list[str] = []
    record, _ = trained(tiny_gemma, config={"dropout": 0.0}, say=messages.append)
    assert record.losses == pytest.approx(expected.losses, rel=1e-4) and 1 < record.micro_batch_tokens < 1024
    assert "continuing with 512 tokens at once" in messages[0]

    monkeypatch.setattr(forward, "hidden_at_loss", lambda *_: torch.empty(2**46))
    with pytest.raises(Resumable, match="one row at a time"):
        trained(tiny_gemma)


def test_out_of_memory_in_validation_saves_the_state(
    tiny_gemma: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", "key")
    real = loop.hidden_at_loss
    monkeypatch.setattr(loop, "hidden_at_loss", lambda *_: torch.empty(2**46))
    with pytest.raises(Resumable, match="out of memory at step"):
        trained(tiny_gemma, validation=ROWS[:3], checkpoint=checkpoint, config={"checkpoint_seconds": 1e9})
    monkeypatch.setattr(loop, "hidden_at_loss", real)
    record, _ = trained(tiny_gemma, validation=ROWS[:3], checkpoint=checkpoint)
    assert record.resumed_at == 5 and [step for step, _ in record.validation] == [5, 10]


def test_changed_micro_batch_tokens_apply_to_a_resumed_run(tiny_gemma: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", "key")
    trained(tiny_gemma, checkpoint=checkpoint, config={"micro_batch_tokens": 900})
    assert trained(tiny_gemma, checkpoint=checkpoint, config={"micro_batch_tokens": 64})[0].micro_batch_tokens == 64
    assert saved_dtype(checkpoint.path) == "float32" and saved_dtype(tmp_path / "none") is None


def test_nan_loss_is_an_error_that_advises_a_lower_rate(tiny_gemma: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", "key")
    with pytest.raises(UserError, match=r"loss became nan at step \d+ .*lower the learning rate"):
        trained(tiny_gemma, config={"learning_rate": 1e30, "max_grad_norm": 1e30}, checkpoint=checkpoint)


def test_one_row_trains_and_no_row_is_an_error(tiny_gemma: Any) -> None:
    record, _ = trained(tiny_gemma, rows=ROWS[:1], config={"epochs": 3})
    assert len(record.losses) == 3 and record.losses[-1] < record.losses[0]
    with pytest.raises(UserError, match="no training rows"):
        trained(tiny_gemma, rows=[])


# -- schedule, validation, dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_warms_up_and_decays_to_zero(schedule: str) -> None:
    rates = [loop.rate(s, 50, 5, schedule) for s in range(50)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert all(a > b for a, b in pairwise(rates[5:])) and 0 < rates[-1] < 0.03
    assert rates[27] == pytest.approx(0.5 * (1 + math.cos(math.pi * 22 / 45)) if schedule == "cosine" else 23 / 45)


def test_early_stopping_keeps_the_best_adapter(tiny_gemma: Any) -> None:
    # Rows of noise: learning them makes others worse.
    other = [row(0, 3, 20), row(1, 4, 20)]
    settings = {"validate_every": 1, "patience": 3, "epochs": 20, "learning_rate": 0.05, "dropout": 0.0}
    record, weights = trained(tiny_gemma, rows=ROWS[:8], validation=other, config=settings)
    assert len(record.losses) < 40 and record.best_step == len(record.losses) - 3
    best = min(value for _, value in record.validation)
    model = lora.with_new_adapter(copy.deepcopy(tiny_gemma), CONFIG, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    losses = forward.token_losses(model, other)
    assert sum(map(sum, losses)) / sum(map(len, losses)) == pytest.approx(best, rel=1e-5)


def test_gradient_checkpointing_changes_no_loss(tiny_llama: Any) -> None:
    expected, _ = trained(tiny_llama, config={"dropout": 0.0})
    record, _ = trained(tiny_llama, config={"dropout": 0.0, "gradient_checkpointing": True})
    assert record.losses == pytest.approx(expected.losses, rel=1e-4)


def test_bfloat16_losses_are_close_to_float32(tiny_llama: Any) -> None:
    expected, _ = trained(tiny_llama, config={"dropout": 0.0})
    record, _ = trained(tiny_llama.bfloat16(), config={"dropout": 0.0})
    assert record.losses == pytest.approx(expected.losses, rel=0.02) and record.losses[-1] < record.losses[0]


def test_losses_of_a_tiny_model_are_pinned(tiny_gemma: Any) -> None:
    record, _ = trained(tiny_gemma, config={"dropout": 0.0})
    assert record.losses == pytest.approx(PINNED, abs=1e-5)


PINNED = [5.703776, 5.705596, 5.697716, 5.725506, 5.705198, 5.612041, 5.6525, 5.647932, 5.582107, 5.624138]


def test_held_out_rows_depend_on_their_content() -> None:
    ids = [f"{n:04x}" for n in range(100)]
    assert held_out_ids(ids, 0.0) == held_out_ids(ids[:1], 0.5) == set() and len(held_out_ids(ids[:9], 0.05)) == 1
    some = held_out_ids(ids, 0.2)
    assert (
        len(some) == 20
        and held_out_ids(list(reversed(ids)), 0.2) == some
        and len(some & held_out_ids(ids[:-1], 0.2)) >= 18
    )


def test_patience_requires_held_out_rows() -> None:
    with pytest.raises(ValueError, match="patience needs held-out rows"):
        TrainingSettings(patience=2)  # type: ignore[call-arg]


# -- anchors ------------------------------------------------------------------------------------------------------


def test_anchors_keep_the_model_close_to_the_base(tiny_gemma: Any) -> None:
    free, _ = trained(tiny_gemma, anchors=PLAIN, config={"anchor": 1e-6})
    held, parameters = trained(tiny_gemma, anchors=PLAIN, config={"anchor": 3.0})
    assert len(held.divergences) == len(held.losses)
    assert sum(held.divergences[-4:]) < 0.8 * sum(free.divergences[-4:])
    again, same = trained(tiny_gemma, anchors=PLAIN, config={"anchor": 3.0})
    assert again.divergences == held.divergences
    assert all(torch.equal(parameters[name], same[name]) for name in parameters)
    assert held.losses[-1] < held.losses[0]
