"""The engine `torch`: the same text as the model's own forward passes, in batches of any composition."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from selfalign.data.prompt_text import BOS
from selfalign.errors import Resumable
from selfalign.generation import engines
from selfalign.generation.engines.base import Part, Sampling, Step, TooLong
from selfalign.generation.engines.torch_engine import TorchEngine
from selfalign.model import sources
from selfalign.model.dialogue import Tokenizer
from selfalign.planning.prepare import prepare
from selfalign.training import lora
from selfalign.training.device import CPU
from selfalign.training.settings import TrainingSettings

SHARED = "the principles of the other one, in the order of the day: " * 12
PROMPTS = [f"{SHARED} the {n * 'an '}other {'in the hour ' * (n % 4)}" for n in range(11)]
GREEDY = Sampling(0.0, 1.0, 12, ban_eos=True)


def folder_of(family: str, tmp_path: Path) -> Path:
    return tiny_models.write(tmp_path / family, family)


def tokenizer_of(folder: Path) -> Tokenizer:
    return sources.resolve(str(folder)).tokenizer()


def own_text(model: Any, tokenizer: Tokenizer, prompt: str, number: int) -> list[int]:
    """Continue a prompt greedily with full forward passes, without a cache."""
    ids = tokenizer.encode((BOS, prompt))
    end = tokenizer.ids("<eos>", special=True)[0]
    for _ in range(number):
        logits = model(torch.tensor([ids])).logits[0, -1].float()
        logits[end] = float("-inf")
        ids.append(int(logits.argmax()))
    return ids[-number:]


def start(folder: Path, adapters: dict[str, Path] | None = None, slots: int = 4, context: int = 2048) -> TorchEngine:
    return TorchEngine(folder, adapters or {}, CPU, slots, context, tokenizer_of(folder), ["<eos>"])


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[TorchEngine]:
    engine = start(folder_of("llama", tmp_path))
    yield engine
    engine.close()


def ask_all(engine: TorchEngine, prompts: list[str], step: Step, adapters: list[str | None]) -> list[Part]:
    pairs = list(enumerate(zip(prompts, adapters, strict=True)))
    with ThreadPoolExecutor(len(pairs)) as pool:
        return list(pool.map(lambda p: engine.generate((BOS, p[1][0]), step, p[0], p[1][1]), pairs))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2", "qwen3", "mistral", "granite", "cohere"])
def test_batch_continues_as_the_model_does(family: str, tmp_path: Path) -> None:
    folder = folder_of(family, tmp_path)
    model, tokenizer = lora.load_base(folder), tokenizer_of(folder)
    engine = start(folder)
    engine.warm_prefix((BOS, SHARED), None)
    prompts = [*PROMPTS, "in the other", "an"]
    parts = ask_all(engine, prompts, Step(GREEDY), [None] * len(prompts))
    engine.close()
    for prompt, part in zip(prompts, parts, strict=True):
        anchor = tokenizer.encode((BOS, prompt))[-1:]
        expected = tokenizer.text([*anchor, *own_text(model, tokenizer, prompt, 12)])
        assert part.text == expected.removeprefix(tokenizer.text(anchor))
        assert part.finish == "length" and part.generated_tokens == 12
    shared = len(tokenizer.encode((BOS, SHARED)))
    assert [p.cached_tokens > 0 for p in parts] == [True] * len(PROMPTS) + [False] * 2
    assert all(p.cached_tokens == shared for p in parts[: len(PROMPTS)])


def test_each_request_has_its_adapter(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    tokenizer, base = tokenizer_of(folder), sources.resolve(str(folder))
    settings = TrainingSettings(rank=4, alpha=64, targets=["q_proj", "v_proj", "up_proj"])
    adapted = lora.with_new_adapter(lora.load_base(folder), settings, 0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    lora.save_adapter(adapted, tmp_path / "adapter", base, "card")
    engine = start(folder, {"mine": tmp_path / "adapter"})
    prompts = PROMPTS[:6]
    adapters: list[str | None] = ["mine", None] * 3
    parts = ask_all(engine, prompts, Step(GREEDY), adapters)
    engine.close()
    adapted.eval()
    for prompt, adapter, part in zip(prompts, adapters, parts, strict=True):
        model = adapted if adapter else lora.load_base(folder)
        ids = own_text(model, tokenizer, prompt, 12)
        assert part.text.split() == tokenizer.text(ids).split()


def test_stop_string_ends_the_text(engine: TorchEngine) -> None:
    whole = engine.generate((BOS, "the other"), Step(GREEDY), 0, None).text
    stop = whole[len(whole) // 2 :][:3]
    part = engine.generate((BOS, "the other"), Step(GREEDY, stop=(stop,)), 0, None)
    assert part.finish == "stop" and part.text == whole[: whole.index(stop)]


def test_stream_never_shows_a_part_of_a_stop_string(engine: TorchEngine) -> None:
    whole = engine.generate((BOS, "the other"), Step(GREEDY), 0, None).text
    stop = whole[len(whole) // 2 :][:3]
    pieces: list[str] = []
    step = Step(GREEDY, stop=(stop,))
    part = engine.generate((BOS, "the other"), step, 0, None, lambda piece: bool(pieces.append(piece)) or True)
    assert "".join(pieces) == part.text and part.finish == "stop"


def test_reader_can_cancel(engine: TorchEngine) -> None:
    part = engine.generate((BOS, "the other"), Step(Sampling(0.0, 1.0, 500, ban_eos=True)), 0, None, lambda _: False)
    assert part.finish == "cancelled" and part.generated_tokens < 500


def test_seed_decides_the_sample(engine: TorchEngine) -> None:
    step = Step(Sampling(1.0, 0.95, 12, top_k=20, ban_eos=True))
    texts = [engine.generate((BOS, "the"), step, seed, None).text for seed in (1, 1, -1)]
    assert texts[0] == texts[1] != texts[2]


def test_text_follows_the_grammar(engine: TorchEngine) -> None:
    pytest.importorskip("llguidance")
    step = Step(Sampling(1.0, 1.0, 40), stop=("\n",), grammar='root ::= " " ("1 (an)" | "2 (the)") "\\n"')
    for seed in range(4):
        assert engine.generate((BOS, "the"), step, seed, None).text in (" 1 (an)", " 2 (the)")


def test_missing_grammar_library_is_noted(engine: TorchEngine) -> None:
    engine._grammars.available = False
    assert engine.generate((BOS, "the"), Step(GREEDY, grammar='root ::= "a"'), 0, None).text
    assert "llguidance" in engine.note


def test_prompt_beyond_the_context_is_refused(tmp_path: Path) -> None:
    engine = start(folder_of("llama", tmp_path), context=256)
    with pytest.raises(TooLong):
        engine.generate((BOS, "the other " * 300), Step(GREEDY), 0, None)
    engine.close()


def test_failure_of_the_model_can_be_resumed(engine: TorchEngine) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    engine._batch.step = fail  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(Resumable, match="out of memory"):
            engine.generate((BOS, "the"), Step(GREEDY), 0, None)


def test_model_without_a_gguf_selects_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "accelerators", list)
    folder = folder_of("llama", tmp_path)
    settings = [f"model={folder}"]
    assert prepare("quick", settings, None, None)[0].engine.kind == "llama_cpp"
    for gguf in folder.glob("*.gguf"):
        gguf.unlink()
    assert prepare("quick", settings, None, None)[0].engine.kind == "torch"
    assert prepare("quick", [*settings, "engine.kind=llama_cpp"], None, None)[0].engine.kind == "llama_cpp"


def test_shared_beginnings_are_found(engine: TorchEngine) -> None:
    parts = [engine.generate((BOS, prompt), Step(GREEDY), 0, None) for prompt in PROMPTS]
    # The first prompt is computed as a whole; the second one decides what is kept.
    assert parts[0].cached_tokens == 0 and all(part.cached_tokens >= 48 for part in parts[1:])
    sizes = [len(tokens) for tokens, _ in engine._batch._prefixes]
    assert sizes and min(sizes) < len(engine._tokenizer.encode((BOS, PROMPTS[0])))


def test_prefixes_make_room_for_new_ones(engine: TorchEngine) -> None:
    engine._batch._free = 0
    for word in ("the", "in", "other", "an"):
        for end in (" in the other one", " an other hour", "one other day"):
            engine.generate((BOS, f"{word} hour of the day " * 8 + end), Step(GREEDY), 0, None)
    assert sum(kept is not None for kept in engine._batch._prefixes.values()) == 1
