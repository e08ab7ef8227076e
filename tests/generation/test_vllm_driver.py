"""The thread that drives vLLM, with a scripted stand-in for vLLM itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from conftest import byte_tokenizer
from selfalign.data.prompt_text import BOS
from selfalign.errors import Interrupted, Resumable, UserError
from selfalign.generation.engines.base import RowError, Sampling, Step, TooLong
from selfalign.generation.engines.vllm_driver import VllmDriver
from selfalign.generation.engines.vllm_offline import VllmOffline
from selfalign.generation.scoring.vllm_scorer import VllmScorer
from selfalign.model.dialogue import Tokenizer
from selfalign.system.signals import STOP


class FakeEngine:
    """Adds one word to each request per step; three words end it."""

    broken = False

    def __init__(self) -> None:
        self.running: dict[str, Any] = {}
        self.aborted: list[str] = []
        self.largest_batch = 0

    def add_request(self, key: str, prompt: dict[str, list[int]], params: Any, lora_request: Any) -> None:
        if 13 in prompt["prompt_token_ids"]:
            raise ValueError("an unlucky token")
        self.running[key] = SimpleNamespace(ids=prompt["prompt_token_ids"], words=0, lora=lora_request)

    def abort_request(self, keys: list[str]) -> None:
        self.aborted += keys
        for key in keys:
            self.running.pop(key, None)

    def step(self) -> list[Any]:
        if self.broken:
            raise RuntimeError("out of memory")
        self.largest_batch = max(self.largest_batch, len(self.running))
        outputs = []
        for key, request in list(self.running.items()):
            request.words += 1
            finished = request.words == 3
            if finished:
                del self.running[key]
            completion = SimpleNamespace(
                text=" word" * request.words, finish_reason="length" if finished else None, stop_reason=None,
                token_ids=[7] * request.words,
            )  # fmt: skip
            logprobs = [None] + [{token: SimpleNamespace(logprob=-float(token))} for token in request.ids[1:]]
            outputs.append(
                SimpleNamespace(
                    request_id=key, finished=finished, outputs=[completion], num_cached_tokens=None,
                    prompt_logprobs=logprobs,
                )
            )  # fmt: skip
        return outputs


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    """Replace vLLM by the stand-in, and write a configuration with the model's sizes."""
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1}')
    fake = FakeEngine()
    vllm = ModuleType("vllm")
    vllm.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    parts: dict[str, dict[str, Any]] = {
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda name, number, path: name},
        "vllm.sampling_params": {},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": dict},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.llm_engine": {"LLMEngine": SimpleNamespace(from_engine_args=lambda args: fake)},
    }
    modules = {"vllm": vllm}
    for name, values in parts.items():
        modules[name] = ModuleType(name)
        modules[name].__dict__.update(values)
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, modules[name])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake


@pytest.fixture
def driver(engine: FakeEngine, tmp_path: Path) -> Iterator[VllmDriver]:
    started = VllmDriver(tmp_path, {}, 8, 64, "float32")
    yield started
    started.close()


def test_requests_of_many_threads_share_batches(driver: VllmDriver, engine: FakeEngine) -> None:
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda n: driver.submit([1, n], None, None).result(5), range(20, 60)))
    assert {o.outputs[0].text for o in outputs} == {" word word word"}
    assert len({o.request_id for o in outputs}) == 40 and not engine.running


def test_callback_ends_its_request(driver: VllmDriver, engine: FakeEngine) -> None:
    seen: list[str] = []
    output = driver.submit([1], None, None, lambda o: (seen.append(o.outputs[0].text), len(seen) < 2)[1]).result(5)
    assert output.outputs[0].text == " word word" and engine.aborted == [output.request_id]


def test_errors_of_one_request_leave_the_others(driver: VllmDriver) -> None:
    def broken(output: Any) -> bool:
        raise BrokenPipeError("reader is gone")

    with pytest.raises(BrokenPipeError):
        driver.submit([1], None, None, broken).result(5)
    with pytest.raises(RowError, match="an unlucky token"):
        driver.submit([13], None, None).result(5)
    assert driver.submit([1], None, None).result(5).finished


def test_cancelled_request_is_aborted(driver: VllmDriver, engine: FakeEngine) -> None:
    submitted = Event()
    waiting = driver.submit([1], None, None, lambda _: submitted.wait(5) and waiting.cancel())
    submitted.set()
    driver.submit([2], None, None).result(5)
    assert waiting.cancelled() and len(engine.aborted) == 1


def test_all_callers_learn_that_vllm_stopped(driver: VllmDriver, engine: FakeEngine) -> None:
    engine.broken = True
    with pytest.raises(Resumable, match=r"RuntimeError: out of memory.*run the same command again"):
        driver.submit([1], None, None).result(5)
    with pytest.raises(Resumable, match="has stopped"):
        driver.submit([1], None, None)


def test_failed_start_is_a_user_error(engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("unknown architecture")

    monkeypatch.setattr(sys.modules["vllm.engine.arg_utils"], "EngineArgs", refuse)
    with pytest.raises(UserError, match=r"cannot load .* unknown architecture"):
        VllmDriver(tmp_path, {}, 8, 64, "float32")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"docs/engines\.md"):
        VllmDriver(tmp_path, {}, 8, 64, "float32")


def test_generation_streams_and_counts(engine: FakeEngine, tmp_path: Path) -> None:
    tokenizer = Tokenizer(str(byte_tokenizer(tmp_path)), "<bos>")
    offline = VllmOffline(VllmDriver(tmp_path, {}, 8, 32, "float32"), tokenizer, ("<eos>",))
    step, texts = Step(Sampling(0.0, 1.0, 8)), []
    part = offline.generate((BOS, "a"), step, 0, None, lambda text: (texts.append(text), len(texts) < 2)[1])
    assert (part.text, part.finish, texts) == (" word word", "cancelled", [" word", " word"])
    part = offline.generate((BOS, "a"), step, 0, None)
    assert (part.text, part.finish, part.prompt_tokens, part.generated_tokens) == (" word word word", "length", 2, 3)
    with pytest.raises(TooLong):
        offline.generate((BOS, "a" * 32), step, 0, None)
    offline.close()


def test_scorer_reads_continuations_and_skips_long_texts(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(str(byte_tokenizer(tmp_path)), "<bos>")
    scorer = VllmScorer(tmp_path, tokenizer, {}, 32, "float32")
    scores = scorer.loglikelihoods([((BOS, "a"), "bc"), ((BOS, "a" * 40), "b"), ((BOS,), "a")], None)
    assert [s and s.logprobs for s in scores] == [
        tuple(-float(i) for i in tokenizer.ids("bc")),
        None,
        (-float(tokenizer.ids("a")[0]),),
    ]
    monkeypatch.setattr(STOP, "_signum", 15)
    with pytest.raises(Interrupted):
        scorer.loglikelihoods([((BOS,), "a")], None)
    monkeypatch.setattr(STOP, "_signum", None)
    engine.broken = True
    with pytest.raises(Resumable):
        scorer.loglikelihoods([((BOS,), "a")], None)
    scorer.close()
