"""Model families in torch and in llama.cpp: bases, GGUF adapters and merged GGUF files give the same next tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from selfalign.errors import UserError
from selfalign.export import gguf_model
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.model import gguf_adapter, sources
from selfalign.model.dialogue import Encoded
from selfalign.training import forward, lora
from selfalign.training.settings import TrainingSettings

pytestmark = pytest.mark.integration
TEXT = [264, *torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(3)).tolist()]
FIRST = len(TEXT) - 50
FAST = ("granite", "phi3")
"""One family whose rows are reordered and whose logits are scaled, and one with fused layers."""


def with_random_adapter(base: Path) -> Any:
    """The base with an adapter of all linear layers that changes it much."""
    model = lora.load_base(base)
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    known = re.findall(r"\w+_proj", str(TrainingSettings.model_fields["targets"].annotation))
    targets: Any = sorted({name.rpartition(".")[2] for name in linear} & set(known))
    adapted = lora.with_new_adapter(model, TrainingSettings(rank=4, alpha=8, targets=targets), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return adapted.eval()


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    """The log-probabilities of the next tokens at 50 positions, by the model's own forward pass."""
    return torch.log_softmax(model(torch.tensor([TEXT])).logits[0].float(), -1)[FIRST - 1 : -1]


def difference(expected: torch.Tensor, engine: LlamaCpp, adapter: str | None) -> float:
    """The largest difference, in nats, between the engine's most likely tokens and torch's."""
    largest = 0.0
    for at, row in enumerate(expected):
        token, logprob = engine.most_likely_token(TEXT[: FIRST + at], adapter)
        found = float(row[token])
        # A token that is part of a character has no log-probability.
        largest = max(largest, float(row.max()) - found, abs(found - logprob) if logprob == logprob else 0.0)
    return largest


def compare(family: str, folder: Path) -> None:
    base = tiny_models.write(folder / "base", family)
    adapted = with_random_adapter(base)
    lora.save_adapter(adapted, folder / "adapter", sources.resolve(str(base)), "card")
    gguf_adapter.write(folder / "adapter", base, folder / "adapter.gguf", "")
    engine = LlamaCpp(base / "model-f32.gguf", {"a": folder / "adapter.gguf"}, 1, 256, 1)
    expected = logprobs(adapted)
    with adapted.disable_adapter():
        before = logprobs(adapted)
    try:
        differences = difference(before, engine, None), difference(expected, engine, "a")
    finally:
        engine.close()
    assert max(differences) < 0.03 and (before - expected).abs().max() > 1, family
    metadata = gguf_model.Metadata("tiny", "", 265, "")
    gguf_model.write(base / "model-f32.gguf", folder / "adapter", base, folder / "merged.gguf", "f16", metadata)
    engine = LlamaCpp(folder / "merged.gguf", {}, 1, 256, 1)
    try:
        assert difference(expected, engine, None) < 0.1, family
    finally:
        engine.close()


@pytest.mark.parametrize("family", FAST)
def test_torch_and_llama_cpp_agree(family: str, tmp_path: Path) -> None:
    compare(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES.keys() - set(FAST)))
def test_torch_and_llama_cpp_agree_for_every_family(family: str, tmp_path: Path) -> None:
    compare(family, tmp_path)


def test_every_supported_family_is_compared() -> None:
    assert gguf_adapter._ARCHITECTURES.keys() == tiny_models.FAMILIES.keys()


def test_other_families_are_refused_by_name_unless_no_gguf_is_needed(tmp_path: Path) -> None:
    base = tiny_models.write(tmp_path / "base", "llama")
    lora.save_adapter(with_random_adapter(base), tmp_path / "adapter", sources.resolve(str(base)), "card")
    config = {**json.loads((base / "config.json").read_text()), "model_type": "mixtral"}
    (base / "config.json").write_text(json.dumps(config))
    model, target = sources.resolve(str(base)), tmp_path / "adapter.gguf"
    with pytest.raises(UserError, match="model type 'mixtral' is not supported: use the engine vllm"):
        model.check_trainable()
    with pytest.raises(UserError, match="mixtral"):
        gguf_adapter.write(tmp_path / "adapter", base, target, "")
    model.check_trainable(with_gguf=False)
    gguf_adapter.write(tmp_path / "adapter", base, target, "", required=False)
    assert not model.has_gguf_adapters
    with pytest.raises(UserError, match=r"llama\.cpp cannot load"):
        LlamaCpp(base / "model-f32.gguf", {"a": target}, 1, 256, 1)


@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2"])
def test_loss_has_the_scale_of_the_models_logits(family: str, tmp_path: Path) -> None:
    model = lora.load_base(tiny_models.write(tmp_path / "base", family)).eval()
    rows = [Encoded(TEXT, [True] * len(TEXT))]
    with torch.no_grad():
        logits = model(torch.tensor([TEXT])).logits[0, :-1].float()
        hidden, target = forward.hidden_at_loss(model, rows)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(TEXT[1:]), reduction="none")
    torch.testing.assert_close(forward.cross_entropy(model).losses(hidden, target), expected, rtol=1e-3, atol=1e-3)


def test_unknown_output_layer_is_refused(tmp_path: Path) -> None:
    model = lora.load_base(tiny_models.write(tmp_path / "base", "granite"))
    model.config.logits_scaling, scale = 4.0, model.config.logits_scaling
    forward.check_output_layer(model)  # the model reads the same setting
    model.config.logits_scaling = scale
    model.lm_head.register_forward_hook(lambda *arguments: arguments[-1] * 3)
    with pytest.raises(UserError, match="output layer of the model type 'granite'"):
        forward.check_output_layer(model)


def test_target_that_the_base_lacks_is_refused(tmp_path: Path) -> None:
    model = lora.load_base(tiny_models.write(tmp_path / "base", "phi3"))
    with pytest.raises(UserError, match=r"no layer 'q_proj'.*down_proj, gate_up_proj, o_proj, qkv_proj"):
        lora.with_new_adapter(model, TrainingSettings(targets=["o_proj", "q_proj"]), seed=0)
