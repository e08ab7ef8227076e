"""Training, saving, scoring and checking LoRA adapters."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from selfalign.errors import UserError
from selfalign.generation.scoring.torch_scorer import TorchScorer
from selfalign.model import gguf_adapter
from selfalign.model.base_model import Model
from selfalign.model.dialogue import Encoded
from selfalign.training import device, forward, loop, lora
from selfalign.training.record import TrainingRecord
from selfalign.training.settings import TrainingSettings

CONFIG = TrainingSettings(rank=4, alpha=4, dropout=0.0, learning_rate=0.02, epochs=6, batch_size=2, warmup_steps=2)  # type: ignore[call-arg]
BASE = Model("a model", "0123", None, None, "terms")
ROWS = [Encoded([2, *range(10, 20 + k), 1], [False] * 5 + [True] * (7 + k)) for k in range(6)]


def train(model: Any, **more: Any) -> TrainingRecord:
    return loop.train(model, ROWS, CONFIG.model_copy(update=more), seed=0)


def test_training_lowers_the_loss_and_is_reproducible(tiny_gemma: Any) -> None:
    model = lora.with_new_adapter(tiny_gemma, CONFIG, seed=0)
    before = forward.token_losses(model, ROWS)
    record = train(model)
    after = forward.token_losses(model, ROWS)
    assert len(record.losses) == 18 and sum(map(sum, after)) < 0.96 * sum(map(sum, before))
    assert record.loss_tokens == 6 * sum(sum(r.mask[1:]) for r in ROWS)
    tiny_gemma = model.unload()
    again = train(lora.with_new_adapter(tiny_gemma, CONFIG, seed=0))
    assert again.losses == record.losses


def test_saved_adapter_can_be_trained_further(tiny_gemma: Any, tmp_path: Path) -> None:
    model = lora.with_new_adapter(tiny_gemma, CONFIG, seed=0)
    train(model)
    after = forward.token_losses(model, ROWS)
    lora.save_adapter(model, tmp_path / "adapter", BASE, "card")
    again = lora.with_saved_adapter(model.unload(), tmp_path / "adapter", seed=0)
    assert sum(map(sum, forward.token_losses(again, ROWS))) == pytest.approx(sum(map(sum, after)), rel=1e-5)
    train(again, epochs=2)
    assert sum(map(sum, forward.token_losses(again, ROWS))) < sum(map(sum, after))


def test_dropout_does_not_disturb_the_check_of_the_output_layer(tiny_gemma: Any) -> None:
    model = lora.with_new_adapter(tiny_gemma, CONFIG.model_copy(update={"dropout": 0.9}), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 1.0)
    model.train()
    forward.cross_entropy(model)
    assert model.training


def test_micro_batches_add_up_to_the_batch(tiny_gemma: Any) -> None:
    other = copy.deepcopy(tiny_gemma)
    whole = train(lora.with_new_adapter(tiny_gemma, CONFIG, seed=0), epochs=3, batch_size=6)
    split = train(lora.with_new_adapter(other, CONFIG, seed=0), epochs=3, batch_size=6, micro_batch_tokens=30)
    assert whole.losses == pytest.approx(split.losses, rel=1e-4)


def test_scorer_switches_between_base_and_adapters(tiny_gemma: Any, tmp_path: Path) -> None:
    tiny_gemma.save_pretrained(tmp_path / "base")
    expected = {None: forward.token_losses(tiny_gemma, ROWS)}
    for number, name in enumerate(("engrave", "verbose_cloning")):
        model = lora.with_new_adapter(tiny_gemma, CONFIG, seed=number)
        train(model, epochs=2 + number)
        expected[name] = forward.token_losses(model, ROWS)
        lora.save_adapter(model, tmp_path / name, BASE, "card")
        tiny_gemma = model.unload()
    scorer = TorchScorer(tmp_path / "base", {n: tmp_path / n for n in ("engrave", "verbose_cloning")})
    for name in ("verbose_cloning", None, "engrave", None, "verbose_cloning"):
        for mine, theirs in zip(scorer.score(ROWS, name), expected[name], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
    assert expected["verbose_cloning"] != expected["engrave"] != expected[None]
    for mine, theirs in zip(TorchScorer(tmp_path / "base", {}).score(ROWS, None), expected[None], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    scorer.close()


def test_scorer_takes_the_gpu_if_float32_weights_fit(
    tiny_gemma: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_gemma.bfloat16().save_pretrained(tmp_path)
    needed = device._SCORING_BYTES + 4 * sum(p.numel() for p in tiny_gemma.parameters())
    free = [needed]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free[0], 80e9))
    assert device.choose_float32(tmp_path) == device.Placement("cuda", "float32")
    free[0] -= 1
    assert device.choose_float32(tmp_path) == device.CPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    free[0] = 80e9
    assert device.choose_float32(tmp_path) == device.CPU


def test_adapter_is_saved_for_peft_and_llama_cpp(tiny_gemma: Any, tmp_path: Path) -> None:
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


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    with pytest.raises(UserError, match="rwkv"):
        gguf_adapter.write(tmp_path, tmp_path, tmp_path / "x.gguf", "")


def test_adapter_of_another_base_is_refused(tiny_gemma: Any, tmp_path: Path) -> None:
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
