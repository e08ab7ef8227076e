"""Scoring on the workers of a real Ray cluster on this machine, compared with one process."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import selfalign
from selfalign import constitution as constitutions
from selfalign.data.prompt_text import BOS
from selfalign.data.records import read_jsonl
from selfalign.errors import Resumable, UserError
from selfalign.evaluation import evaluate
from selfalign.evaluation.evaluate import EvaluationRequest
from selfalign.evaluation.records import ItemScore
from selfalign.generation import scoring
from selfalign.generation.ray import cluster, scorer
from selfalign.generation.ray.pool import adapter_files
from selfalign.generation.ray.scorer import Chunk, RayScorer, ScoringWorker, by_context, in_batches, in_chunks
from selfalign.generation.ray.worker import Result, WorkerSettings
from selfalign.generation.scoring.base import Scored, Text
from selfalign.generation.settings import EngineSettings, ExecutorSettings
from selfalign.model import sources
from selfalign.model.base_model import Model
from selfalign.model.dialogue import Encoded
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.system.console import Screen
from selfalign.training.settings import TrainingSettings

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.integration
CONFIG = EngineSettings.model_validate({"kind": "llama_cpp"})
START = partial(scoring.start, "torch", 4096, "float32")
NOISE = 1e-5
"""Nats per token by which log-probabilities of a tiny model may differ when other texts share their matrices."""


def texts(items: int = 12) -> list[Text]:
    """Return questions with responses, not sorted by their beginnings."""
    system, things = "You are a kind and honest assistant.\n\n" * 2, ("the ä-tone", "a stone")
    return [
        ((BOS, system, "User: ", f"Is {things[i % 2]} number {i * 7 % items} wet?", " Alma:"), end)
        for end in (" Yes.", " No, and it never was.", " I do not know")
        for i in range(items)
    ]


def rows(number: int = 21) -> list[Encoded]:
    return [
        Encoded(tuple((7 * i + j) % 250 for j in range(9 + i % 5)), (False,) * 4 + (True,) * (5 + i % 5))
        for i in range(number)
    ]


# -- a real model in a worker ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tiny random model with a random adapter, and a scorer of both."""
    import torch

    from selfalign.training import lora

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker of one processor has
    model, folder = sources.resolve(str(tiny_base)), tmp_path_factory.mktemp("adapter") / "any"
    trained = lora.with_new_adapter(lora.load_base(tiny_base), TrainingSettings(rank=4, alpha=64, dropout=0.0), 0)
    for key, parameter in trained.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    lora.save_adapter(trained, folder, model, "card")
    adapters = {"/of mine": folder}  # users choose the names
    scorer = START(model, adapters)
    yield SimpleNamespace(scorer=scorer, adapters=adapters, model=model)
    scorer.close()
    torch.set_num_threads(before)


def order(model: Model, **more: Any) -> WorkerSettings:
    settings_ = {
        "version": selfalign.__version__, "engine": CONFIG.model_dump(mode="json"), "model": model.source,
        "identity": model.identity, "adapters": (), "sha256": {}, "threads": 0, "scratch": None, "start": START,
    }  # fmt: skip
    return WorkerSettings(**settings_ | more)


def same(scores: Sequence[Scored | None], expected: Sequence[Scored | None]) -> bool:
    """Return whether the scores agree up to rounding."""
    pairs = zip(scores, expected, strict=True)
    return all((f and f.logprobs) == (w and pytest.approx(w.logprobs, abs=NOISE)) for f, w in pairs)


def test_worker_scores_equal_this_process(tiny: Any):
    """One chunk is equal to the last bit; several chunks have equal losses, and log-probabilities up to rounding."""
    worker, (name, folder) = ScoringWorker(), next(iter(tiny.adapters.items()))
    files = adapter_files(tiny.adapters, False)
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    assert worker.start(order(tiny.model, adapters=(name,), sha256=sums), files) == (1, "torch, float32")
    assert str(worker._folder) not in str(folder)

    def computed(what: Any, items: Sequence[Any], chunks: Sequence[Sequence[int]], adapter: str | None) -> list[Any]:
        values: list[Any] = [None] * len(items)
        worker.give([(n, Chunk(what, tuple(items[i] for i in places), adapter)) for n, places in enumerate(chunks)])
        done: list[Result] = []
        while len(done) < len(chunks):
            done += worker.take(60)
        for number, (results, _), _ in done:
            for place, value in zip(chunks[number], results, strict=True):
                values[place] = value
        return values

    everything = [*texts(), ((BOS, "far too long " * 500), " end")]
    for adapter in (None, name):
        expected = tiny.scorer.loglikelihoods(everything, adapter)
        assert expected[-1] is None and expected[0]
        assert computed("texts", everything, [range(len(everything))], adapter) == expected
        assert same(computed("texts", everything, in_chunks(by_context(everything), 8), adapter), expected)
        losses = tiny.scorer.score(rows(), adapter)
        assert computed("rows", rows(), in_chunks(in_batches(rows()), 8), adapter) == losses
    assert tiny.scorer.loglikelihoods(texts(), None) != tiny.scorer.loglikelihoods(texts(), name)
    worker.close()


# -- chunks ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(["a", "b", "c d", "e" * 99]), min_size=1), st.text(max_size=9))),
    st.integers(1, 40),
)
def test_texts_of_one_context_stay_together(drawn: list[tuple[list[str], str]], most: int):
    requests: list[Text] = [(tuple(context), end) for context, end in drawn]
    units = by_context(requests)
    chunks = in_chunks(units, most)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(requests)))
    assert all(chunks) and len(chunks) <= min(most, len(units))
    where = {i: number for number, chunk in enumerate(chunks) for i in chunk}
    assert len({(context, where[i]) for i, (context, _) in enumerate(requests)}) == len(
        {context for context, _ in requests}
    )
    weights = [sum(cost for places, cost in units if where[places[0]] == n) for n in range(len(chunks))]
    costs = [cost for _, cost in units]
    assert not costs or max(weights) <= sum(costs) / most + max(costs)


def test_chunks_have_about_the_same_cost():
    chunks = in_chunks(by_context(texts(48)), 8)
    assert len(chunks) == 8
    assert {len(chunk) for chunk in chunks} <= {15, 18, 21}
    assert in_chunks([], 8) == []


def test_batches_equal_those_of_one_process():
    import inspect

    from selfalign.training import forward

    assert inspect.signature(forward.token_losses).parameters["size"].default == scorer._ROWS
    lengths = [len(rows()[i].ids) for places, _ in in_batches(rows()) for i in places]
    assert lengths == sorted(lengths)
    assert [len(places) for places, _ in in_batches(rows())] == [8, 8, 5]


# -- a scorer that follows words in the texts, also for test_executors.py ----------------------------------------------


class Simple:
    """Scores by length."""

    name = "simple"

    def __init__(self, once: str) -> None:
        self.tokens = (0, 0)
        self._once = Path(once)

    def loglikelihoods(self, requests: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        text = "".join(piece for context, _ in requests for piece in context)
        if "kill" in text or (self._once.is_file() and not self._once.unlink()):
            os.kill(os.getpid(), signal.SIGKILL)
        if "sleep" in text:
            time.sleep(60)
        if "user" in text:
            raise UserError("this text has no end")
        if "bug" in text:
            raise ZeroDivisionError("a mistake of ours")
        self.tokens = (self.tokens[0] + len(requests), self.tokens[1] + 1)
        return [Scored((-float(len(context[1] + end)), math.pi)) for context, end in requests]

    def close(self) -> None: ...


def texts_with(*words: str) -> list[Text]:
    return [((BOS, word), " end") for word in (*words, *(f"text {i}" for i in range(40)))]


def on_ray(
    model: Model, workers: int, start: Any, adapters: Any = None, messages: list[str] | None = None
) -> RayScorer:
    settings = {"kind": "ray", "workers": workers, "cpus": 1 / workers, "start_seconds": 60}
    say = (messages if messages is not None else []).append
    return RayScorer(ExecutorSettings.model_validate(settings), CONFIG, model, adapters or {}, "torch", start, say)


# -- errors at the start -----------------------------------------------------------------------------------------------


def refused(order: WorkerSettings, files: dict[str, bytes] | None = None) -> str:
    answer = ScoringWorker().start(order, files or {})
    assert isinstance(answer, str)
    return answer


def test_worker_that_cannot_score_the_same_refuses(tiny_base: Path, tmp_path: Path):
    model = sources.resolve(str(tiny_base))
    assert "this command 9.9: install the same" in refused(order(model, version="9.9"))
    assert f"its {tiny_base} holds other weights" in refused(order(model, identity="f00"))
    assert refused(order(replace(model, source="/nowhere/base.gguf"))).startswith(
        "model '/nowhere/base.gguf' does not exist"
    )
    name = "0/adapter/adapter_config.json"
    reason = refused(order(model, adapters=("mine",), sha256={name: "0" * 64}), {name: b"{}"})
    assert reason == f"the adapter's file {name} arrived incomplete or altered: run the same command again"
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tiny_base / name).read_bytes())
    reason = refused(order(sources.resolve(str(bare))))
    assert "tokenizer" in reason and "\n" not in reason


def test_only_the_loaded_adapter_files_are_sent(tmp_path: Path):
    for name in ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "checkpoint-9/a.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert adapter_files({"../../x": tmp_path}, False) == {
        f"0/adapter/{name}": name.encode() for name in ("adapter_config.json", "adapter_model.safetensors")
    }


# -- slow: real models on real workers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local() -> Iterator[cluster.Cluster]:
    """One cluster for all tests; a scorer uses it and leaves it running."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    connection = cluster.Cluster(None)
    yield connection
    connection.close()


@pytest.mark.slow
def test_worker_scores_equal_this_process_after_a_death(
    tiny: Any, local: cluster.Cluster, monkeypatch: pytest.MonkeyPatch
):
    messages: list[str] = []
    everything, adapter = texts(48), next(iter(tiny.adapters))
    one, two = (on_ray(tiny.model, n, START, tiny.adapters, messages) for n in (1, 2))
    for name in (None, adapter):
        expected = tiny.scorer.loglikelihoods(everything, name)
        assert one.loglikelihoods(everything, name) == expected
        assert same(two.loglikelihoods(everything, name), expected)
        assert one.score(rows(), name) == two.score(rows(), name) == tiny.scorer.score(rows(), name)
    assert one.tokens[0] == two.tokens[0] > two.tokens[1] > 0 and one.tokens[0] > one.tokens[1]
    assert one.name == two.name == tiny.scorer.name and two.loglikelihoods([], None) == []
    busy = next(handle for handle in two._pool.supervisor.handles if handle.actor)
    pid = ray.get(busy.actor.__ray_call__.remote(lambda _: os.getpid()))
    real = two._next

    def killing(done: Any) -> Any:
        monkeypatch.undo()
        os.kill(pid, signal.SIGKILL)
        return real(done)

    monkeypatch.setattr(two, "_next", killing)
    assert same(two.loglikelihoods(everything, adapter), tiny.scorer.loglikelihoods(everything, adapter))
    assert two.score(rows(), adapter) == tiny.scorer.score(rows(), adapter)
    one.close()
    two.close()
    assert len([line for line in messages if "a Ray worker died" in line]) == 1


@pytest.mark.slow
def test_poison_chunk_ends_the_command_with_one_line(local: cluster.Cluster, tiny_base: Path):
    messages: list[str] = []
    scorer = on_ray(sources.resolve(str(tiny_base)), 2, lambda *_: Simple(""), messages=messages)
    line = r"scoring stopped at \d+ texts: 3 workers died on it \(.+same command"
    with pytest.raises(Resumable, match=line) as caught:
        scorer.loglikelihoods(texts_with("kill"), None)
    scorer.close()
    assert "\n" not in str(caught.value)
    assert len([text for text in messages if "died" in text]) == 3


@pytest.mark.slow
def test_refusal_ends_the_command_with_one_line(local: cluster.Cluster):
    missing = Model("/nowhere/base.gguf", "f00", None, None, "")
    with pytest.raises(UserError, match=r"cannot start: model '/nowhere/base\.gguf' does not exist") as caught:
        on_ray(missing, 1, START)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_embedded_model_on_workers_writes_the_same_file(local: cluster.Cluster, tmp_path: Path):
    """Run all of HHH: one worker writes the same bytes, two make the same choices."""
    import torch

    from selfalign.training import lora

    base, data = sources.resolve("embedded"), str(Path(__file__).parents[1] / "data" / "fixture_hhh.json")
    trained = lora.with_new_adapter(lora.load_base(base.folder()), TrainingSettings(dropout=0.0), seed=0)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    lora.save_adapter(trained, tmp_path / "adapter", base, "card")
    del trained

    def measured(name: str, executor: dict[str, Any]) -> tuple[bytes, list[ItemScore]]:
        recipe = recipes.load("quick", ["engine.kind=llama_cpp", f"executor={json.dumps(executor)}"])
        context = Context(RunDir.create(tmp_path / name, recipe, constitutions.load("default")), Screen(-1))
        shutil.copytree(tmp_path / "adapter", context.run.adapter("engrave"))
        context.run.adapter_gguf("engrave").write_bytes(b"")  # it only has to exist
        evaluate.run(context, EvaluationRequest(["hhh"], ["base", "engraved"], data={"hhh": data}, limit=6))
        file = context.run.evaluation / "hhh.jsonl"
        result = file.read_bytes(), read_jsonl(file, ItemScore)
        context.journal.close()
        return result

    here = measured("local", {"kind": "local"})
    one = measured("one", {"kind": "ray", "workers": 1, "cpus": torch.get_num_threads()})
    two = measured("two", {"kind": "ray", "workers": 2, "cpus": 1})
    assert one[0] == here[0]
    pairs = list(zip(two[1], here[1], strict=True))
    assert [(r.id, r.model, r.values) for r, _ in pairs] == [(r.id, r.model, r.values) for _, r in pairs]
    mine, theirs = ([v for r in rows for values in r.logprobs for v in values] for rows in (two[1], here[1]))
    apart = [abs(a - b) for a, b in zip(mine, theirs, strict=True)]
    print(f"\n{len(pairs)} rows, {len(apart)} tokens; at most {max(apart):.1e} nats apart")
    assert max(apart) < 1e-4
