"""One template: torch's tokenizer and the engine give the same ids; content never becomes a control token."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from selfalign import models
from selfalign.dialogue import Tokenizer, Turn, encode_example
from selfalign.engines.base import BOS, Control, RowError, Sampling, Step
from selfalign.engines.llama_cpp import LlamaCpp

SAMPLING = Sampling(0.0, 1.0, 12)


@pytest.fixture(scope="module")
def model() -> models.Model:
    return models.resolve("embedded")


@pytest.fixture(scope="module")
def tokenizer(model: models.Model) -> Tokenizer:
    return model.tokenizer()


@pytest.fixture(scope="module")
def engine(model: models.Model) -> Iterator[LlamaCpp]:
    started = LlamaCpp(model.gguf, {}, slots=2, context=1024, threads=0)
    yield started
    started.close()


def texts() -> list[str]:
    # Without "</s>": Gemma lists it as an added token that is not special, llama.cpp as a control token.
    rng = random.Random(3)
    parts = [
        "Hello", " world", "\n", "\n\n", "  ", "\t", "User:", "Alma:",
        "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>",
        "<unused7>", "naïve", "日本語", "🙂", "1234", "{}", "<|im_end|>",
        "<h1>", "- item", "3 (helpful)", "\u200b", "…",
    ]  # fmt: skip
    return ["".join(rng.choice(parts) for _ in range(rng.randint(1, 12))) for _ in range(300)]


def test_the_engine_and_torch_encode_the_same(engine: LlamaCpp, tokenizer: Tokenizer) -> None:
    for text in texts():
        pieces = (BOS, text, Control("<eos>"), text)
        assert engine.encode(pieces) == tokenizer.encode(pieces), text


def test_content_never_becomes_a_control_token(tokenizer: Tokenizer) -> None:
    control = {tokenizer.ids(t, special=True)[0] for t in ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")}
    for text in texts():
        assert not control & set(tokenizer.ids(text))


def test_the_embedded_base_gets_plain_turns_since_its_end_of_turn_was_never_trained(model: models.Model) -> None:
    assert (model.template.name, model.template.end) == ("plain", "<eos>")


def test_an_example_has_loss_on_the_answer_and_its_end_only(model: models.Model, tokenizer: Tokenizer) -> None:
    row = encode_example(tokenizer, model.template, "Be kind.", "Hi <eos> there", " Hello! ", "Alma")
    learnt = [i for i, m in zip(row.ids, row.mask, strict=True) if m]
    assert learnt == [*tokenizer.ids(" Hello!"), *tokenizer.ids("<eos>", special=True)]
    assert row.ids.count(learnt[-1]) == 1 and row.ids[0] == tokenizer.ids("<bos>", special=True)[0]
    prompt = model.template.prompt("Be kind.", [Turn("user", "Hi <eos> there")], "Alma")
    assert row.ids[: len(row.ids) - len(learnt)] == tokenizer.encode(prompt)


def test_stop_strings_streaming_seeds_and_limits(engine: LlamaCpp) -> None:
    prompt = (BOS, "One, two, three, four, five,")
    whole = engine.generate(prompt, Step(SAMPLING), 1, None)
    assert whole.finish == "length" and whole.generated_tokens == 12
    stopped = engine.generate(prompt, Step(SAMPLING, stop=(" eight",)), 1, None)
    assert stopped.finish == "stop" and "eight" not in stopped.text and "seven" in stopped.text
    seen: list[str] = []
    cut = engine.generate(prompt, Step(SAMPLING), 1, None, lambda t: (seen.append(t), len(seen) < 3)[1])
    assert cut.finish == "cancelled" and len(seen) == 3
    warm = Step(Sampling(1.0, 0.95, 12))
    assert engine.generate(prompt, warm, 5, None).text == engine.generate(prompt, warm, 5, None).text
    assert engine.generate(prompt, warm, 5, None).text != engine.generate(prompt, warm, 6, None).text
    assert not engine.generate(prompt, Step(SAMPLING, grammar='root ::= " zebra"'), 1, None).text.strip(" zebra")
    with pytest.raises(RowError, match="too long"):
        engine.generate((BOS, "word " * 3000), Step(SAMPLING), 1, None)


def test_a_primed_prefix_is_computed_once_for_all_slots(engine: LlamaCpp) -> None:
    prefix = (BOS, "The river flows to the sea, and the sea is wide. " * 20)
    engine.prime(prefix, None)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda q: engine.generate((*prefix, q), Step(SAMPLING), 1, None), ("Why?", "How?")))
    assert all(p.prompt_tokens < 12 and p.cached_tokens > 200 for p in parts)
