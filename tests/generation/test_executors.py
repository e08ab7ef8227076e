"""Generation on the workers of a real Ray cluster on this machine, with workers that die."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from test_ray_scorer import Simple, on_ray, texts_with

import selfalign
from selfalign.data.prompt_text import BOS, Control, Pieces
from selfalign.errors import Interrupted, Resumable, UserError
from selfalign.generation import engines
from selfalign.generation.engines.base import Part, Request, Sampling, Step
from selfalign.generation.engines.fake import Fake
from selfalign.generation.loop import JournaledEngine, RowRequest
from selfalign.generation.ray import cluster, worker
from selfalign.generation.ray.pool import Pool
from selfalign.generation.settings import EngineSettings, ExecutorSettings
from selfalign.model import sources
from selfalign.model.base_model import Model
from selfalign.model.fake import FakeModel
from selfalign.run import recipe as recipes
from selfalign.run.journal import Journal
from selfalign.system.signals import STOP

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.integration

SETTINGS = {
    "engine.kind": "fake",
    "stages": ["prompts", "align", "engrave", "verbose_cloning"],
    "prompts.self_instruct.count": 120,
    "prompts.red_team.count": 80,
    "verbose_cloning.prompts": 100,
}
DATED = ("recipe.yaml", "5_evaluation/benchmarks.json")
"""Files that hold paths or dates."""
EVALUATED = {"stages": ["prompts", "align", "engrave", "verbose_cloning", "evaluate"], "evaluate.limit": 20}
RAY = {"kind": "ray", "workers": 2, "cpus": 0.5}
FAKE = EngineSettings.model_validate({"kind": "fake", "slots": 4})


@pytest.fixture(scope="module")
def local() -> Iterator[cluster.Cluster]:
    """One cluster for all tests; a pool uses it and leaves it running."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    connection = cluster.Cluster(None)
    yield connection
    connection.close()


def files(folder: Path) -> dict[str, bytes]:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    counts = [{k: s[k] for k in ("stage", "rows_in", "kept", "dropped", "failed")} for s in manifest["stages"]]
    return {n: (folder / n).read_bytes() for n in manifest["files"] if n not in DATED} | {
        "counts": json.dumps(counts).encode()
    }


def run(folder: Path, **settings: Any) -> dict[str, bytes]:
    with selfalign.create("quick", folder, settings=SETTINGS | settings) as handle:
        handle.run_all()
    return files(folder)


def test_run_writes_the_same_files_on_ray(local: cluster.Cluster, tmp_path: Path):
    on_ray, here = run(tmp_path / "ray", executor=RAY, **EVALUATED), run(tmp_path / "local", **EVALUATED)
    assert on_ray == here
    assert {"2_self_align/responses.jsonl", "5_evaluation/answers.jsonl", "5_evaluation/behaviour.jsonl"} <= set(here)


def test_cluster_listens_on_loopback_only(local: cluster.Cluster):
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text("utf-8").splitlines()[1:]:
            _, at, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                sockets[f"socket:[{inode}]"] = at.partition(":")[0]
    addresses = set()
    for pid in (str(os.getpid()), *family(local.scratch)):
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                addresses |= {sockets.get(str(handle.readlink()), "")}
    assert addresses - {""}
    assert addresses - {""} <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


# -- requests ----------------------------------------------------------------------------------------------------------


def echo(prompt: str, step: Step, rng: random.Random) -> str:
    return f" answer to {prompt} {rng.random()}"


def works(number: int, prompt: str = "prompt") -> list[RowRequest]:
    step = Step(Sampling(1.0, 0.9, 50))
    return [RowRequest(f"row{i}", Request((BOS, f"{prompt} {i}"), (step,), seed=i)) for i in range(number)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def pool(local: cluster.Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pool]]:
    """Creates pools whose workers start the engine that the given function returns."""
    pools: list[Pool] = []

    def make(engine: Callable[[int], Any], workers: int = 2, messages: list[str] | None = None, **more: Any) -> Pool:
        adapters = more.pop("adapters", {})
        config = more.pop("config", FAKE)
        monkeypatch.setattr(engines, "start", lambda config, model, adapters, slots, *say: engine(slots))
        settings = {"kind": "ray", "workers": workers, "cpus": 0.1, "start_seconds": 60, **more}
        executor = ExecutorSettings.model_validate(settings)
        pools.append(Pool(executor, config, FakeModel(), adapters, (messages if messages is not None else []).append))
        return pools[-1]

    yield make
    for started in pools:
        started.close()


def ask(items: list[RowRequest], on: Any, journal: Journal, stage: str = "align") -> list[Any]:
    return JournaledEngine(on, journal, stage, {None: "base"}).generate(items)


class Speller(Fake):
    """Answers with the types and texts of its prompt's pieces."""

    def generate(self, prompt: Pieces, step: Step, *rest: Any) -> Part:  # type: ignore[override]
        bias = [type(text).__name__ for text, _ in step.sampling.bias]
        return Part(" ".join([f"{type(p).__name__}:{p}" for p in prompt] + bias), "stop")


def test_control_tokens_and_their_spelling_stay_distinct(pool: Callable[..., Pool], journal: Journal):
    sampling = Sampling(1.0, 0.9, 50, bias=((Control("<end>"), -1.0), ("<end>", -1.0)))
    request = Request((BOS, Control("<user>"), "<user>", "né\x00\u202e"), (Step(sampling),), 1)
    (outcome,) = ask([RowRequest("a", request)], pool(Speller, 1), journal)
    text = outcome.completion.parts[0].text
    assert text == "Control:<bos> Control:<user> str:<user> str:né\x00\u202e Control str"


def test_failed_request_fails_its_row_only(pool: Callable[..., Pool], journal: Journal):
    def start(slots: int) -> Fake:
        return Fake(slots, echo, fail="prompt 7")

    outcomes = ask(works(30), pool(start), journal)
    assert [o.row_id for o in outcomes if o.completion is None] == ["row7"]
    here = Journal(journal.path.with_name("local.sqlite"))
    assert [o.completion for o in ask(works(30), start(4), here)] == [o.completion for o in outcomes]
    here.close()


def test_pool_generates_as_an_engine(pool: Callable[..., Pool]):
    started = pool(lambda slots: Fake(slots, echo), 1)
    pieces: list[str] = []
    part = started.generate((BOS, "hello"), Step(Sampling(1.0, 0.9, 50)), 3, None, lambda text: not pieces.append(text))
    assert part == Fake(4, echo).generate((BOS, "hello"), Step(Sampling(1.0, 0.9, 50)), 3, None)
    assert pieces == [part.text]
    assert started.warm_prefix((BOS, "x"), None) == "never computed"


# -- deaths ------------------------------------------------------------------------------------------------------------


class Mortal(Fake):
    """Its process dies on a prompt with "kill", and once on "prompt 40" if a file exists."""

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


def test_dead_worker_loses_no_request(pool: Callable[..., Pool], journal: Journal, tmp_path: Path):
    once, messages = str(tmp_path / "once"), []
    Path(once).touch()
    outcomes = ask(works(200), pool(lambda slots: Mortal(slots, once), messages=messages), journal)
    assert not Path(once).exists()
    assert [o.row_id for o in outcomes] == [f"row{i}" for i in range(200)]
    assert all(o.completion for o in outcomes)
    assert len(answered(journal)) == 200
    assert len([line for line in messages if "died" in line]) == 1


@pytest.mark.slow
def test_poison_request_is_a_failed_row(pool: Callable[..., Pool], journal: Journal):
    items = works(40)
    items[5] = RowRequest("bad", Request((BOS, "kill"), (Step(Sampling(1.0, 0.9, 50)),), 1))
    outcomes = ask(items, pool(lambda slots: Mortal(slots, "")), journal)
    assert [(o.row_id, o.state) for o in outcomes if o.completion is None] == [("bad", "failed")]
    assert "3 workers died" in outcomes[5].reason


def test_run_ends_with_one_line_when_no_worker_is_left(pool: Callable[..., Pool], journal: Journal):
    started = pool(lambda slots: Fake(slots, echo), 1)
    ask(works(5), started, journal)
    started.supervisor.on_gone(started.supervisor.handles[0], "its machine is gone")
    with pytest.raises(Resumable, match=r"no Ray worker is left \(its machine is gone\)"):
        ask(works(20), started, journal)
    assert len(answered(journal)) == 5
    assert all(o.completion for o in ask(works(20), Fake(4, echo), journal))


def test_pool_works_after_an_unfinished_pass(pool: Callable[..., Pool], journal: Journal):
    started = pool(lambda slots: Fake(slots, echo, latency_s=0.01))
    first = JournaledEngine(started, journal, "align", {None: "base"}).stream(works(300))
    next(first)
    first.close()
    saved = len(answered(journal))
    assert saved < 300
    assert all(o.completion for o in ask(works(60), started, journal))
    assert started.supervisor.queue.clear() == []


class Reader(Fake):
    """Answers with the text of the adapter's file."""

    def __init__(self, slots: int, adapters: dict[str, Path]) -> None:
        super().__init__(slots)
        self.texts = {name: folder.with_suffix(".gguf").read_text("utf-8") for name, folder in adapters.items()}

    def generate(self, *args: Any) -> Part:  # type: ignore[override]
        adapter = args[3]
        return Part(self.texts[adapter or ""], "stop")


def test_adapters_are_sent_to_the_workers(local: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter.gguf").write_text("weights", "utf-8")
    monkeypatch.setattr(engines, "start", lambda config, model, adapters, slots, *say: Reader(slots, adapters))
    config = EngineSettings.model_validate({"kind": "llama_cpp", "slots": 2})
    settings = ExecutorSettings.model_validate({"kind": "ray", "cpus": 0.1})
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    workers = Pool(settings, config, sources.resolve(str(tmp_path / "base.gguf")), {"engrave": tmp_path / "adapter"})
    part = workers.generate((BOS, "x"), Step(Sampling(1.0, 0.9, 50)), 1, "engrave")
    workers.close()
    assert part.text == "weights"
    assert worker.write_files({"a": b"x"}, {"a": "0" * 64}, tmp_path) == "a"


# -- scoring (test_ray_scorer.py tests the numbers) --------------------------------------------------------------------


def test_scoring_survives_a_death_and_reports_errors(local: cluster.Cluster, tmp_path: Path):
    """A worker dies, one has an error, a signal comes while one is busy, no worker is left."""
    ray.cloudpickle.register_pickle_by_value(sys.modules["test_ray_scorer"])
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).write_text("{}")
    once, messages = tmp_path / "once", list[str]()
    once.touch()
    scorer = on_ray(sources.resolve(str(tmp_path / "base")), 2, lambda *_: Simple(str(once)), messages=messages)
    assert [s and s.logprobs[0] for s in scorer.loglikelihoods(texts_with(), None)] == [
        -float(len(c[1] + e)) for c, e in texts_with()
    ]
    assert not once.exists()
    assert len([line for line in messages if "died" in line]) == 1
    assert (scorer.tokens, scorer.name) == ((40, 8), "simple")
    with pytest.raises(UserError, match=r"^this text has no end$"):
        scorer.loglikelihoods(texts_with("user"), None)
    with pytest.raises(RuntimeError, match=r"(?s)in a Ray worker:.*in loglikelihoods.*a mistake of ours"):
        scorer.loglikelihoods(texts_with("bug"), None)
    timer = threading.Timer(0.3, lambda: setattr(STOP, "_signum", signal.SIGINT))
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            scorer.loglikelihoods(texts_with("sleep"), None)
    finally:
        timer.join()
        STOP.clear()
    supervisor = scorer._pool.supervisor
    for handle in supervisor.handles:
        supervisor.on_gone(handle, "its machine is gone")
    with pytest.raises(Resumable, match=r"no Ray worker is left \(its machine is gone\)"):
        scorer.loglikelihoods(texts_with(), None)
    scorer.close()
    assert time.monotonic() - start < 10


# -- errors at the start -----------------------------------------------------------------------------------------------


def test_worker_that_cannot_start_is_one_line(local: cluster.Cluster, monkeypatch: pytest.MonkeyPatch):
    executor = ExecutorSettings.model_validate({"kind": "ray", "cpus": 0.1})
    missing = Model("/nowhere/base.gguf", "f00", None, None, "")
    with pytest.raises(UserError, match=r"cannot start: model '/nowhere/base\.gguf' does not exist") as caught:
        Pool(executor, EngineSettings.model_validate({"kind": "llama_cpp"}), missing, {})
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("selfalign.generation.ray.pool.__version__", "9.9")
    with pytest.raises(UserError, match=r"it has selfalign .*, this command 9\.9"):
        Pool(executor, FAKE, FakeModel(), {})


def test_worker_refuses_other_weights_of_the_same_name(tmp_path: Path):
    (tmp_path / "base.gguf").write_bytes(b"GGUF of a worker")
    order = worker.WorkerSettings(
        selfalign.__version__, FAKE.model_dump(mode="json"), str(tmp_path / "base.gguf"), "f00", (), {}, 0, None,
        engines.start,
    )  # fmt: skip
    refused = worker.Worker().start(order, {})
    assert isinstance(refused, str) and "holds other weights" in refused


def test_allocation_and_cluster_without_room(local: cluster.Cluster):
    nodes = [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]

    def shape(kind: str = "fake", tensor_parallel_size: int = 1, **settings: Any) -> cluster.Allocation:
        executor = ExecutorSettings.model_validate({"kind": "ray", **settings})
        return cluster.allocate(executor, kind, nodes, tensor_parallel_size)

    assert shape() == cluster.Allocation(2, 2.0, 0.0, 2)
    assert shape("vllm") == cluster.Allocation(1, 1.0, 1.0, 2)
    nodes[1] |= {"CPU": 20.0}
    assert shape("vllm", gpus=0.1).workers == 10
    nodes[1] |= {"CPU": 4.0}
    with pytest.raises(UserError, match=r"has 6 CPUs and 1 GPUs on 2 machines, room for 6 of 9 workers"):
        shape(workers=9)
    with pytest.raises(UserError, match=r"room for 0 of any workers of 1 CPUs and 8 GPUs"):
        shape(gpus=8)
    with pytest.raises(UserError, match=r"room for 0 of any workers of 1 CPUs and 2 GPUs"):
        shape("vllm", tensor_parallel_size=2)
    with pytest.raises(
        UserError, match=r"executor\.gpus is 1 and engine\.tensor_parallel_size 4: a worker needs as many"
    ):
        shape("vllm", tensor_parallel_size=4, gpus=1)
    with pytest.raises(UserError, match=r"on 1 machine, room for"):
        Pool(ExecutorSettings.model_validate({"kind": "ray", "workers": 500}), FAKE, FakeModel(), {})


def test_settings_that_ray_refuses_end_the_command_at_once(local: cluster.Cluster):
    with pytest.raises(UserError, match=r"a Ray worker cannot start: .*precision"):
        Pool(ExecutorSettings.model_validate({"kind": "ray", "workers": 1, "cpus": 0.00001}), FAKE, FakeModel(), {})


def test_requests_of_an_unresponsive_worker_are_taken_back(pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch):
    executor = pool(lambda slots: Fake(slots, echo, latency_s=0.5), workers=1).executor()
    for work in works(60):
        executor.give(work.row_id, work.request)
    time.sleep(0.3)
    monkeypatch.setattr("selfalign.generation.ray.supervision._CALL_SECONDS", 1e-6)
    never: list[str] = []
    thread = threading.Thread(target=lambda: never.extend(executor.close()), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert len(never) + executor.done.qsize() == 60


def test_unreachable_address_is_a_user_error():
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 "):
        cluster.Cluster("127.0.0.1:1")
    with pytest.raises(UserError, match=r"no Ray cluster answers at a\.\.b:1 "):
        cluster.Cluster("a..b:1")
    with pytest.raises(UserError, match="address is 'ray://x:1': expected auto or HOST:PORT"):
        recipes.load("quick", ["executor=ray", "executor.address=ray://x:1"])


def test_missing_ray_is_a_user_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'selfalign\[ray\]'"):
        selfalign.create("quick", tmp_path / "run", settings={"engine.kind": "fake", "executor": "ray"})
    assert not (tmp_path / "run").exists()


def test_executor_can_change_within_a_run(local: cluster.Cluster, tmp_path: Path):
    expected = run(tmp_path / "local")
    folder = tmp_path / "run"
    with selfalign.create("quick", folder, settings=SETTINGS) as opened:
        opened.run_stage("prompts")
    with selfalign.create("quick", folder, settings=SETTINGS | {"executor": RAY}) as opened:
        opened.run_stage("prompts")
        opened.run_stage("align")
        assert opened.context.recipe.executor.kind == "ray"
    assert run(folder, executor="local") == expected


# -- slow: clusters of their own, killed -------------------------------------------------------------------------------


def command(folder: Path, executor: dict[str, Any]) -> list[str]:
    settings = SETTINGS | {"executor": executor, "prompts.self_instruct.count": 1500, "engine.slots": 2}
    pairs = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    return [sys.executable, "-m", "selfalign.cli.main", "run", "quick", "--out", str(folder), "-q", *pairs]


def saved(folder: Path) -> int:
    if not (folder / "journal.sqlite").exists():
        return 0
    with closing(sqlite3.connect(folder / "journal.sqlite")) as db:
        try:
            return int(db.execute("SELECT COUNT(*) FROM work WHERE state = 'raw_saved'").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def family(folder: Path) -> list[str]:
    """Return the processes whose command line names the cluster's folder."""
    pids = []
    for at in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in at.read_bytes():
                pids.append(at.parent.name)
    return pids


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_command_resumes_and_leaves_no_process(tmp_path: Path, how: signal.Signals):
    folder, expected = tmp_path / "run", tmp_path / "whole"
    subprocess.run(command(expected, {"kind": "local"}), check=True, timeout=120)
    process = subprocess.Popen(command(folder, RAY), start_new_session=True)
    while saved(folder) < 300:
        assert process.poll() is None
        time.sleep(0.01)
    (scratch,) = Path("/tmp").glob(f"selfalign-ray-{process.pid}-*")
    if how is signal.SIGINT:
        os.killpg(process.pid, how)  # as the terminal does
    else:
        process.kill()
    assert process.wait(60) == (130 if how is signal.SIGINT else -9)
    until = time.monotonic() + 20
    while family(scratch) and time.monotonic() < until:
        time.sleep(0.2)
    assert family(scratch) == []
    before = saved(folder)
    subprocess.run(command(folder, RAY), check=True, timeout=120)
    assert files(folder) == files(expected)
    assert saved(folder) == saved(expected) >= before
    assert not scratch.exists()


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "Version mismatch: The cluster was started with:\n Ray: 2.54.0",
            "runs other versions than this command.*2.54.0",
        ),
        ("RPC error: Unauthenticated", "refuses this command.*RAY_AUTH_TOKEN"),
        (
            "Failed to connect to Ray cluster at 10.0.0.5:6379",
            "not accept this command: check that RAY_AUTH_TOKEN",
        ),
        ("no such thing", "cannot be reached: no such thing"),
    ],
)
def test_ray_errors_become_one_line_with_advice(message: str, line: str):
    """The messages are from Ray 2.60."""
    text = cluster.explain_error("10.0.0.5:6379", RuntimeError(message))
    assert re.search(line, text), text
    assert "\n" not in text
