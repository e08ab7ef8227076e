"""A Ray cluster of two nodes, one of which dies; the embedded model in a worker."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfalign import constitution
from selfalign.data.prompt_text import BOS
from selfalign.generation import engines, guided
from selfalign.generation.engines.base import Request, Sampling, Step
from selfalign.generation.engines.fake import Fake
from selfalign.generation.loop import JournaledEngine, RowRequest
from selfalign.generation.ray.pool import Pool
from selfalign.generation.settings import EngineSettings, ExecutorSettings
from selfalign.model import sources
from selfalign.model.fake import FakeModel
from selfalign.run import recipe as recipes
from selfalign.run.journal import Journal

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """(the cluster, its second node): two raylets with one CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster, second
    cluster.shutdown()


def echo(prompt: str, step: Step, rng: Any) -> str:
    return f" answer to {prompt} {rng.random()}"


def test_dead_machine_loses_no_request(two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, second = two_nodes
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(engines, "start", lambda config, model, adapters, slots, *say: Fake(slots, echo, 0.05))
    executor = ExecutorSettings.model_validate({"kind": "ray", "address": cluster.address, "start_seconds": 60})
    messages: list[str] = []
    pool = Pool(executor, EngineSettings.model_validate({"kind": "fake", "slots": 4}), FakeModel(), {}, messages.append)
    assert (pool.allocation.workers, pool.allocation.machines, pool.parallel) == (2, 2, 8)
    journal = Journal(tmp_path / "journal.sqlite")
    step = Step(Sampling(1.0, 0.9, 50))
    works = [RowRequest(f"row{i}", Request((BOS, f"prompt {i}"), (step,), i)) for i in range(1200)]
    finished = 0
    dead = threading.Thread(target=lambda: cluster.remove_node(second, allow_graceful=False))

    def on_done(rows: int, tokens: int) -> None:
        nonlocal finished
        finished += rows
        if finished > 200 and dead.ident is None:
            dead.start()

    outcomes = JournaledEngine(pool, journal, "align", {None: "base"}, on_done).generate(works)
    dead.join()
    pool.close()
    assert [o.row_id for o in outcomes] == [w.row_id for w in works]
    assert all(o.completion for o in outcomes)
    assert any("a Ray worker died" in line for line in messages)
    here = Journal(tmp_path / "local.sqlite")
    local = JournaledEngine(Fake(8, echo), here, "align", {None: "base"}).generate(works)
    assert [o.completion for o in local] == [o.completion for o in outcomes]
    keys = [[k for (k,) in j._db.execute("SELECT key FROM work WHERE state = 'raw_saved'")] for j in (journal, here)]
    assert sorted(keys[0]) == sorted(keys[1])
    journal.close()
    here.close()


def test_embedded_model_in_a_worker_answers_as_in_process(tmp_path: Path) -> None:
    """Greedy responses agree with those of this process as much as two runs of this process agree."""
    model, texts = sources.resolve("embedded"), constitution.load("default")
    config = EngineSettings.model_validate({"kind": "llama_cpp", "slots": 1, "context": 2048})
    align = recipes.load("quick", ["align.max_thought_tokens=16"]).align
    form = guided.Form(texts, align, Sampling(0.0, 1.0, 24))
    messages = [seed.instruction for seed in constitution.load_seeds("default")][:30]
    works = [RowRequest(str(i), form.request(message, i)) for i, message in enumerate(messages)]

    def answers(name: str, engine: Any) -> list[str]:
        journal = Journal(tmp_path / f"{name}.sqlite")
        try:
            engine.warm_prefix(form.prefix(), None)
            results = JournaledEngine(engine, journal, "align", {None: model.identity}).generate(works)
        finally:
            engine.close()
            journal.close()
        return [json.dumps([p.text for p in o.completion.parts]) if o.completion else o.reason for o in results]

    local = [answers(f"local{n}", engines.start(config, model, {}, 1)) for n in range(2)]
    start = time.monotonic()
    on_ray = answers("ray", Pool(ExecutorSettings.model_validate({"kind": "ray"}), config, model, {}))
    same = [sum(a == b for a, b in zip(one, other, strict=True)) for one, other in (local, (local[0], on_ray))]
    print(f"\nsame of {len(works)}: local twice {same[0]}, local and Ray {same[1]}; {time.monotonic() - start:.0f} s")
    assert same[1] >= same[0]
    assert same[0] >= 28
