"""On-policy distillation: divergences and gradients, the teacher's distributions, its prefixes, resuming."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from selfalign.errors import Interrupted, Resumable
from selfalign.model.dialogue import Encoded
from selfalign.system.signals import STOP
from selfalign.training import distillation, forward, loop, lora
from selfalign.training.checkpoint import Checkpoint
from selfalign.training.distillation import DistillationTrainer
from selfalign.training.divergence import Kind, LinearDivergence, _largest, divergence
from selfalign.training.record import TrainingRecord
from selfalign.training.response_rows import ResponseRow, TurnEnd, response_row
from selfalign.training.settings import OnPolicySettings, TrainingSettings

END = TurnEnd(response=1, turn=5)
KINDS: tuple[Kind, ...] = get_args(Kind)
CONFIG = TrainingSettings(  # type: ignore[call-arg]
    method="on_policy", on_policy=OnPolicySettings(clip=100.0), rank=4, alpha=8, dropout=0.0, learning_rate=0.02,  # type: ignore[call-arg]
    epochs=1, batch_size=4, warmup_steps=2, checkpoint_seconds=0, micro_batch_tokens=70,
)  # fmt: skip


def row(number: int) -> ResponseRow:
    """A response of one of two types of prompt; every fourth was cut, every third has a blank line in it."""
    rng = random.Random(number)
    response = [rng.randrange(100, 290) for _ in range(4 + number % 5)]
    if number % 3 == 0:
        response[2] = END.turn
    context = [2, *range(10, 50), *([60] * 30 if number % 2 else [61] * 25), *response[:2], 7]
    return response_row([2, *range(10, 49), number + 100], response, context, response, END, number % 4 != 0)


ROWS = [row(n) for n in range(12)]


def adapted(base: Any, config: TrainingSettings = CONFIG) -> Any:
    """The base with an adapter that changes it."""
    model = lora.with_new_adapter(copy.deepcopy(base), config, seed=0)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def log_probabilities(model: Any, row: Encoded) -> torch.Tensor:
    """At the positions of the mask, by transformers' logits, in float64."""
    logs = torch.log_softmax(model(input_ids=torch.tensor([row.ids])).logits[0].double(), -1)
    return logs[[n - 1 for n, counts in enumerate(row.mask) if counts]]


def teachers(model: Any, row: ResponseRow) -> torch.Tensor:
    """The teacher's probabilities where the row has a loss, with the end of its turn as that of the response."""
    with torch.no_grad(), model.disable_adapter():
        parts = log_probabilities(model, row.teacher).exp()
    parts[:, END.response] += parts[:, END.turn]
    parts[:, END.turn] = 0
    return parts[torch.tensor(row.mask[-len(parts) :])]


def full(teacher: torch.Tensor, logs: torch.Tensor, kind: Kind) -> torch.Tensor:
    """The divergence over the whole vocabulary, by torch."""
    model, tiny = logs.exp(), 1e-30
    logs_of = (teacher + tiny).log()
    mean = ((teacher + model) / 2).log()
    return {
        "forward": lambda: F.kl_div(logs, teacher, reduction="none").sum(-1),
        "reverse": lambda: F.kl_div(logs_of, model, reduction="none").sum(-1),
        "js": lambda: (F.kl_div(mean, teacher, reduction="none") + F.kl_div(mean, model, reduction="none")).sum(-1) / 2,
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["tiny_gemma", "tiny_llama"])
def test_loss_and_gradient_equal_those_over_the_whole_vocabulary(
    family: str, kind: Kind, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "TOP", 299)  # all others have a part of their own: one token
    settings = CONFIG.on_policy.model_copy(update={"divergence": kind})
    config = CONFIG.model_copy(update={"on_policy": settings})
    model = adapted(request.getfixturevalue(family), config)
    trainer = DistillationTrainer(model, ROWS, config, seed=0)
    batch = trainer.batches[0]
    parts = trainer.split(batch)
    trainer.ask_teacher()
    model.zero_grad(set_to_none=True)
    terms = [full(teachers(model, r), log_probabilities(model, r), kind) for r in batch if isinstance(r, ResponseRow)]
    expected = torch.cat(terms).mean()
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert len(parts) > 1 and trainer.backward(batch, parts) == pytest.approx(float(expected.detach()), abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=2e-3, atol=1e-5)


distributions = st.lists(st.floats(1e-6, 1), min_size=3, max_size=6).map(lambda v: torch.tensor(v)[:, None] / sum(v))


@given(distributions, distributions, st.sampled_from(KINDS))
def test_divergence_is_zero_for_equal_parts_only(first: torch.Tensor, second: torch.Tensor, kind: Kind) -> None:
    size = min(len(first), len(second))
    first, second = (p[:size] / p[:size].sum() for p in (first, second))
    assert float(divergence(first, first, kind)[0]) == pytest.approx(0, abs=1e-6)
    value = float(divergence(first, second, kind)[0])
    assert value >= float((first - second).abs().sum()) ** 2 / 8 - 1e-6  # Pinsker's inequality, for the smallest: js


@pytest.mark.parametrize("kind", KINDS)
def test_rest_of_the_vocabulary_counts_as_one_token(kind: Kind) -> None:
    torch.manual_seed(0)
    head, hidden = torch.randn(40, 8), torch.randn(3, 8, requires_grad=True)
    loss, target = LinearDivergence(head, 2.0), torch.tensor([3, 4, 6])
    teacher = loss.top_tokens(torch.randn(3, 8), target, [3], 5, END)
    assert (teacher.ids == END.response).any(1).all()
    values, gradient = loss.divergences_and_gradients(hidden.detach(), target, teacher, kind, 100.0)
    model = torch.softmax(torch.tanh(hidden @ head.T / 2.0) * 2.0, -1)
    top = model.gather(1, teacher.ids)
    parts = torch.cat([top, 1 - top.sum(1, keepdim=True)], 1)
    expected, _ = divergence(teacher.parts.T, parts.T, kind)
    expected.sum().backward()
    torch.testing.assert_close(values, expected.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-4, atol=1e-5)


def test_clip_bounds_the_value_and_scales_the_gradient() -> None:
    torch.manual_seed(0)
    head, hidden, target = torch.randn(40, 8), 3 * torch.randn(6, 8), torch.arange(6)
    loss = LinearDivergence(head, None)
    teacher = loss.top_tokens(3 * torch.randn(6, 8), target, [2, 4], 5, END)
    whole, gradient = loss.divergences_and_gradients(hidden, target, teacher, "forward", 1e9)
    clip = float(whole.median())
    values, clipped = loss.divergences_and_gradients(hidden, target, teacher, "forward", clip)
    assert float(values.max()) == pytest.approx(clip) and float(whole.max()) > clip
    torch.testing.assert_close(clipped, gradient * (clip / whole).clamp(max=1)[:, None])


def test_most_likely_tokens_are_those_of_topk() -> None:
    torch.manual_seed(0)
    values = torch.rand(64 * 40, 7)
    for found, expected in zip(_largest(values, 5), values.topk(5, 0), strict=True):
        assert torch.equal(found, expected)


def test_joined_token_of_the_teacher_ends_the_response_after_its_plain_one() -> None:
    """The vocabulary is: word 0, end 1, blank line 2, full stop 3, full stop and blank line 4."""
    probabilities = torch.tensor([[0.1, 0.0, 0.1, 0.2, 0.6], [0.5, 0.1, 0.1, 0.2, 0.1]])
    loss = LinearDivergence(torch.eye(5), None)
    end = TurnEnd(response=1, turn=2, joined=(4,), plain=(3,))
    twice = probabilities.repeat(2, 1).log().clamp_min(-50)
    top = loss.top_tokens(twice, torch.tensor([3, 1, 3, 1]), [2, 2], 3, end)
    assert torch.equal(top.parts[:2], top.parts[2:]), "a response does not depend on the one before"
    said = [dict(zip(i, p, strict=False)) for i, p in zip(top.ids.tolist(), top.parts.tolist(), strict=True)]
    assert said[0] == pytest.approx({1: 0.1, 3: 0.8, 0: 0.1}, abs=1e-6)
    # Of the 0.8 for a full stop, 0.6 were with a blank line: the response is over then, otherwise it may continue.
    assert said[1] == pytest.approx({1: 0.75 + 0.25 * 0.2, 0: 0.25 * 0.5, 3: 0.25 * 0.3}, abs=1e-6)
    assert top.parts.sum(1).tolist() == pytest.approx([1] * 4)


def test_teacher_computes_every_prefix_once(tiny_gemma: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    compute = forward.prefix_keys

    def counted(model: Any, ids: list[int], before: Any = None) -> Any:
        computed.append(len(ids))
        return compute(model, ids, before)

    monkeypatch.setattr(distillation, "prefix_keys", counted)
    trainer = DistillationTrainer(adapted(tiny_gemma), ROWS, CONFIG, seed=0)
    trainer.step()
    # The principles, then the exemplars of both types.
    assert computed == [41, 30, 25] or computed == [41, 25, 30]
    for number, top in trainer._tops.items():
        expected = teachers(trainer.model, ROWS[number])
        torch.testing.assert_close(top.parts[:, :-1].double(), expected.gather(1, top.ids), rtol=1e-3, atol=1e-6)


def test_model_whose_cache_cannot_be_shared_gets_whole_rows(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = trained(tiny_llama)
    compute, messages = forward.prefix_keys, list[str]()

    def wrong(model: Any, ids: list[int], before: Any = None) -> Any:
        return compute(model, ids[::-1], before)

    monkeypatch.setattr(distillation, "prefix_keys", wrong)
    record, _ = trained(tiny_llama, say=messages.append)
    assert any("cannot be shared" in message for message in messages)
    assert record.losses == pytest.approx(expected.losses, abs=1e-5)


def trained(base: Any, **more: Any) -> tuple[TrainingRecord, dict[str, torch.Tensor]]:
    config = CONFIG.model_copy(update=more.pop("config", {}))
    model = adapted(base, config)
    record = loop.train(model, more.pop("rows", ROWS), config, seed=0, kind=DistillationTrainer, **more)
    return record, {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_training_approaches_the_teacher(tiny_gemma: Any, kind: Kind) -> None:
    settings = CONFIG.on_policy.model_copy(update={"divergence": kind})
    record, _ = trained(tiny_gemma, config={"epochs": 15, "on_policy": settings})
    first, last = (sum(part) / 3 for part in (record.losses[:3], record.losses[-3:]))
    assert last < 0.5 * first and record.tokens == 15 * sum(len(r.ids) for r in ROWS)


def test_run_stopped_at_any_step_resumes_with_equal_losses(
    tiny_gemma: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {
        "config": {"dropout": 0.1, "epochs": 2},
        "validation": [Encoded(r.ids, r.mask) for r in ROWS[:2]],
    }
    expected, weights = trained(tiny_gemma, **copy.deepcopy(more))
    for stop in (1, 3, 5):
        checkpoint = Checkpoint(tmp_path / f"{stop}.safetensors", "key")

        def stopped(step: int, *_: object, stop: int = stop) -> None:
            monkeypatch.setattr(STOP, "_signum", 15 if step == stop else None)

        with pytest.raises(Interrupted):
            trained(tiny_gemma, checkpoint=checkpoint, on_step=stopped, **copy.deepcopy(more))
        monkeypatch.setattr(STOP, "_signum", None)
        record, again = trained(tiny_gemma, checkpoint=checkpoint, **copy.deepcopy(more))
        assert record.resumed_at == stop and record.losses == pytest.approx(expected.losses, abs=1e-6)
        assert dict(record.validation) == pytest.approx(dict(expected.validation))
        assert all(torch.allclose(again[n], weights[n], rtol=0, atol=1e-6) for n in weights)


def test_memory_for_less_than_one_response_is_resumable(tiny_gemma: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_memory(*_: object) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("selfalign.training.distillation.hidden_at_loss", full_memory)
    with pytest.raises(Resumable, match="out of memory at step 1"):
        trained(tiny_gemma)


def test_row_compares_the_tokens_that_both_prompts_share() -> None:
    made = response_row([2, 3], [30, 31, 32], [2, 4, 5], [40, 31, 32], END, complete=True)
    assert made.ids == [2, 3, 30, 31, 32, 1] and made.mask == [False, False, False, True, True, True]
    assert made.teacher.ids == [2, 4, 5, 40, 31, 32, 5] and made.teacher.mask == [False] * 4 + [True] * 3
    cut = response_row([2], [30, 5, 32], [4], [30, 5, 32], END, complete=False)
    assert cut.ids == [2, 30, 5, 32] and cut.mask == [False, True, False, True]  # no loss at the blank line
    assert cut.teacher.mask == [False, True, True, True]
    assert not any(response_row([2], [30], [4], [31], END, complete=False).mask)
