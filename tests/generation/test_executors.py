"""Requests answered by the workers of a real Ray cluster on this machine: the same files, whoever dies."""

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
from test_ray_scorer import Simple, asked, on_ray

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
from selfalign.run import recipe as recipes
from selfalign.run.journal import Journal
from selfalign.system.signals import STOP

ray = pytest.importorskip("ray")

SETTINGS = {
    "engine.kind": "fake",
    "stages": ["prompts", "align", "engrave", "verbose_cloning"],
    "prompts.self_instruct.count": 120,
    "prompts.red_team.count": 80,
    "verbose_cloning.prompts": 100,
}
DATED = ("recipe.yaml", "5_evaluation/benchmarks.json")
"""What says where, or when."""
EVALUATED = {"stages": ["prompts", "align", "engrave", "verbose_cloning", "evaluate"], "evaluate.tasks": ["behaviour"]}
RAY = {"kind": "ray", "workers": 2, "cpus": 0.5}
FAKE = EngineSettings.model_validate({"kind": "fake", "slots": 4})


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
    return {n: (folder / n).read_bytes() for n in manifest["files"] if n not in DATED} | {
        "counts": json.dumps(counts).encode()
    }


def run(folder: Path, **settings: Any) -> dict[str, bytes]:
    with selfalign.create("quick", folder, settings=SETTINGS | settings) as made:
        made.run_all()
    return files(folder)


def test_a_run_makes_the_same_files_on_ray(local: cluster.Cluster, tmp_path: Path):
    on_ray, here = run(tmp_path / "ray", executor=RAY, **EVALUATED), run(tmp_path / "local", **EVALUATED)
    assert on_ray == here
    assert {"2_self_align/responses.jsonl", "5_evaluation/answers.jsonl", "5_evaluation/behaviour.jsonl"} <= set(here)


def test_nobody_beyond_this_machine_can_reach_the_cluster(local: cluster.Cluster):
    """Every socket that a process of the cluster listens on is the loopback's."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text("utf-8").splitlines()[1:]:
            _, at, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                sockets[f"socket:[{inode}]"] = at.partition(":")[0]
    seen = set()
    for pid in (str(os.getpid()), *family(local.scratch)):
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                seen |= {sockets.get(str(handle.readlink()), "")}
    assert seen - {""}
    assert seen - {""} <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


# -- requests ----------------------------------------------------------------------------------------------------------


def echo(prompt: str, step: Step, rng: random.Random) -> str:
    return f" answer to {prompt} {rng.random()}"


def works(number: int, prompt: str = "prompt") -> list[RowRequest]:
    step = Step(Sampling(1.0, 0.9, 50))
    return [RowRequest(f"row{i}", Request((BOS, f"{prompt} {i}"), (step,), seed=i)) for i in range(number)]


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
        settings = {"kind": "ray", "workers": workers, "cpus": 0.1, "start_seconds": 60, **more}
        wanted = ExecutorSettings.model_validate(settings)
        made.append(Pool(wanted, config, None, adapters, (said if said is not None else []).append))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(items: list[RowRequest], on: Any, journal: Journal, stage: str = "align") -> list[Any]:
    return JournaledEngine(on, journal, stage, {None: "base"}).generate(items)


class Speller(Fake):
    """Answers with what its prompt is made of."""

    def generate(self, prompt: Pieces, step: Step, *rest: Any) -> Part:  # type: ignore[override]
        bias = [type(text).__name__ for text, _ in step.sampling.bias]
        return Part(" ".join([f"{type(p).__name__}:{p}" for p in prompt] + bias), "stop")


def test_control_pieces_arrive_as_such(pool: Callable[..., Pool], journal: Journal):
    """Text that spells a role token stays text, on the worker's side, too."""
    sampling = Sampling(1.0, 0.9, 50, bias=((Control("<end>"), -1.0), ("<end>", -1.0)))
    request = Request((BOS, Control("<user>"), "<user>", "né\x00\u202e"), (Step(sampling),), 1)
    (outcome,) = ask([RowRequest("a", request)], pool(Speller, 1), journal)
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
    assert one.warm_prefix((BOS, "x"), None) == "never computed"


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


@pytest.mark.slow
def test_a_request_that_kills_every_worker_is_a_failed_row(pool: Callable[..., Pool], journal: Journal):
    items = works(40)
    items[5] = RowRequest("bad", Request((BOS, "kill"), (Step(Sampling(1.0, 0.9, 50)),), 1))
    outcomes = ask(items, pool(lambda slots: Mortal(slots, "")), journal)
    assert [(o.row_id, o.fate) for o in outcomes if o.completion is None] == [("bad", "failed")]
    assert "3 workers died" in outcomes[5].reason


def test_where_every_worker_dies_the_run_ends_with_one_line(pool: Callable[..., Pool], journal: Journal):
    """What finished is saved, and the next command asks only for the rest."""
    one = pool(lambda slots: Fake(slots, echo), 1)
    ask(works(5), one, journal)
    one.supervisor.on_gone(one.supervisor.handles[0], "its machine is gone")
    with pytest.raises(Resumable, match=r"no Ray worker is left \(its machine is gone\)"):
        ask(works(20), one, journal)
    assert len(answered(journal)) == 5
    assert all(o.completion for o in ask(works(20), Fake(4, echo), journal))


def test_a_pass_that_is_not_read_to_its_end_leaves_the_pool_whole(pool: Callable[..., Pool], journal: Journal):
    one = pool(lambda slots: Fake(slots, echo, latency_s=0.01))
    first = JournaledEngine(one, journal, "align", {None: "base"}).stream(works(300))
    next(first)
    first.close()
    saved = len(answered(journal))
    assert saved < 300
    assert all(o.completion for o in ask(works(60), one, journal))
    assert one.supervisor.queue.clear() == []


class Reader(Fake):
    """Answers with what it finds in the adapter's file."""

    def __init__(self, slots: int, adapters: dict[str, Path]) -> None:
        super().__init__(slots)
        self.found = {name: folder.with_suffix(".gguf").read_text("utf-8") for name, folder in adapters.items()}

    def generate(self, *given: Any) -> Part:  # type: ignore[override]
        adapter = given[3]
        return Part(self.found[adapter or ""], "stop")


def test_adapters_travel_to_the_workers(local: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter.gguf").write_text("weights", "utf-8")
    monkeypatch.setattr(engines, "start", lambda config, model, adapters, slots, *say: Reader(slots, adapters))
    config = EngineSettings.model_validate({"kind": "llama_cpp", "slots": 2})
    settings = ExecutorSettings.model_validate({"kind": "ray", "cpus": 0.1})
    made = Pool(settings, config, None, {"engrave": tmp_path / "adapter"})
    part = made.generate((BOS, "x"), Step(Sampling(1.0, 0.9, 50)), 1, "engrave")
    made.close()
    assert part.text == "weights"
    assert worker.write_files({"a": b"x"}, {"a": "0" * 64}, tmp_path) == "a"


# -- scoring; tests/test_ray_scorer.py has the numbers -----------------------------------------------------------------


def test_scorings_dead_are_replaced_and_every_other_end_is_one_line(local: cluster.Cluster, tmp_path: Path):
    """A worker that dies, an error in one, a signal here while one is busy, no worker left."""
    ray.cloudpickle.register_pickle_by_value(sys.modules["test_ray_scorer"])
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).write_text("{}")
    once, said = tmp_path / "once", list[str]()
    once.touch()
    scorer = on_ray(sources.resolve(str(tmp_path / "base")), 2, lambda *_: Simple(str(once)), said=said)
    assert [s and s.logprobs[0] for s in scorer.loglikelihoods(asked(), None)] == [
        -float(len(c[1] + e)) for c, e in asked()
    ]
    assert not once.exists()
    assert len([line for line in said if "died" in line]) == 1
    assert (scorer.tokens, scorer.name) == ((40, 8), "simple")
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
    supervisor = scorer._pool.supervisor
    for handle in supervisor.handles:
        supervisor.on_gone(handle, "its machine is gone")
    with pytest.raises(Resumable, match=r"no Ray worker is left \(its machine is gone\)"):
        scorer.loglikelihoods(asked(), None)
    scorer.close()
    assert time.monotonic() - start < 10


# -- what is wrong is said before anything is asked --------------------------------------------------------------------


def test_a_refusing_worker_is_one_line(local: cluster.Cluster, monkeypatch: pytest.MonkeyPatch):
    wanted = ExecutorSettings.model_validate({"kind": "ray", "cpus": 0.1})
    missing = Model("/nowhere/base.gguf", "f00", None, None, "")
    with pytest.raises(UserError, match=r"a Ray worker cannot start: model '/nowhere/base\.gguf' is not") as found:
        Pool(wanted, EngineSettings.model_validate({"kind": "llama_cpp"}), missing, {})
    assert "\n" not in str(found.value)
    monkeypatch.setattr("selfalign.generation.ray.pool.__version__", "9.9")
    with pytest.raises(UserError, match=r"it has selfalign .*, this command 9\.9"):
        Pool(wanted, FAKE, None, {})


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path):
    (tmp_path / "base.gguf").write_bytes(b"GGUF of a worker")
    order = worker.WorkerSettings(
        selfalign.__version__, FAKE.model_dump(mode="json"), str(tmp_path / "base.gguf"), "f00", (), {}, 0, None,
        engines.start,
    )  # fmt: skip
    refused = worker.Worker().start(order, {})
    assert isinstance(refused, worker.Refusal)
    assert "holds other weights" in refused.text


def test_a_cluster_without_room_is_said(local: cluster.Cluster):
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
        Pool(ExecutorSettings.model_validate({"kind": "ray", "workers": 500}), FAKE, None, {})


def test_what_ray_does_not_take_is_said_and_not_waited_for(local: cluster.Cluster):
    with pytest.raises(UserError, match=r"a Ray worker cannot start: .*precision"):
        Pool(ExecutorSettings.model_validate({"kind": "ray", "workers": 1, "cpus": 0.00001}), FAKE, None, {})


def test_a_worker_that_does_not_answer_gives_its_requests_back(
    pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
):
    """What it had taken back was lost with the call, and waited for without end."""
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


def test_an_address_where_nobody_answers_is_said_at_once():
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 "):
        cluster.Cluster("127.0.0.1:1")
    with pytest.raises(UserError, match=r"no Ray cluster answers at a\.\.b:1 "):
        cluster.Cluster("a..b:1")
    with pytest.raises(UserError, match="address is 'ray://x:1': expected auto or HOST:PORT"):
        recipes.load("quick", ["executor=ray", "executor.address=ray://x:1"])


def test_without_ray_the_command_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'selfalign\[ray\]'"):
        selfalign.create("quick", tmp_path / "run", settings={"engine.kind": "fake", "executor": "ray"})
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_elsewhere_and_back(local: cluster.Cluster, tmp_path: Path):
    """The executor is no part of what a run is: nothing is asked again, nothing decided anew."""
    wanted = run(tmp_path / "local")
    folder = tmp_path / "run"
    with selfalign.create("quick", folder, settings=SETTINGS) as made:
        made.run_stage("prompts")
    with selfalign.create("quick", folder, settings=SETTINGS | {"executor": RAY}) as made:
        made.run_stage("prompts")
        made.run_stage("align")
        assert made.context.recipe.executor.kind == "ray"
    assert run(folder, executor="local") == wanted


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
    """Processes that name the cluster's folder."""
    found = []
    for at in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in at.read_bytes():
                found.append(at.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_command_killed_goes_on_and_leaves_no_process(tmp_path: Path, how: signal.Signals):
    folder, wanted = tmp_path / "run", tmp_path / "whole"
    subprocess.run(command(wanted, {"kind": "local"}), check=True, timeout=120)
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
    assert files(folder) == files(wanted)
    assert saved(folder) == saved(wanted) >= before
    assert not scratch.exists()


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "Version mismatch: The cluster was started with:\n Ray: 2.54.0",
            "runs other versions than this command.*2.54.0",
        ),
        ("RPC error: Unauthenticated", "refuses this command.*RAY_AUTH_TOKEN"),
        (
            "Failed to connect to Ray cluster at 10.0.0.5:6379",
            "not accept this command: is its token",
        ),
        ("no such thing", "cannot be reached: no such thing"),
    ],
)
def test_what_ray_says_of_a_cluster_is_one_line_with_what_to_do(said: str, line: str):
    """Words of Ray 2.60, of which the first three were seen with clusters of another version and another token."""
    text = cluster.explain_error("10.0.0.5:6379", RuntimeError(said))
    assert re.search(line, text), text
    assert "\n" not in text
