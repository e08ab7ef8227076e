"""DPO: its loss and gradient, the reference, micro-batches of pairs, resuming, and equality with TRL."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from selfalign.errors import Interrupted, Resumable
from selfalign.model.dialogue import Encoded
from selfalign.system.signals import STOP
from selfalign.training import forward, loop, lora
from selfalign.training.batches import PairRow, pair_micro_batches
from selfalign.training.checkpoint import Checkpoint
from selfalign.training.preference import PreferenceTrainer
from selfalign.training.record import TrainingRecord
from selfalign.training.settings import TrainingSettings

CONFIG = TrainingSettings(  # type: ignore[call-arg]
    method="dpo", beta=0.5, sft_weight=0.3, rank=4, alpha=8, dropout=0.1, learning_rate=0.02, epochs=2, batch_size=4,
    warmup_steps=2, checkpoint_seconds=0,
)  # fmt: skip


def text(rng: random.Random, length: int) -> list[int]:
    return [*(rng.randrange(100, 290) for _ in range(length)), 1]


def row(number: int) -> Encoded:
    """A pair under one system prompt of 40 tokens; every fourth row has no rejected response."""
    rng = random.Random(number)
    prompt = [2, *range(10, 49), *text(rng, 2 + number % 4)]
    chosen, rejected = text(rng, 3 + number), text(rng, 4 + number % 6)
    mine, other = (
        Encoded([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)) for answer in (chosen, rejected)
    )
    return mine if number % 4 == 3 else PairRow(mine.ids, mine.mask, other)


ROWS = [row(n) for n in range(16)]


def trained(base: Any, **more: Any) -> tuple[TrainingRecord, dict[str, torch.Tensor]]:
    config = CONFIG.model_copy(update=more.pop("config", {}))
    model = lora.with_new_adapter(copy.deepcopy(base), config, seed=0)
    record = loop.train(model, more.pop("rows", ROWS), config, seed=0, kind=PreferenceTrainer, **more)
    return record, {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def log_probability(model: Any, row: Encoded) -> torch.Tensor:
    """The sum over the loss tokens, by transformers' logits."""
    ids = torch.tensor([row.ids])
    logs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
    return (logs.gather(1, ids[0, 1:, None])[:, 0] * torch.tensor(row.mask[1:])).sum()


def plain_loss(model: Any, batch: list[Encoded], config: TrainingSettings) -> torch.Tensor:
    """The formula of the papers, pair by pair."""
    pairs, terms = [r for r in batch if isinstance(r, PairRow)], []
    for pair in pairs:
        with torch.no_grad(), model.disable_adapter():
            base = log_probability(model, pair) - log_probability(model, pair.rejected)
        ratio = log_probability(model, pair) - log_probability(model, pair.rejected) - base
        terms.append(-F.logsigmoid(config.beta * ratio))
    sft = -sum(log_probability(model, r) for r in batch) / forward.loss_tokens(batch)
    return (sum(terms) / len(pairs) if pairs else 0) + config.sft_weight * sft


@pytest.mark.parametrize("family", ["tiny_gemma", "tiny_llama"])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_loss_and_gradient_equal_the_plain_formula(family: str, weight: float, request: pytest.FixtureRequest) -> None:
    config = CONFIG.model_copy(update={"dropout": 0.0, "sft_weight": weight, "micro_batch_tokens": 130})
    model = lora.with_new_adapter(request.getfixturevalue(family), config, seed=0)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trainer = PreferenceTrainer(model, ROWS, config, seed=0)
    batch = trainer.batches[0]
    parts = trainer.split(batch)
    assert len(parts) > 2 and any(p.prefix for p in parts)
    trainer._compute_reference([r for r in batch if isinstance(r, PairRow)])
    model.zero_grad(set_to_none=True)
    expected = plain_loss(model, batch, config)
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert trainer.backward(batch, parts) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, gradient in gradients.items():
        parameter = model.get_parameter(name)
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_reference_is_the_base_and_computed_once(tiny_gemma: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    compute = PreferenceTrainer._compute_reference

    def counted(self: PreferenceTrainer, pairs: list[PairRow]) -> None:
        compute(self, pairs)
        seen.extend(pair.number for pair in pairs)
        for pair in pairs:
            with torch.no_grad():
                expected = [-float(log_probability(tiny_gemma, text)) for text in (pair, pair.rejected)]
            assert self.state["reference"][pair.number].tolist() == pytest.approx(expected, rel=1e-5)

    monkeypatch.setattr(PreferenceTrainer, "_compute_reference", counted)
    record, _ = trained(tiny_gemma)
    assert sorted(seen) == [n for n in range(16) if n % 4 != 3]
    assert len(record.margins) == len(record.accuracies) == len(record.losses) == 8


def test_training_prefers_the_chosen_responses(tiny_gemma: Any) -> None:
    pairs = [r for r in ROWS if isinstance(r, PairRow)]
    record, _ = trained(tiny_gemma, rows=pairs, config={"sft_weight": 0.0, "epochs": 6, "dropout": 0.0})
    assert record.losses[0] == pytest.approx(0.6931, abs=1e-3) and record.margins[0] == pytest.approx(0, abs=1e-3)
    assert record.losses[-1] < 0.3 and record.accuracies[-1] == 1.0
    assert record.tokens == 6 * sum(len(r.ids) + len(r.rejected.ids) for r in pairs)


def test_rows_without_pairs_train_as_with_sft(tiny_gemma: Any) -> None:
    rows = [Encoded(r.ids, r.mask) for r in ROWS]
    record, weights = trained(tiny_gemma, rows=rows, config={"sft_weight": 1.0})
    model = lora.with_new_adapter(copy.deepcopy(tiny_gemma), CONFIG, seed=0)
    expected = loop.train(model, rows, CONFIG, seed=0)
    assert record.losses == expected.losses and record.margins == [None] * 8
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters() if p.requires_grad)


def test_run_stopped_at_any_step_resumes_with_equal_losses(
    tiny_gemma: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, weights = trained(tiny_gemma, validation=ROWS[:2])
    for stop in (1, 4, 7):
        checkpoint = Checkpoint(tmp_path / f"{stop}.safetensors", "key")

        def stopped(step: int, *_: object, stop: int = stop) -> None:
            monkeypatch.setattr(STOP, "_signum", 15 if step == stop else None)

        with pytest.raises(Interrupted):
            trained(tiny_gemma, validation=ROWS[:2], checkpoint=checkpoint, on_step=stopped)
        monkeypatch.setattr(STOP, "_signum", None)
        record, again = trained(tiny_gemma, validation=ROWS[:2], checkpoint=checkpoint)
        assert record.resumed_at == stop and record.losses == pytest.approx(expected.losses, abs=1e-6)
        assert dict(record.validation) == pytest.approx(dict(expected.validation))
        assert record.margins == pytest.approx(expected.margins, abs=1e-6)
        assert all(torch.allclose(again[n], weights[n], rtol=0, atol=1e-6) for n in weights)


def test_checkpoint_of_sft_is_not_continued(tiny_gemma: Any, tmp_path: Path) -> None:
    checkpoint, messages = Checkpoint(tmp_path / "c.safetensors", "key"), list[str]()
    model = lora.with_new_adapter(copy.deepcopy(tiny_gemma), CONFIG, seed=0)
    loop.train(model, ROWS, CONFIG, seed=0, checkpoint=checkpoint)
    trained(tiny_gemma, checkpoint=checkpoint, say=messages.append)
    assert "is not used (another version wrote it)" in messages[0]


def test_memory_for_less_than_one_pair_is_resumable(tiny_gemma: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("selfalign.training.preference.hidden_at_loss", full)
    with pytest.raises(Resumable, match="out of memory at step 1"):
        trained(tiny_gemma, config={"micro_batch_tokens": 100})


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=20)


@given(st.lists(st.tuples(tokens, tokens, tokens | st.none()), min_size=1, max_size=10), st.integers(1, 200))
def test_micro_batches_hold_every_pair_once_and_together(texts: list[Any], budget: int) -> None:
    rows: list[Encoded] = []
    for prompt, chosen, rejected in texts:
        made = [Encoded([*prompt, *a], [False] * len(prompt) + [True] * len(a)) for a in (chosen, rejected or [0])]
        rows.append(made[0] if rejected is None else PairRow(made[0].ids, made[0].mask, made[1]))
    parts = pair_micro_batches(rows, budget)
    both = [text for r in rows for text in ([r, r.rejected] if isinstance(r, PairRow) else [r])]
    assert sorted(id(r) for p in parts for r in p.rows) == sorted(map(id, both))
    for part in parts:
        assert len({tuple(r.ids[: part.prefix]) for r in part.rows}) == 1
        assert all(r.mask.index(True) > part.prefix for r in part.rows if part.prefix)
        width = max(len(r.ids) for r in part.rows) - part.prefix
        assert len(part.rows) == part.together or width * len(part.rows) + part.prefix <= budget
        for first, second in zip(part.rows[::2], part.rows[1::2], strict=False):
            assert part.together == 1 or (isinstance(first, PairRow) and first.rejected is second)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # TRL's own
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_twenty_steps_equal_those_of_trl(tiny_gemma: Any, tiny_base: Path, tmp_path: Path, weight: float) -> None:
    trl = pytest.importorskip("trl")
    import datasets
    from transformers import AutoTokenizer

    class InOrder(trl.DPOTrainer):  # type: ignore[misc,name-defined]
        """DPO on rows of token ids, in their order."""

        def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset if dataset is None else dataset)

    pairs = [r for r in map(row, range(108)) if isinstance(r, PairRow)][:80]
    config = CONFIG.model_copy(update={"dropout": 0.0, "sft_weight": weight, "epochs": 1, "warmup_steps": 0})
    model = lora.with_new_adapter(copy.deepcopy(tiny_gemma), config, seed=0)
    trainer = PreferenceTrainer(model, pairs, config, seed=0)
    ours = [trainer.step() for _ in trainer.batches]

    starts = [pair.mask.index(True) for batch in trainer.batches for pair in batch]
    rows = [
        {"prompt_ids": p.ids[:n], "chosen_ids": p.ids[n:], "rejected_ids": p.rejected.ids[n:]}
        for p, n in zip((p for batch in trainer.batches for p in batch), starts, strict=True)
    ]
    losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, weight]} if weight else {"loss_type": "sigmoid"}
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_base))
    tokenizer.pad_token = tokenizer.eos_token
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=4, max_steps=20,
        beta=config.beta, learning_rate=config.learning_rate, weight_decay=0.0, lr_scheduler_type="linear",
        warmup_steps=0, max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, max_length=None,
        seed=0, gradient_checkpointing=False, remove_unused_columns=False, **losses,
    )  # fmt: skip
    other = InOrder(
        model=lora.with_new_adapter(copy.deepcopy(tiny_gemma), config, seed=0), args=arguments,
        train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip
    other.train()
    logs = [entry for entry in other.state.log_history if "loss" in entry]
    assert len(ours) == len(logs) == 20
    assert ours == pytest.approx([entry["loss"] for entry in logs], abs=1e-4)
    margins = [entry["rewards/margins"] for entry in logs]
    assert trainer.record.margins == pytest.approx(margins, abs=1e-4)
