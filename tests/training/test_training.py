"""The training loss and loop on a small random model of the real architecture, and the GGUF adapter's names."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from selfalign.errors import UserError
from selfalign.generation.scoring.torch_scorer import TorchScorer
from selfalign.model import gguf_adapter
from selfalign.model.base_model import Model
from selfalign.model.dialogue import Encoded
from selfalign.training import forward, loop, lora
from selfalign.training.loss import CHUNK, CrossEntropy
from selfalign.training.record import TrainingRecord
from selfalign.training.settings import TrainingSettings


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("n", [1, CHUNK + 3])
def test_loss_and_gradient_are_those_of_autograd(n: int, cap: float | None) -> None:
    torch.manual_seed(0)
    head, hidden, target = torch.randn(500, 16) * 2, torch.randn(n, 16), torch.randint(0, 500, (n,))
    leaf = hidden.clone().requires_grad_(True)
    logits = F.linear(leaf, head)
    expected = F.cross_entropy(torch.tanh(logits / cap) * cap if cap else logits, target, reduction="none")
    expected.sum().backward()
    ours = CrossEntropy(head, cap)
    loss, gradient = ours.loss_and_gradient(hidden, target)
    assert loss == pytest.approx(float(expected.detach().sum()), rel=1e-5)
    assert leaf.grad is not None
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.losses(hidden, target), expected.detach(), rtol=1e-5, atol=1e-5)


CONFIG = TrainingSettings(rank=4, alpha=4, dropout=0.0, learning_rate=0.02, epochs=6, batch_size=2, warmup_steps=2)  # type: ignore[call-arg]
BASE = Model("a model", "0123", None, None, "terms")
ROWS = [Encoded([2, *range(10, 20 + k), 1], [False] * 5 + [True] * (7 + k)) for k in range(6)]


def train(model: Any, **more: Any) -> TrainingRecord:
    return loop.train(model, ROWS, CONFIG.model_copy(update=more), seed=0)


def test_training_learns_and_is_reproducible(tiny_gemma: Any) -> None:
    model = lora.with_new_adapter(tiny_gemma, CONFIG, seed=0)
    before = forward.token_losses(model, ROWS)
    done = train(model)
    after = forward.token_losses(model, ROWS)
    assert len(done.losses) == 18 and sum(map(sum, after)) < 0.96 * sum(map(sum, before))
    assert done.loss_tokens == 6 * sum(sum(r.mask[1:]) for r in ROWS)
    tiny_gemma = model.unload()
    again = train(lora.with_new_adapter(tiny_gemma, CONFIG, seed=0))
    assert again.losses == done.losses


def test_the_loss_is_that_of_transformers_with_masked_labels(tiny_gemma: Any) -> None:
    losses = forward.token_losses(tiny_gemma, ROWS, size=4)
    for row, mine in zip(ROWS, losses, strict=True):
        ids = torch.tensor([row.ids])
        labels = torch.where(torch.tensor([row.mask]), ids, -100)
        with torch.no_grad():
            expected = float(tiny_gemma(input_ids=ids, labels=labels).loss)
        assert sum(mine) / len(mine) == pytest.approx(expected, rel=1e-4)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tiny_gemma: Any) -> None:
    other = copy.deepcopy(tiny_gemma)
    one = train(lora.with_new_adapter(tiny_gemma, CONFIG, seed=0), epochs=3, batch_size=6)
    two = train(lora.with_new_adapter(other, CONFIG, seed=0), epochs=3, batch_size=6, micro_batch_tokens=30)
    assert one.losses == pytest.approx(two.losses, rel=1e-4)


def test_the_scorer_switches_between_the_base_and_two_adapters(tiny_gemma: Any, tmp_path: Path) -> None:
    tiny_gemma.save_pretrained(tmp_path / "base")
    wanted = {None: forward.token_losses(tiny_gemma, ROWS)}
    for number, name in enumerate(("engrave", "verbose_cloning")):
        model = lora.with_new_adapter(tiny_gemma, CONFIG, seed=number)
        train(model, epochs=2 + number)
        wanted[name] = forward.token_losses(model, ROWS)
        lora.save_adapter(model, tmp_path / name, BASE, "card")
        tiny_gemma = model.unload()
    scorer = TorchScorer(tmp_path / "base", {n: tmp_path / n for n in ("engrave", "verbose_cloning")})
    for name in ("verbose_cloning", None, "engrave", None, "verbose_cloning"):
        for mine, theirs in zip(scorer.score(ROWS, name), wanted[name], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
    assert wanted["verbose_cloning"] != wanted["engrave"] != wanted[None]
    for mine, theirs in zip(TorchScorer(tmp_path / "base", {}).score(ROWS, None), wanted[None], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    scorer.close()


def test_no_rows_is_the_users_mistake(tiny_gemma: Any) -> None:
    with pytest.raises(UserError, match="no training rows"):
        loop.train(lora.with_new_adapter(tiny_gemma, CONFIG, seed=0), [], CONFIG, seed=0)


def test_the_adapter_is_saved_whole_and_in_both_forms(tiny_gemma: Any, tmp_path: Path) -> None:
    import gguf

    tiny_gemma.save_pretrained(tmp_path / "base")  # before peft puts its layers in
    model = lora.with_new_adapter(tiny_gemma, CONFIG, seed=0)
    train(model, epochs=1)
    trained = forward.token_losses(model, ROWS)
    lora.save_adapter(model, tmp_path / "adapter", BASE, "card")
    saved = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "a model" and (tmp_path / "adapter/NOTICE").read_text() == "terms\n"
    gguf_adapter.write(tmp_path / "adapter", tmp_path / "base", tmp_path / "adapter.gguf", "terms")
    reader = gguf.GGUFReader(str(tmp_path / "adapter.gguf"))
    names = {t.name for t in reader.tensors}
    assert names == {
        f"blk.{b}.attn_{m}.weight.lora_{x}" for b in (0, 1) for m in ("q", "k", "v", "output") for x in "ab"
    }
    loaded = lora.add_adapter(lora.load_base(tmp_path / "base"), tmp_path / "adapter")
    for mine, theirs in zip(trained, forward.token_losses(loaded, ROWS), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)


def test_an_unknown_architecture_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    with pytest.raises(UserError, match="rwkv"):
        gguf_adapter.write(tmp_path, tmp_path, tmp_path / "x.gguf", "")


def test_an_adapter_of_another_base_is_refused(tiny_gemma: Any, tmp_path: Path) -> None:
    lora.save_adapter(lora.with_new_adapter(tiny_gemma, CONFIG, seed=0), tmp_path / "adapter", BASE, "card")
    BASE.check_adapter(tmp_path / "adapter")
    other = Model("another", "4567", None, None, "")
    with pytest.raises(UserError, match=r"another base \(a model 0123\) than another 4567"):
        other.check_adapter(tmp_path / "adapter")
    (tmp_path / "adapter/base.json").write_text("{")
    with pytest.raises(UserError, match="is not a JSON object"):
        BASE.check_adapter(tmp_path / "adapter")
    (tmp_path / "adapter/base.json").unlink()
    other.check_adapter(tmp_path / "adapter")


def test_tokens_of_no_likelihood_are_left_out_of_the_gradient_but_not_of_the_loss() -> None:
    torch.manual_seed(0)
    head, hidden, target = torch.randn(50_000, 16), torch.randn(40, 16) * 2, torch.randint(0, 50_000, (40,))
    leaf = hidden.clone().requires_grad_(True)
    expected = F.cross_entropy(F.linear(leaf, head), target, reduction="sum")
    expected.backward()
    ours = CrossEntropy(head, None)
    softmax = torch.softmax(head @ hidden.T, 0)
    likely = ours._likely(softmax, target)
    assert likely is not None and len(likely) < 35_000 and set(target.tolist()) <= set(likely.tolist())
    loss, gradient = ours.loss_and_gradient(hidden, target)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert leaf.grad is not None
    assert float((gradient - leaf.grad).norm() / leaf.grad.norm()) < 1e-4
