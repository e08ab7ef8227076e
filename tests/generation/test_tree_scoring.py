"""Scoring by trees, against plain forward passes and lm-evaluation-harness, on small random models."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import small_models
from selfalign.data.prompt_text import BOS
from selfalign.generation.scoring import tree_scoring
from selfalign.generation.scoring.base import ScoreRequest, Text, encode_all
from selfalign.generation.scoring.torch_scorer import TorchScorer
from selfalign.generation.scoring.tree_scoring import TreeScoring
from selfalign.model.base_model import Model
from selfalign.model.dialogue import Tokenizer
from selfalign.training import lora
from selfalign.training.settings import TrainingSettings
from small_models import tiny


def requests(seed: int = 0, head: int = 40) -> list[ScoreRequest]:
    """Return shuffled questions with several candidates each, which all share a prefix of `head` tokens."""
    rng = random.Random(seed)

    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 300) for _ in range(rng.randint(least, most)))

    begin = (2, *some(head, head))
    batch = [ScoreRequest(begin + q, some(1, 12)) for q in (some(5, 30) for _ in range(6)) for _ in range(4)]
    rng.shuffle(batch)
    return batch


def plain(model: Any, request: ScoreRequest) -> list[float]:
    """Score one text with all logits and no cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([request.ids]), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits.float(), -1)
    first = len(request.context) - 1
    return [float(logprobs[first + j, token]) for j, token in enumerate(request.continuation)]


@pytest.mark.parametrize("kind", ["gemma3", "mistral", "llama", "neox", "phi"])
@pytest.mark.parametrize("head", [0, 40])
def test_trees_equal_plain_forward_passes(kind: str, head: int) -> None:
    model = tiny(kind)
    scoring = TreeScoring(model)
    batch = requests(head=head)
    scores = scoring.score(batch, None)
    assert scoring.as_trees is True
    for request, scored in zip(batch, scores, strict=True):
        assert scored.logprobs == pytest.approx(plain(model, request), abs=1e-4)
    assert scoring.computed < (0.7 if not head else 0.4) * scoring.requested
    # The kept prefix gives the same scores in the next call.
    again = scoring.score(batch[:5], None)
    assert [s.total for s in again] == pytest.approx([s.total for s in scores[:5]], abs=1e-4)
    alone = [scoring.score([request], None)[0] for request in batch[:3]]
    assert [s.total for s in alone] == pytest.approx([s.total for s in scores[:3]], abs=1e-4)


@pytest.mark.parametrize("kind", ["granite", "mamba"])
def test_unsuitable_model_is_scored_text_by_text(kind: str) -> None:
    """One scales its logits by an unknown rule, the other has layers without attention."""
    model = tiny(kind)
    scoring = TreeScoring(model)
    batch = requests()[:6]
    scores = scoring.score(batch, None)
    assert scoring.as_trees is False
    for request, scored in zip(batch, scores, strict=True):
        assert scored.logprobs == pytest.approx(plain(model, request), abs=1e-4)


def test_chunks_of_logits_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("gemma3"), requests()
    whole = TreeScoring(model).score(batch, None)
    monkeypatch.setattr(tree_scoring, "_CHUNK", 3)
    parts = TreeScoring(model).score(batch, None)
    assert [s.total for s in parts] == pytest.approx([s.total for s in whole], abs=1e-4)


def test_kept_prefix_belongs_to_its_adapter(tmp_path: Path) -> None:
    base = tiny("gemma3")
    base.save_pretrained(tmp_path / "base")
    config = TrainingSettings(rank=4, alpha=64, dropout=0.0)
    expected = {None: [plain(base, r) for r in requests()]}
    for seed, name in enumerate(("engrave", "verbose_cloning")):
        model = lora.with_new_adapter(base, config, seed)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.2)
        expected[name] = [plain(model.eval(), r) for r in requests()]
        lora.save_adapter(model, tmp_path / name, Model("a model", "0", None, None, ""), "card")
        base = model.unload()
    scorer = TorchScorer(tmp_path / "base", {n: tmp_path / n for n in ("engrave", "verbose_cloning")})
    for name in ("verbose_cloning", None, "engrave", None, "verbose_cloning"):
        scores = scorer.score_ids(requests(), name)
        for mine, theirs in zip(scores, expected[name], strict=True):
            assert mine.logprobs == pytest.approx(theirs, abs=1e-4)
    assert expected["verbose_cloning"] != expected["engrave"] != expected[None]
    scorer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write(tmp_path_factory.mktemp("tiny"))


QUESTIONS: list[Text] = [
    ((BOS, "Be kind.\n\n", "User: ", f"Is {thing} {how}?", "\n\n", "Alma:", " I think it is"), answer)
    for thing in ("a stone", "a river", "the ä-tone")
    for how in ("hard", "wet", "hard and wet")
    for answer in (" true", " false", " wet, and a river is a river")
]


def test_contexts_and_continuations_are_encoded_together(folder: Path) -> None:
    tokenizer = Tokenizer(str(folder / "tokenizer.json"), "<bos>")
    pair, inside = encode_all(tokenizer, [((BOS, "a river is"), " wet"), ((BOS, "a riv"), "er")])
    assert [*pair.context, *pair.continuation] == tokenizer.encode((BOS, "a river is wet"))
    # In the second text a token spans the border.
    assert len(inside.context) == len(tokenizer.encode((BOS, "a riv"))) and inside.continuation
    scorer = TorchScorer(folder, {}, tokenizer)
    scores = scorer.loglikelihoods([((BOS, "a stone is"), " hard"), ((BOS, "stone " * 5000), " hard")], None)
    assert scores[0] is not None and scores[1] is None
    scorer.close()


@pytest.mark.skipif(not find_spec("lm_eval"), reason="lm-evaluation-harness is not installed: pip install lm-eval")
@pytest.mark.filterwarnings("default")
def test_log_likelihoods_equal_lm_evaluation_harness(folder: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    scorer = TorchScorer(folder, {}, Tokenizer(str(folder / "tokenizer.json"), "<bos>"))
    ours = scorer.loglikelihoods(QUESTIONS, None)
    assert scorer._trees.as_trees is True
    theirs = HFLM(
        pretrained=lora.load_base(folder), tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=4, device="cpu",
        add_bos_token=False,
    )  # fmt: skip
    instances = [
        Instance("loglikelihood", {}, ("<bos>" + "".join(context[1:]), continuation), i)
        for i, (context, continuation) in enumerate(QUESTIONS)
    ]
    expected = [value for value, _ in theirs.loglikelihood(instances, disable_tqdm=True)]
    totals = [scored.total for scored in ours if scored]
    assert totals == pytest.approx(expected, abs=1e-3)
    # Equal scores give equal choices.
    choices = [max(range(3), key=lambda j, at=at: totals[at + j]) for at in range(0, len(totals), 3)]
    assert choices == [max(range(3), key=lambda j, at=at: expected[at + j]) for at in range(0, len(expected), 3)]
    scorer.close()
