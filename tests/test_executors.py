"""Requests answered by the workers of a real Ray cluster on this machine: the same files, whoever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import selfalign
from selfalign import engines
from selfalign.engines.base import BOS, Control, Part, Pieces, Request, Sampling, Step
from selfalign.engines.fake import Fake
from selfalign.executors import cluster
from selfalign.executors.ray import Pool
from selfalign.executors.settings import Executor
from selfalign.generate import Work, generate
from selfalign.journal import Journal
from selfalign.recipe import Engine as EngineConfig

ray = pytest.importorskip("ray")

SETTINGS = {
    "engine.kind": "fake",
    "stages": ["prompts", "align", "engrave", "clone"],
    "prompts.self_instruct.count": 120,
    "prompts.red_team.count": 80,
    "clone.prompts": 100,
}
RAY = {"kind": "ray", "workers": 2, "cpus": 0.5}
FAKE = EngineConfig.model_validate({"kind": "fake", "slots": 4})


@pytest.fixture(scope="module")
def local() -> Iterator[cluster.Cluster]:
    """One cluster for all; a pool finds it and leaves it as it is."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made = cluster.Cluster(None)
    yield made
    made.close()


def files(folder: Path) -> dict[str, bytes]:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    counts = [{k: s[k] for k in ("stage", "rows_in", "kept", "dropped", "failed")} for s in manifest["stages"]]
    return {n: (folder / n).read_bytes() for n in manifest["files"] if n != "recipe.yaml"} | {
        "counts": json.dumps(counts).encode()
    }


def run(folder: Path, **settings: Any) -> dict[str, bytes]:
    with selfalign.create("quick", folder, settings=SETTINGS | settings) as made:
        made.run_all()
    return files(folder)


def test_a_run_makes_the_same_files_on_ray(local: cluster.Cluster, tmp_path: Path):
    assert run(tmp_path / "ray", executor=RAY) == run(tmp_path / "local")


# -- requests ----------------------------------------------------------------------------------------------------------


def echo(prompt: str, step: Step, rng: random.Random) -> str:
    return f" answer to {prompt} {rng.random()}"


def works(number: int, prompt: str = "prompt") -> list[Work]:
    step = Step(Sampling(1.0, 0.9, 50))
    return [Work(f"row{i}", Request((BOS, f"{prompt} {i}"), (step,), seed=i)) for i in range(number)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.sqlite")
    yield made
    made.close()


@pytest.fixture
def pool(local: cluster.Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pool]]:
    """Makes pools whose workers start the engine that this function makes."""
    made: list[Pool] = []

    def make(engine: Callable[[int], Any], workers: int = 2, said: list[str] | None = None, **more: Any) -> Pool:
        adapters = more.pop("adapters", {})
        config = more.pop("config", FAKE)
        monkeypatch.setattr(engines, "start", lambda config, model, adapters, slots, *say: engine(slots))
        wanted = Executor.model_validate({"kind": "ray", "workers": workers, "cpus": 0.1, "start_seconds": 60, **more})
        made.append(Pool(wanted, config, None, adapters, (said if said is not None else []).append))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(items: list[Work], on: Any, journal: Journal, stage: str = "align") -> list[Any]:
    return generate(items, on, journal, stage=stage, identities={None: "base"})


class Speller(Fake):
    """Answers with what its prompt is made of."""

    def generate(self, prompt: Pieces, step: Step, *rest: Any) -> Part:  # type: ignore[override]
        bias = [type(text).__name__ for text, _ in step.sampling.bias]
        return Part(" ".join([f"{type(p).__name__}:{p}" for p in prompt] + bias), "stop")


def test_control_pieces_arrive_as_such(pool: Callable[..., Pool], journal: Journal):
    """Text that spells a role token stays text, on the worker's side, too."""
    sampling = Sampling(1.0, 0.9, 50, bias=((Control("<end>"), -1.0), ("<end>", -1.0)))
    request = Request((BOS, Control("<user>"), "<user>", "né\x00\u202e"), (Step(sampling),), 1)
    (outcome,) = ask([Work("a", request)], pool(Speller, 1), journal)
    found = outcome.completion.parts[0].text
    assert found == "Control:<bos> Control:<user> str:<user> str:né\x00\u202e Control str"


def test_a_bad_row_is_that_rows_alone(pool: Callable[..., Pool], journal: Journal):
    def start(slots: int) -> Fake:
        return Fake(slots, echo, fail="prompt 7")

    outcomes = ask(works(30), pool(start), journal)
    assert [o.row_id for o in outcomes if o.completion is None] == ["row7"]
    here = Journal(journal.path.with_name("local.sqlite"))
    assert [o.completion for o in ask(works(30), start(4), here)] == [o.completion for o in outcomes]
    here.close()


def test_a_pool_is_used_as_an_engine_too(pool: Callable[..., Pool]):
    one = pool(lambda slots: Fake(slots, echo), 1)
    shown: list[str] = []
    part = one.generate((BOS, "hello"), Step(Sampling(1.0, 0.9, 50)), 3, None, lambda text: not shown.append(text))
    assert part == Fake(4, echo).generate((BOS, "hello"), Step(Sampling(1.0, 0.9, 50)), 3, None)
    assert shown == [part.text]
    assert one.prime((BOS, "x"), None) == "never computed"


# -- deaths ------------------------------------------------------------------------------------------------------------


class Mortal(Fake):
    """Its process ends on a prompt with this word, or where a file says that one must."""

    def __init__(self, slots: int, once: str) -> None:
        super().__init__(slots, echo, latency_s=0.005)
        self.once = once

    def generate(self, prompt: Pieces, *rest: Any) -> Part:  # type: ignore[override]
        if "kill" in prompt[-1]:
            os.kill(os.getpid(), signal.SIGKILL)
        if "prompt 40" in prompt[-1] and Path(self.once).exists():
            Path(self.once).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(prompt, *rest)


def answered(journal: Journal) -> dict[str, str]:
    keys = [row[0] for row in journal._db.execute("SELECT key FROM work")]
    return journal.saved(keys)


def test_a_worker_that_dies_takes_nothing_with_it(pool: Callable[..., Pool], journal: Journal, tmp_path: Path):
    once, said = str(tmp_path / "once"), []
    Path(once).touch()
    outcomes = ask(works(200), pool(lambda slots: Mortal(slots, once), said=said), journal)
    assert not Path(once).exists()
    assert [o.row_id for o in outcomes] == [f"row{i}" for i in range(200)]
    assert all(o.completion for o in outcomes)
    assert len(answered(journal)) == 200
    assert len([line for line in said if "died" in line]) == 1


def test_a_request_that_kills_every_worker_is_a_failed_row(pool: Callable[..., Pool], journal: Journal):
    items = works(40)
    items[5] = Work("bad", Request((BOS, "kill"), (Step(Sampling(1.0, 0.9, 50)),), 1))
    outcomes = ask(items, pool(lambda slots: Mortal(slots, "")), journal)
    assert [(o.row_id, o.fate) for o in outcomes if o.completion is None] == [("bad", "failed")]
    assert "3 workers died" in outcomes[5].reason
