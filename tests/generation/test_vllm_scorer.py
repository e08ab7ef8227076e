"""Log-probabilities by a real vLLM against torch, run by `make test-vllm`. Takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.data.prompt_text import BOS
from selfalign.evaluation import scoring
from selfalign.generation.scoring.base import Text
from selfalign.model import sources

pytestmark = [pytest.mark.slow, pytest.mark.integration]
pytest.importorskip("vllm", reason="make test-vllm runs it in an environment that has vLLM")

TEXTS: list[Text] = [
    ((BOS, "User: ", f"Name {what}.", "\n\n", "Alma:"), answer)
    for what in ("a river of Italy", "the capital of France", "three colours")
    for answer in (" The Po.", " Paris", " Red, green and blue.")
]


def test_scores_equal_torch_with_and_without_adapter(tmp_path: Path) -> None:
    import torch

    from selfalign.generation.scoring.torch_scorer import TorchScorer
    from selfalign.generation.scoring.vllm_scorer import VllmScorer
    from selfalign.training import lora
    from selfalign.training.settings import TrainingSettings

    base = sources.resolve("embedded")
    model = lora.with_new_adapter(lora.load_base(base.folder()), TrainingSettings(), seed=0)  # type: ignore[call-arg]
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    lora.save_adapter(model, tmp_path / "adapter", base, "card")
    adapters = {"engrave": tmp_path / "adapter"}
    theirs = TorchScorer(base.folder(), adapters, base.tokenizer())
    expected = {a: theirs.loglikelihoods(TEXTS, a) for a in (None, "engrave")}
    theirs.close()
    scorer = VllmScorer(base.folder(), base.tokenizer(), adapters, 128, "float32")
    scoring.check_scorer(scorer)
    for adapter in (None, "engrave"):
        scores = scorer.loglikelihoods([*TEXTS, ((BOS, "word " * 200), " end")], adapter)
        assert scores.pop() is None, "exceeds the context"
        for mine, other in zip(scores, expected[adapter], strict=True):
            assert mine and other and mine.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    assert scorer.tokens[0] > 0
    scorer.close()
