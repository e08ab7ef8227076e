"""Scoring on the workers of a real Ray cluster on this machine: the numbers of one process, whoever dies."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import selfalign
from selfalign import models
from selfalign.dialogue import Encoded
from selfalign.engines import scorers
from selfalign.engines.base import BOS
from selfalign.engines.scoring import Scored, Text
from selfalign.errors import Interrupted, Resumable, UserError
from selfalign.executors import cluster, ray_scorer
from selfalign.executors.ray import _contents
from selfalign.executors.ray_scorer import RayScorer, ScoringWorker, by_beginning, in_batches, in_chunks
from selfalign.executors.settings import Executor
from selfalign.executors.worker import Order, Refusal
from selfalign.models import Model
from selfalign.recipe import Engine as EngineConfig
from selfalign.recipe import Engrave
from selfalign.signals import STOP

ray = pytest.importorskip("ray")
CONFIG = EngineConfig.model_validate({"kind": "llama_cpp"})
NOISE = 1e-5
"""Nats a token: what log-probabilities of a tiny model differ by where other texts share their matrices."""


@pytest.fixture(scope="module")
def local() -> Iterator[cluster.Cluster]:
    """One cluster for all; a scorer finds it and leaves it as it is."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made = cluster.Cluster(None)
    yield made
    made.close()


def texts(items: int = 12) -> list[Text]:
    """Questions with answers, not in the order of what they begin with."""
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


# -- a real model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(local: cluster.Cluster, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tiny random model with a random adapter: a scorer of this process, and one on a Ray worker."""
    import torch

    from selfalign.training import lora

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the worker has
    model, folder = models.resolve(str(tiny_base)), tmp_path_factory.mktemp("adapter") / "any"
    trained = lora.with_new_adapter(lora.load_base(tiny_base), Engrave(rank=4, alpha=64, dropout=0.0), 0)
    for key, parameter in trained.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    lora.save_adapter(trained, folder, model, "card")
    adapters = {"/of mine": folder}  # a name that a user may give
    start = partial(scorers.start, "torch", 4096, "float32")
    wanted = Executor.model_validate({"kind": "ray", "workers": 1, "cpus": 1, "start_seconds": 60})
    here, there = start(model, adapters), RayScorer(wanted, CONFIG, model, adapters, "torch", start)
    yield SimpleNamespace(here=here, there=there, adapter=next(iter(adapters)), wanted=wanted, model=model)
    there.close()
    here.close()
    torch.set_num_threads(before)


def test_a_worker_has_the_numbers_of_this_process(tiny: Any, monkeypatch: pytest.MonkeyPatch):
    """In one chunk to the last bit; in many losses, too, and log-probabilities up to rounding."""
    asked = [*texts(), ((BOS, "far too long " * 500), " end")]
    for adapter in (None, tiny.adapter):
        wanted = tiny.here.loglikelihoods(asked, adapter)
        assert wanted[-1] is None and wanted[0]
        assert tiny.there.loglikelihoods(asked, adapter) == wanted
        losses = tiny.here.score(rows(), adapter)
        monkeypatch.setattr(tiny.there, "workers", 2)
        assert tiny.there.score(rows(), adapter) == losses
        before = tiny.there.tokens
        found = tiny.there.loglikelihoods(asked, adapter)
        monkeypatch.undo()
        assert tiny.there.tokens[0] - before[0] > tiny.there.tokens[1] - before[1] > 0
        for mine, theirs in zip(found, wanted, strict=True):
            assert (mine and mine.logprobs) == (theirs and pytest.approx(theirs.logprobs, abs=NOISE))
    assert tiny.here.loglikelihoods(asked, None) != tiny.here.loglikelihoods(asked, tiny.adapter)
    assert tiny.there.name == tiny.here.name == "torch, float32"
    assert tiny.there.loglikelihoods([], None) == []


# -- which texts go together -------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(["a", "b", "c d", "e" * 99]), min_size=1), st.text(max_size=9))),
    st.integers(1, 40),
)
def test_what_has_one_context_stays_together_and_nothing_is_lost(asked: list[tuple[list[str], str]], wanted: int):
    made: list[Text] = [(tuple(context), end) for context, end in asked]
    units = by_beginning(made)
    chunks = in_chunks(units, wanted)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(made)))
    assert all(chunks) and len(chunks) <= min(wanted, len(units))
    where = {i: number for number, chunk in enumerate(chunks) for i in chunk}
    assert len({(context, where[i]) for i, (context, _) in enumerate(made)}) == len({context for context, _ in made})
    weights = [sum(cost for places, cost in units if where[places[0]] == n) for n in range(len(chunks))]
    costs = [cost for _, cost in units]
    assert not costs or max(weights) <= sum(costs) / wanted + max(costs)


def test_there_are_more_chunks_than_workers_and_they_weigh_about_the_same():
    chunks = in_chunks(by_beginning(texts(48)), 8)
    assert len(chunks) == 8
    assert {len(chunk) for chunk in chunks} <= {15, 18, 21}
    assert in_chunks([], 8) == []


def test_batches_are_those_of_one_process():
    """`_ROWS` is what `token_losses` takes, and its order is this one."""
    import inspect

    from selfalign.training import forward

    assert inspect.signature(forward.token_losses).parameters["size"].default == ray_scorer._ROWS
    lengths = [len(rows()[i].ids) for places, _ in in_batches(rows()) for i in places]
    assert lengths == sorted(lengths)
    assert [len(places) for places, _ in in_batches(rows())] == [8, 8, 5]


# -- deaths ------------------------------------------------------------------------------------------------------------


class Simple:
    """Scores by length, and does what a text says."""

    name = "simple"

    def __init__(self, once: str) -> None:
        self.tokens = (0, 0)
        self._once = Path(once)

    def loglikelihoods(self, asked: Sequence[Text], adapter: str | None) -> list[Scored | None]:
        said = "".join(piece for context, _ in asked for piece in context)
        if "kill" in said or (self._once.exists() and not self._once.unlink()):
            os.kill(os.getpid(), signal.SIGKILL)
        if "sleep" in said:
            time.sleep(60)
        if "user" in said:
            raise UserError("this text has no end")
        if "bug" in said:
            raise ZeroDivisionError("a mistake of ours")
        self.tokens = (self.tokens[0] + len(asked), self.tokens[1] + 1)
        return [Scored((-float(len(context[1] + end)), math.pi)) for context, end in asked]

    def close(self) -> None: ...


@pytest.fixture
def simple(local: cluster.Cluster, tiny_base: Path, tmp_path: Path) -> Iterator[Callable[..., RayScorer]]:
    made: list[RayScorer] = []

    def make(workers: int = 2, said: list[str] | None = None) -> RayScorer:
        wanted = Executor.model_validate({"kind": "ray", "workers": workers, "cpus": 0.1, "start_seconds": 60})
        once, say = str(tmp_path / "once"), (said if said is not None else []).append
        made.append(
            RayScorer(wanted, CONFIG, models.resolve(str(tiny_base)), {}, "torch", lambda *_: Simple(once), say)
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def asked(*said: str) -> list[Text]:
    return [((BOS, word), " end") for word in (*said, *(f"text {i}" for i in range(40)))]


def test_a_worker_that_dies_takes_nothing_with_it_and_every_other_end_is_one_line(
    simple: Callable[..., RayScorer], tmp_path: Path
):
    """An error in a worker, a signal here while a worker is busy, no worker left."""
    (tmp_path / "once").touch()
    said: list[str] = []
    scorer = simple(2, said)
    wanted = [Scored((-float(len(context[1] + end)), math.pi)) for context, end in asked()]
    assert scorer.loglikelihoods(asked(), None) == wanted
    assert not (tmp_path / "once").exists()
    assert len([line for line in said if "died" in line]) == 1
    assert scorer.tokens == (40, 8)
    with pytest.raises(UserError, match=r"^this text has no end$"):
        scorer.loglikelihoods(asked("user"), None)
    with pytest.raises(RuntimeError, match=r"(?s)in a Ray worker:.*in loglikelihoods.*a mistake of ours"):
        scorer.loglikelihoods(asked("bug"), None)
    timer = threading.Timer(0.3, lambda: setattr(STOP, "_signum", signal.SIGINT))
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            scorer.loglikelihoods(asked("sleep"), None)
    finally:
        timer.join()
        STOP.clear()
    for hand in scorer._pool._hands:
        scorer._pool.out(hand, "its machine is gone")
    with pytest.raises(Resumable, match=r"no Ray worker is left \(its machine is gone\)"):
        scorer.loglikelihoods(asked(), None)
    scorer.close()
    assert time.monotonic() - start < 5


@pytest.mark.slow
def test_texts_that_end_every_worker_end_the_command_with_one_line(simple: Callable[..., RayScorer]):
    said: list[str] = []
    line = r"scoring stopped at \d+ texts: 3 workers died on it \(.+same command"
    with pytest.raises(Resumable, match=line) as found:
        simple(2, said).loglikelihoods(asked("kill"), None)
    assert "\n" not in str(found.value)
    assert len([line for line in said if "died" in line]) == 3


# -- what is wrong is said before anything is scored -------------------------------------------------------------------


def refused(order: Order, files: dict[str, bytes] | None = None) -> str:
    answer = ScoringWorker().start(order, files or {})
    assert isinstance(answer, Refusal)
    return answer.text


def test_a_worker_that_cannot_score_the_same_refuses(tiny_base: Path, tmp_path: Path):
    def order(**more: Any) -> Order:
        made = {
            "version": selfalign.__version__, "engine": CONFIG.model_dump(mode="json"), "model": str(tiny_base),
            "identity": models.resolve(str(tiny_base)).identity, "adapters": (), "sha256": {}, "threads": 0,
            "scratch": None, "start": lambda *_: Simple(""),
        }  # fmt: skip
        return Order(**made | more)

    assert "this command 9.9: install the same" in refused(order(version="9.9"))
    assert f"its {tiny_base} holds other weights" in refused(order(identity="f00"))
    assert refused(order(model="/nowhere/base.gguf")).startswith("model '/nowhere/base.gguf' is not")
    wrong = {"0/adapter/adapter_config.json": "0" * 64}
    said = refused(order(adapters=("mine",), sha256=wrong), {"0/adapter/adapter_config.json": b"{}"})
    assert said == "the adapter's file 0/adapter/adapter_config.json did not arrive whole: run the same command again"
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tiny_base / name).read_bytes())
    start = partial(scorers.start, "torch", 4096, "float32")
    said = refused(order(model=str(bare), identity=models.resolve(str(bare)).identity, start=start))
    assert "tokenizer" in said and "\n" not in said


@pytest.mark.slow
def test_a_refusal_ends_the_command_with_one_line(local: cluster.Cluster):
    wanted = Executor.model_validate({"kind": "ray", "cpus": 0.1})
    missing = Model("/nowhere/base.gguf", "f00", None, None, "")
    with pytest.raises(UserError, match=r"a Ray worker cannot start: model '/nowhere/base\.gguf' is not") as found:
        RayScorer(wanted, CONFIG, missing, {}, "torch", lambda *_: Simple(""))
    assert "\n" not in str(found.value)


def test_of_an_adapter_travels_what_is_read(tmp_path: Path):
    """Not the checkpoints of a training beside it; its name is no path."""
    for name in (
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.pt",
        "checkpoint-9/adapter.safetensors",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert _contents({"../../x": tmp_path}, False) == {
        f"0/adapter/{name}": name.encode() for name in ("adapter_config.json", "adapter_model.safetensors")
    }
